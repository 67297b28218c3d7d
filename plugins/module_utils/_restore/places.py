# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the disks of a snapshot go back to: the images that the guest has now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import RefusedError
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.xml import (
    disk_files,
    disk_formats,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import chain, names
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store


@dataclass(frozen=True)
class Place:
    """The image of one disk."""

    file: str
    format: str


def of_command_line(
    store: Store, guest: str, snapshot: Sequence[Mapping[str, Any]]
) -> list[Place]:
    """Of a guest that is started by a command line: where they were at the snapshot.

    RefusedError where layers lie upon that, or it is one: the command line would not follow.
    """
    parts = {**chain.overlays(store, guest), **chain.covered(store, guest)}
    for disk in snapshot:
        file = disk["source"]["file"]
        if file in parts:
            raise _chained(disk, file, parts[file])
    return [Place(disk["source"]["file"], disk["source"]["format"]) for disk in snapshot]


def of_definition(
    store: Store, guest: str, snapshot: Sequence[Mapping[str, Any]], xml: str
) -> list[Place]:
    """Of a libvirt domain with that definition: where libvirt has them now, whatever layers came
    and went in between. RefusedError where that is an image that a snapshot is made of."""
    defined, formats = disk_files(xml), disk_formats(xml)
    covered = chain.covered(store, guest)
    found = []
    for disk in snapshot:
        label, source = disk["match"], disk["source"]
        now = defined.get(label, source["file"])
        # One that has moved for another reason is refused by name later.
        moved = now != source["file"] and names.same_disk(now, source["file"])
        place = Place(now, formats[label]) if moved else Place(source["file"], source["format"])
        if place.file in covered:
            raise _chained(disk, place.file, covered[place.file])
        found.append(place)
    return found


def moved(
    snapshot: Sequence[Mapping[str, Any]], places: Sequence[Place]
) -> dict[str, tuple[str, str]]:
    """Label -> (file, format) of the disks that are in another image than at the snapshot. Pure."""
    return {
        disk["match"]: (place.file, place.format)
        for disk, place in zip(snapshot, places)
        if place.file != disk["source"]["file"]
    }


def _chained(disk: Mapping[str, Any], file: str, name: str) -> RefusedError:
    return RefusedError(
        f"disk '{disk['match']}' lies in '{file}', an image of a chain that snapshot '{name}' is"
        " part of (scheme overlay), and the chain would break",
        "make a clone; or remove the snapshots of scheme overlay first, if others are left",
        "disk_chain",
    )
