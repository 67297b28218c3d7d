# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a snapshot will fit, and what one takes."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import extents, names
from ansible_collections.livesnap.qemu.plugins.module_utils._units import format_size, parse_size

#: Left free besides: manifest, device state, metadata of the file system.
SLACK = 32 << 20

_PERCENT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")


def qcow2_bytes(allocated: int, virtual: int) -> int:
    """The most that a full qcow2 copy takes of a disk with so many bytes allocated. Pure.

    Clusters of 64 KiB: 8 bytes of L2 table and 2 of refcount for each, both in whole clusters.
    """
    cluster = 64 << 10
    data = min(virtual, allocated)
    clusters = -(-virtual // cluster)
    tables = -(-clusters * 8 // cluster) + -(-clusters * 2 // cluster) + 8
    return data + tables * cluster


def free_bytes(folder: Path) -> int:
    """What may still be written there."""
    info = os.statvfs(folder)
    return info.f_bavail * info.f_frsize


@dataclass(frozen=True)
class Held:
    """What a snapshot takes of file systems, bytes.

    own: what its removal gives back. shared: what it needs and others have as well, the guest's
    images above all, until these are written to.
    """

    own: int
    shared: int


def held(folder: Path, disks: Sequence[Mapping[str, Any]] = ()) -> Held:
    """What the files of a folder take, and what those `disks` do that lie outside of it.

    What vanishes meanwhile takes nothing.
    """
    own = shared = 0
    for disk in disks:
        outside = _held_outside(disk)
        own, shared = own + outside.own, shared + outside.shared
    for root, _folders, others in os.walk(folder):
        for name in others:
            path = os.path.join(root, name)
            with contextlib.suppress(FileNotFoundError):
                about = os.lstat(path)
                theirs = extents.shared_bytes(path) if stat.S_ISREG(about.st_mode) else 0
                taken = about.st_blocks * 512
                shared += min(theirs, taken)
                own += max(taken - theirs, 0)
    return Held(own, shared)


def _held_outside(disk: Mapping[str, Any]) -> Held:
    """Of an entry of disks[] whose image is the guest's own.

    A layer that is merged gives back what the one below has as well, at most the smaller of the
    two, and its tables, which are little. An internal snapshot that goes leaves its image as long
    as it was. What the operator's commands made, only these know.
    """
    if disk["scheme"] not in ("internal", "overlay"):
        return Held(0, 0)
    own, image = 0, disk["source"]["file"]
    if disk["scheme"] == "overlay":
        image, above = disk["covered"], disk["overlay"]
        if above is not None:
            own = min(_allocated(image), _allocated(above))
        elif names.is_layer(image):
            own = _allocated(image)
    return Held(own, stacked(image, disk) - own)


def stacked(image: str, disk: Mapping[str, Any]) -> int:
    """Bytes that an image of an entry of disks[] takes, with those that the disk stood on.

    Of these some may have been merged into others since.
    """
    return sum(map(_allocated, {image, *disk["source"].get("below", ())}))


def _allocated(image: str) -> int:
    with contextlib.suppress(OSError):
        about = os.stat(image)
        if stat.S_ISREG(about.st_mode):
            return about.st_blocks * 512
    return 0


def reserved(reserve: str, total: int) -> int:
    """Bytes to be left free of a file system of `total`: '20G', or '5%' of it. Pure.

    Raises LivesnapError, the text quoted.
    """
    percent = _PERCENT.fullmatch(reserve)
    if percent is None:
        return parse_size(reserve, what="reserve")
    if float(percent.group(1)) > 100:
        raise LivesnapError(f"reserve '{reserve}' is more than all of the file system")
    return int(total * float(percent.group(1)) / 100)


def check(folder: Path, memory: int, disks: int, reserve: str) -> None:
    """Refuse when the largest that the snapshot can become leaves less than the reserve."""
    info = os.statvfs(folder)
    keep = reserved(reserve, info.f_blocks * info.f_frsize)
    need, free = memory + disks + SLACK, free_bytes(folder)
    if need + keep > free:
        kept = f", and {format_size(keep)} are to stay free (reserve '{reserve}')" if keep else ""
        raise RefusedError(
            f"store '{folder}' is too full: the snapshot may take {format_size(need)}"
            f" (RAM {format_size(memory)}, disks {format_size(disks)}), free are"
            f" {format_size(free)}{kept}",
            "remove snapshots, or enlarge the store's file system",
            "store_full",
        )
