# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dirty bitmaps of ours: what a guest has written to a disk since a snapshot.

'livesnap-ID@TAG': since the snapshot with that id, whose store and guest folder the tag is made of;
so several stores of one guest keep out of each other's way. A qcow2 image keeps it when QEMU ends.

Others watch over a disk for the moments in which nothing is to be written to it.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.leftovers import PREFIX
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import QmpCommandError

#: How finely they count, bytes: the clusters of the copies.
GRANULARITY = 64 << 10
#: The same of one that watches. Whether anything was written is all that it is asked.
_COARSE = 1 << 20


@dataclass(frozen=True)
class Bitmap:
    """One of a node, as QEMU tells of it. count: bytes that it has marked."""

    name: str
    count: int
    recording: bool
    busy: bool
    inconsistent: bool

    @property
    def snapshot_id(self) -> str:
        """Of the snapshot that it counts from."""
        return self.name[len(PREFIX) :].partition("@")[0]


def tag(store: str, guest: str) -> str:
    """Of the bitmaps of a guest's folder in a store. Pure."""
    return hashlib.sha256(f"{store}/{guest}".encode()).hexdigest()[:8]


def name_of(snapshot_id: str, tag_: str) -> str:
    """Of the bitmap that counts from a snapshot. Pure."""
    return f"{PREFIX}{snapshot_id}@{tag_}"


def of_nodes(qmp: Connection) -> dict[str, dict[str, Any]]:
    """Node name -> what QEMU says of it and of the images below, for all of them."""
    every = qmp.execute("query-named-block-nodes", {"flat": False})
    return {str(node["node-name"]): node for node in every}


def ours(node: Mapping[str, Any], tag_: str) -> list[Bitmap]:
    """Those of a node with this tag. Pure."""
    return [
        Bitmap(
            str(each["name"]),
            int(each.get("count", 0)),
            bool(each.get("recording", False)),
            bool(each.get("busy", False)),
            bool(each.get("inconsistent", False)),
        )
        for each in node.get("dirty-bitmaps", ())
        if str(each.get("name", "")).startswith(PREFIX)
        and str(each["name"]).endswith(f"@{tag_}")
    ]


def is_kept(node: Mapping[str, Any]) -> bool:
    """Whether the image of a node keeps bitmaps when QEMU ends: qcow2 from version 3 on. Pure."""
    about = node.get("image", {}).get("format-specific", {})
    return bool(about.get("type") == "qcow2" and about["data"].get("compat") != "0.10")


def add(qmp: Connection, node: Mapping[str, Any], name: str) -> None:
    """A new one that does not count yet; QmpCommandError where the node cannot have one."""
    qmp.execute(
        "block-dirty-bitmap-add",
        {
            "node": node["node-name"],
            "name": name,
            "granularity": GRANULARITY,
            "persistent": is_kept(node),
            "disabled": True,
        },
    )


def watch(qmp: Connection, node: str, name: str) -> None:
    """A new one that counts at once, and that no image keeps."""
    qmp.execute(
        "block-dirty-bitmap-add", {"node": node, "name": name, "granularity": _COARSE}
    )


def seen(qmp: Connection, name: str) -> set[str]:
    """Nodes that something was written to since they are watched under that name."""
    every = qmp.execute("query-named-block-nodes", {"flat": True})
    return {
        str(node["node-name"])
        for node in every
        if any(
            each.get("name") == name and each["count"] for each in node.get("dirty-bitmaps", ())
        )
    }


def enable(node: str, name: str) -> dict[str, Any]:
    """The action of a transaction that makes it count from then on. Pure."""
    return {"type": "block-dirty-bitmap-enable", "data": {"node": node, "name": name}}


def remove(qmp: Connection, node: str, names: Sequence[str]) -> None:
    """Remove them; one that is gone, or in use, stays as it is."""
    for name in names:
        with contextlib.suppress(QmpCommandError):
            qmp.execute("block-dirty-bitmap-remove", {"node": node, "name": name})


def remove_all(qmp: Connection, prefix: str) -> list[str]:
    """Those of all nodes whose name begins so; what was removed, in words."""
    said = []
    for node, about in of_nodes(qmp).items():
        names = [
            str(each["name"])
            for each in about.get("dirty-bitmaps", ())
            if str(each.get("name", "")).startswith(prefix)
        ]
        remove(qmp, node, names)
        said += [f"dirty bitmap '{name}'" for name in names]
    return said
