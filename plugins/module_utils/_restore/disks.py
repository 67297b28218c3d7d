# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the disks of a snapshot can go back to where the guest has them. Touches nothing."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, Mapping, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._disks.table import SCHEMES
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import RefusedError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import FORMATS, Disk
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.images import (
    Exchange,
    beside,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.places import Place
from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded
from ansible_collections.livesnap.qemu.plugins.module_utils._store import space
from ansible_collections.livesnap.qemu.plugins.module_utils._units import format_size

_LIMIT = 20.0


def not_in(places: Sequence[Place], disks: Sequence[Disk]) -> list[str]:
    """Writable disks that the guest has and the snapshot has not: they would stay as they are."""
    known = {place.file for place in places}
    return [
        f"disk '{disk.label}' ('{disk.file}') is not in the snapshot, and stays as it is now"
        for disk in disks
        if disk.inserted and not disk.read_only and disk.file not in known
    ]


def check_places(
    snapshot: Sequence[Mapping[str, Any]], places: Sequence[Place], disks: Sequence[Disk]
) -> None:
    """Refuse unless the running guest has each disk where it belongs, in the same format."""
    now = {disk.file: disk for disk in disks if disk.inserted}
    for disk, place in zip(snapshot, places):
        label, file = disk["match"], place.file
        if file in now:
            if FORMATS.get(now[file].format) == FORMATS.get(place.format):
                continue
            raise RefusedError(
                f"disk '{label}' was '{file}' as {place.format}, and is opened as"
                f" {now[file].format} now",
                "start the guest with its disks as they were",
                "disk_format",
            )
        same = [each for each in now.values() if label in each.names]
        where = f"is '{same[0].file}' now" if same else "is no disk of the guest now"
        raise RefusedError(
            f"disk '{label}' was '{file}' at the snapshot, and {where}",
            "start the guest with its disks where they were, or make a clone",
            "disk_moved",
        )


def exchanges_of(
    folder: Path,
    snapshot: Sequence[Mapping[str, Any]],
    places: Sequence[Place],
    mark: str,
    qemu_img: str,
    in_use: bool,
) -> tuple[list[Exchange], list[str]]:
    """What has to be done for each disk, and what of its image would be lost. RefusedError.

    `folder` is the snapshot's, `mark` goes into the names of files made beside the images. in_use:
    a running guest has them open; otherwise it is refused that anybody has.
    """
    found: list[Exchange] = []
    lost: list[str] = []
    for disk, place in zip(snapshot, places):
        label, path = disk["match"], os.path.realpath(place.file)
        kind = FORMATS.get(place.format)
        if kind is None:
            raise RefusedError(
                f"disk '{label}' is of format '{place.format}': only raw and qcow2"
                " images can be put back",
                "make a clone of the snapshot instead",
                "disk_format",
            )
        _check_file(label, path)
        about = _info(label, path, kind, qemu_img, in_use)
        lost += [
            f"snapshot '{each.get('name')}' inside '{path}' would be gone"
            for each in about.get("snapshots", [])
        ]
        fresh, aside = beside(path, mark)
        image = SCHEMES[disk["scheme"]].image(folder, disk)
        stored = disk["bytes"] if image is None else min(_stored(disk), disk["bytes"])
        found.append(
            Exchange(
                label=label,
                source="" if image is None else image.path,
                source_format=disk["format"],
                path=path,
                format=kind,
                options=_options(label, path, about) if kind == "qcow2" else "",
                bytes=space.qcow2_bytes(stored, disk["bytes"]) if kind == "qcow2" else stored,
                fresh=fresh,
                aside=aside,
            )
        )
    return found, lost


def _stored(disk: Mapping[str, Any]) -> int:
    """Bytes that a disk of a snapshot has, layers below it included."""
    if disk.get("covered") is None:
        return int(disk["stored_bytes"])
    return space.stacked(disk["covered"], disk)


def _check_file(label: str, path: str) -> None:
    try:
        about = os.lstat(path)
    except OSError as err:
        raise RefusedError(
            f"disk '{label}' lay at '{path}', which cannot be found now: {err.strerror}",
            "its new image goes there, with the owner and mode of the one that is there",
            "disk_missing",
        ) from None
    if not stat.S_ISREG(about.st_mode):
        raise RefusedError(
            f"disk '{label}' is '{path}', which is not a file: only image files can be put back",
            "make a clone of the snapshot instead",
            "disk_not_file",
        )
    parent = os.path.dirname(path)
    if os.statvfs(parent).f_flag & os.ST_RDONLY or not os.access(parent, os.W_OK):
        raise RefusedError(f"folder '{parent}' of disk '{label}' is read-only", "", "disk_folder")


def _info(label: str, path: str, kind: str, qemu_img: str, in_use: bool) -> dict[str, Any]:
    share = ["-U"] if in_use else []
    done = run_bounded([qemu_img, "info", *share, "-f", kind, "--output=json", path], _LIMIT)
    if done.problem or done.code != 0:
        raise RefusedError(
            f"disk '{label}': '{path}' cannot be read as {kind}: {done.problem or done.words}",
            "does another program have it open?" if not in_use else "",
            "disk_image",
        )
    about: dict[str, Any] = json.loads(done.text)
    return about


def _options(label: str, path: str, about: Mapping[str, Any]) -> str:
    """qemu-img's options of an image like the one that is there."""
    data = about.get("format-specific", {}).get("data", {})
    if about.get("encrypted") or data.get("data-file"):
        what = "encrypted" if about.get("encrypted") else "kept in a data file of its own"
        raise RefusedError(
            f"disk '{label}': '{path}' is {what}, and would not be so any more",
            "make a clone of the snapshot instead",
            "disk_image",
        )
    return f"compat={data.get('compat', '1.1')},cluster_size={about.get('cluster-size', 65536)}"


def check_space(store: Path, store_bytes: int, exchanges: Sequence[Exchange]) -> None:
    """Refuse when what is written to the store and beside the images does not fit. Bytes."""
    need: dict[int, int] = {os.stat(store).st_dev: store_bytes + space.SLACK}
    folder = {os.stat(store).st_dev: str(store)}
    for each in exchanges:
        parent = os.path.dirname(each.path)
        device = os.stat(parent).st_dev
        need[device] = need.get(device, space.SLACK) + each.bytes
        folder.setdefault(device, parent)
    for device, count in need.items():
        free = space.free_bytes(Path(folder[device]))
        if count > free:
            raise RefusedError(
                f"the file system of '{folder[device]}' is too full: the restore may take"
                f" {format_size(count)} of it, free are {format_size(free)}",
                "make room; the old images lie beside the new ones until the guest runs",
                "space",
            )


def refuse_lost(lost: Sequence[str], force: bool) -> list[str]:
    """RefusedError that names everything, or the warnings of a restore that is forced."""
    if lost and not force:
        raise RefusedError(
            "a restore would lose what nothing brings back: " + "; ".join(lost),
            "set force: true to go back all the same",
            "would_be_lost",
        )
    return list(lost)
