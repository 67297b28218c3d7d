# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scheme internal: a snapshot inside the guest's own qcow2 image.

QEMU makes it in the transaction, and the image keeps it: nothing is copied. It is worth no more
than the image, goes with it, and is copied out before anything is done with it.
"""

from __future__ import annotations

import os
from typing import Any, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import image_file
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.scheme import (
    Outside,
    Subject,
    entry,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.address import reached
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import Disk
from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded

_FORMAT = "qcow2"
#: Seconds that QEMU or qemu-img may take to remove one.
_REMOVE_LIMIT = 120.0


class Internal(Outside):
    """The snapshots inside images, of one snapshot."""

    NAME = "internal"
    WARNING = (
        "scheme 'internal' keeps disks of the snapshot inside the guest's own images: they do not"
        " survive these"
    )

    @classmethod
    def check(cls, subject: Subject, qmp: Connection, disks: Sequence[Disk]) -> None:
        """Refuse what is no qcow2 file."""
        for disk in disks:
            why = _why_not(subject, disk)
            if why:
                raise RefusedError(
                    f"disk '{disk.label}' cannot be captured by scheme 'internal': {why}",
                    "choose scheme 'backup' for it",
                    "internal",
                )

    def entries(self) -> list[dict[str, Any]]:
        """With the name that the snapshot has inside the image."""
        return [
            {**entry(self.NAME, share.disk, None, _FORMAT), "internal": self._name}
            for share in self.shares
        ]

    @property
    def _name(self) -> str:
        return f"livesnap-{self.making.whose['id']}"

    def actions(self) -> list[dict[str, Any]]:
        """Made with all other disks, or none of them."""
        return [
            {
                "type": "blockdev-snapshot-internal-sync",
                "data": {"device": share.disk.node, "name": self._name},
            }
            for share in self.shares
        ]

    def commit(self, qmp: Connection, timeout: float) -> None:
        """The transaction has done it all."""

    @classmethod
    def discard(cls, whose: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
        """By the QEMU that has the image open, or by qemu-img where the guest is off."""
        with reached(whose) as qmp:
            if qmp is not None and _remove_by(qmp, entry):
                return
        _remove_from_file(entry)

    @classmethod
    def fetch(
        cls, whose: Mapping[str, Any], entry: Mapping[str, Any], path: str, limit: float
    ) -> None:
        """Copy it out of the image, which the guest may go on to write to."""
        source, name = entry["source"]["file"], entry["internal"]
        argv = ["qemu-img", "convert", "-q", "-U", "-f", _FORMAT, "-O", _FORMAT]
        done = run_bounded([*argv, "-l", f"snapshot.name={name}", source, path], limit)
        if done.problem or done.code != 0:
            raise LivesnapError(
                f"disk '{entry['match']}' cannot be copied out of '{source}': 'qemu-img convert'"
                f" {done.problem or 'failed: ' + done.words}",
                "a snapshot inside an image goes with the image: was it replaced, or restored?",
            )
        image_file.check_whole(path, entry)


def _why_not(subject: Subject, disk: Disk) -> str:
    if disk.format != _FORMAT:
        return f"its format is '{disk.format}', not qcow2"
    if not disk.file.startswith("/"):
        return f"'{disk.file}' is not a file"
    try:
        about = image_file.look(f"/proc/{subject.process.pid}/root{disk.file}", _FORMAT)
    except LivesnapError as err:
        return err.msg
    return image_file.why_not_alone(disk.file, about)


def _remove_by(qmp: Connection, disk: Mapping[str, Any]) -> bool:
    """Whether QEMU has the image open; if so, the snapshot is not in it any more."""
    node = _node_of(qmp, disk["source"]["file"])
    if node is None:
        return False
    names = [str(each["name"]) for each in node["image"].get("snapshots", [])]
    if disk["internal"] in names:
        qmp.execute(
            "blockdev-snapshot-delete-internal-sync",
            {"device": node["node-name"], "name": disk["internal"]},
            _REMOVE_LIMIT,
        )
    return True


def _node_of(qmp: Connection, file: str) -> Optional[dict[str, Any]]:
    """The node of an image that a QEMU has open."""
    for node in qmp.execute("query-named-block-nodes", {"flat": True}):
        if node.get("drv") == _FORMAT and node["image"]["filename"] == file:
            found: dict[str, Any] = node
            return found
    return None


def _remove_from_file(disk: Mapping[str, Any]) -> None:
    file, name = disk["source"]["file"], disk["internal"]
    if not os.path.lexists(file):
        return
    about = image_file.look(file, _FORMAT)
    if name not in [each.get("name") for each in about.get("snapshots", [])]:
        return
    done = run_bounded(["qemu-img", "snapshot", "-q", "-d", name, file], _REMOVE_LIMIT)
    if done.problem or done.code != 0:
        raise LivesnapError(
            f"snapshot '{name}' cannot be removed from '{file}': {done.problem or done.words}"
        )
