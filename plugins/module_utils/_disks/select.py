# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which disks of a guest are captured, and how. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Callable, Container, Mapping, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import RefusedError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import Disk

AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class Selection:
    """(disk, scheme) for what is captured, in QEMU's order, and what is not."""

    chosen: list[tuple[Disk, str]]
    excluded: list[Disk]


def select(
    disks: Sequence[Disk],
    wanted: Sequence[Mapping[str, str]],
    default: str,
    known: Container[str],
    auto: Callable[[Disk], str],
) -> Selection:
    """The first entry that matches a disk decides; a writable disk that none matches is captured.

    `auto` says what that scheme is for a disk.
    An entry matches by device id, qdev id, node name or serial, also as a shell pattern. One that
    matches nothing is refused: it is a slip of the pen that would leave a disk out, or in.
    """
    used: set[int] = set()
    chosen: list[tuple[Disk, str]] = []
    excluded: list[Disk] = []
    seen: set[str] = set()
    for disk in disks:
        scheme = default
        explicit = False
        for index, entry in enumerate(wanted):
            if any(_fits(name, entry["match"]) for name in disk.names):
                used.add(index)
                if not explicit:
                    scheme, explicit = entry.get("scheme") or AUTO, True
        usable = disk.inserted and bool(disk.node)
        if explicit and scheme != NONE and not usable:
            raise RefusedError(
                f"disk '{disk.label}' has no medium, so it cannot be captured",
                "leave it out of 'disks'",
                "disk_empty",
            )
        if scheme == NONE or not usable or (disk.read_only and not explicit):
            excluded.append(disk)
            continue
        if scheme == AUTO:
            scheme = auto(disk)
        if scheme not in known:
            raise RefusedError(
                f"disk scheme '{scheme}' of disk '{disk.label}' is not known",
                reason="unknown_scheme",
            )
        if disk.node in seen:
            raise RefusedError(
                f"two devices share the disk '{disk.node}'", reason="disk_shared"
            )
        seen.add(disk.node)
        chosen.append((disk, scheme))
    unknown = [entry["match"] for index, entry in enumerate(wanted) if index not in used]
    if unknown:
        have = ", ".join(f"'{disk.label}' ({' '.join(disk.names)})" for disk in disks) or "none"
        raise RefusedError(
            "no disk of the guest matches " + ", ".join(f"'{name}'" for name in unknown),
            f"its disks are {have}",
            "unknown_disk",
        )
    return Selection(chosen, excluded)


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)
