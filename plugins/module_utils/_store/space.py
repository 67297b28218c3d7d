# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a snapshot will fit, and what one takes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import RefusedError
from ansible_collections.livesnap.qemu.plugins.module_utils._units import format_size

#: Left free besides: manifest, device state, metadata of the file system.
SLACK = 32 << 20


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


def taken_bytes(folder: Path) -> int:
    """What the files of a folder take of the file system; those that vanish meanwhile take none."""
    total = 0
    for root, _folders, others in os.walk(folder):
        for name in others:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
    return total


def check(folder: Path, memory: int, disks: int) -> None:
    """Refuse when the largest that the snapshot can become does not fit."""
    need, free = memory + disks + SLACK, free_bytes(folder)
    if need > free:
        raise RefusedError(
            f"store '{folder}' is too full: the snapshot may take {format_size(need)}"
            f" (RAM {format_size(memory)}, disks {format_size(disks)}), free are"
            f" {format_size(free)}",
            "remove snapshots, or enlarge the store's file system",
            "store_full",
        )
