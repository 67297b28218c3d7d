# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where RAM is, guest-physically: 'info mtree -f' and 'info ramblock' as text. Pure.

QMP has no structured form of either. The lines are those of mtree_print_flatview (softmmu/memory.c)
and ram_block_format (softmmu/physmem.c); QEMU 8.0 adds columns to the latter, at the end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(
    r"\s+([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, ([\w-]+)\): (.*?)"
    r"(?: @([0-9a-f]{16}))?(?: (?:KVM|HVF|WHPX|NVMM|MSHV))*\s*"
)
_BLOCK = re.compile(
    r"\s*(\S.*?)\s+(\d+) ([KMG]i)?B\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)(\s.*)?"
)
_PAGE = 4096
_RAM_KINDS = ("ram", "rom", "ramd", "romd", "nv-ram")


@dataclass(frozen=True)
class GpaRange:
    """Guest-physical addresses that are backed by a RAMBlock, in bytes."""

    gpa: int
    block: str
    offset: int
    length: int


def parse_ramblocks(text: str) -> dict[str, int]:
    """Block id -> used length in bytes, from 'info ramblock'."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        match = _BLOCK.fullmatch(line)
        if match is not None:
            found[match.group(1)] = int(match.group(5), 16)
    return found


def parse_mtree(text: str, blocks: dict[str, int]) -> list[GpaRange]:
    """The ranges of the address space 'memory', as CPUs see it, that a known block backs.

    The tree names memory regions, not blocks: a region is a block's when its name is the block's
    id, or the id's last part of one block only ('vga.vram' of '0000:00:02.0/vga.vram').
    """
    ranges: list[GpaRange] = []
    for view in re.split(r"^FlatView #\d+$", text, flags=re.MULTILINE):
        if re.search(r'^ AS "memory", root: ', view, flags=re.MULTILINE) is None:
            continue
        for line in view.splitlines():
            match = _RANGE.fullmatch(line)
            if match is None or match.group(3) not in _RAM_KINDS:
                continue
            block = block_of(match.group(4), blocks)
            start, end = int(match.group(1), 16), int(match.group(2), 16)
            offset = int(match.group(5) or "0", 16)
            # Less than pages is no RAM: a TPM has 1 KiB for the firmware.
            whole = (start | offset | (end + 1)) % _PAGE == 0
            if block and whole and offset + end - start + 1 <= blocks[block]:
                ranges.append(GpaRange(start, block, offset, end - start + 1))
        break
    return sorted(ranges, key=lambda entry: entry.gpa)


def block_of(region: str, blocks: dict[str, int]) -> str:
    """The id of the one block that a region's name can mean, or ''."""
    if region in blocks:
        return region
    near = [block for block in blocks if block.endswith("/" + region)]
    return near[0] if len(near) == 1 else ""
