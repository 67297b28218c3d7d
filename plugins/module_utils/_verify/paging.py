# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How an x86-64 processor sees memory: its control registers, and page tables that they lead to.

Registers are those of section `cpu` of a device state, version 12 (QEMU 2.4 and newer): general
registers, FPU, segments and SYSENTER are 456 bytes; CR0, CR2, CR3, CR4 follow, and after debug
registers, A20 and SSE, EFER at 816 (QEMU, target/i386/machine.c, vmstate_x86_cpu).
Page tables are those of Intel's manual, volume 3, 4.5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Callable, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._verify.sections import Section

VERSION = 12
_CONTROL, _EFER = 456, 816
_EFLAGS = 136
#: CR0.PE and PG, CR4.LA57, EFER.LMA, and the bit of EFLAGS that is always set.
_PE, _PG, _LA57, _LMA, _ALWAYS = 1, 1 << 31, 1 << 12, 1 << 10, 1 << 1
_PRESENT, _LARGE = 1, 1 << 7
_ADDRESS = 0x000F_FFFF_FFFF_F000
_PAGE = 4096
#: Of a processor that runs a guest of its own: CR3 is that one's.
_NESTED = (b"cpu/nested_state", b"cpu/kvm_nested_state", b"cpu/svm_npt", b"cpu/svm_guest")

#: 8 bytes at a guest-physical address; None where there is no RAM.
Word = Callable[[int], Optional[int]]


@dataclass(frozen=True)
class Cpu:
    """A processor that translates addresses in long mode. levels: of its page tables, 4 or 5."""

    number: int
    table: int
    levels: int
    nested: bool

    def kernel(self) -> Cpu:
        """The same with the kernel's half of a pair of page tables (page-table isolation)."""
        return Cpu(self.number, self.table & ~_PAGE, self.levels, self.nested)


def cpu_of(section: Section) -> Optional[Cpu]:
    """The processor of a section, None if it has no paging in long mode or is not understood."""
    data = section.data
    if section.version != VERSION or len(data) < _EFER + 8:
        return None
    cr0, _cr2, cr3, cr4 = struct.unpack_from(">QQQQ", data, _CONTROL)
    (efer,) = struct.unpack_from(">Q", data, _EFER)
    (eflags,) = struct.unpack_from(">Q", data, _EFLAGS)
    if not (cr0 & _PE and cr0 & _PG and efer & _LMA and eflags & _ALWAYS):
        return None
    return Cpu(
        section.instance,
        cr3 & _ADDRESS,
        5 if cr4 & _LA57 else 4,
        any(name in data for name in _NESTED),
    )


def translate(cpu: Cpu, virtual: int, word: Word) -> Optional[int]:
    """The guest-physical address of a virtual one; None if it is not mapped."""
    found = _entry(cpu, virtual, 0, word)
    if found is None:
        return None
    level, entry = found
    size = 1 << (12 + 9 * level)
    return (entry & _ADDRESS & ~(size - 1)) | (virtual & (size - 1))


def _entry(cpu: Cpu, virtual: int, lowest: int, word: Word) -> Optional[tuple[int, int]]:
    """(level, entry) where the walk of the tables ends: at the lowest level that is asked for (0:
    4 KiB, 1: 2 MiB), or at a larger page above it; None if nothing is mapped."""
    table = cpu.table
    for level in reversed(range(lowest, cpu.levels)):
        entry = word(table + 8 * (virtual >> (12 + 9 * level) & 511))
        if entry is None or not entry & _PRESENT:
            return None
        if level == lowest or (level <= 2 and entry & _LARGE):
            return level, entry
        table = entry & _ADDRESS
    return None


@dataclass(frozen=True)
class Run:
    """`length` bytes that follow one another at virtual and at guest-physical addresses."""

    virtual: int
    physical: int
    length: int


def runs(cpu: Cpu, start: int, end: int, word: Word) -> Iterator[Run]:
    """What is mapped between two virtual addresses, whole pages of 2 MiB at their ends."""
    current: Optional[Run] = None
    for virtual, physical, length in _pages(cpu, start, end, word):
        if (
            current is not None
            and virtual == current.virtual + current.length
            and physical == current.physical + current.length
        ):
            current = Run(current.virtual, current.physical, current.length + length)
            continue
        if current is not None:
            yield current
        current = Run(virtual, physical, length)
    if current is not None:
        yield current


def _pages(cpu: Cpu, start: int, end: int, word: Word) -> Iterator[tuple[int, int, int]]:
    """(virtual, physical, length) of each page."""
    large = 1 << 21
    for block in range(start, end, large):
        found = _entry(cpu, block, 1, word)
        # Linux maps no kernel by pages of 1 GiB.
        if found is None or found[0] != 1:
            continue
        entry = found[1]
        if entry & _LARGE:
            yield block, entry & _ADDRESS & ~(large - 1), large
            continue
        for number in range(512):
            page = word((entry & _ADDRESS) + 8 * number)
            if page is not None and page & _PRESENT:
                yield block + number * _PAGE, page & _ADDRESS, _PAGE
