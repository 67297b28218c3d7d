# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Linux in a guest's memory, found as its processors see it: by their page tables.

`linux_banner` is a string in the kernel's image, which x86-64 maps in the uppermost 2 GiB
(Linux, Documentation/arch/x86/x86_64/mm.rst). Wherever the kernel was put, each processor has to be
led to the same place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._verify.guest_memory import (
    PIECE,
    GuestMemory,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.paging import (
    Cpu,
    Run,
    runs,
    translate,
)

_START, _END = 0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_C000_0000
#: init/version.c: "Linux version " UTS_RELEASE " (" builder ") (" compiler ") " UTS_VERSION "\n".
_BANNER = re.compile(rb"Linux version \d[^\x00\n]{8,500}\n\x00")
_LONGEST = 520


@dataclass(frozen=True)
class Kernel:
    """A banner, and where it lies."""

    banner: str
    virtual: int
    physical: int


def find(memory: GuestMemory, cpus: Sequence[Cpu]) -> Optional[Kernel]:
    """The kernel that the first processor with one runs."""
    for cpu in cpus:
        for table in _tables(cpu):
            for run in runs(table, _START, _END, memory.word):
                found = _in_run(memory, run)
                if found is not None:
                    return found
    return None


def strays(memory: GuestMemory, cpus: Sequence[Cpu], kernel: Kernel) -> tuple[list[int], list[int]]:
    """Numbers of the processors that are led elsewhere, and of those that are led nowhere."""
    elsewhere, nowhere = [], []
    for cpu in cpus:
        seen = [translate(table, kernel.virtual, memory.word) for table in _tables(cpu)]
        if kernel.physical in seen:
            continue
        if cpu.nested or all(each is None for each in seen):
            nowhere.append(cpu.number)
        else:
            elsewhere.append(cpu.number)
    return elsewhere, nowhere


def _tables(cpu: Cpu) -> Iterator[Cpu]:
    """Its page tables, and if they are those of a program, those of the kernel beside them."""
    yield cpu
    if cpu.kernel() != cpu:
        yield cpu.kernel()


def _in_run(memory: GuestMemory, run: Run) -> Optional[Kernel]:
    for offset in range(0, run.length, PIECE):
        size = min(PIECE + _LONGEST, run.length - offset)
        data = memory.read(run.physical + offset, size)
        found = None if data is None else _BANNER.search(data)
        if found is not None:
            at = offset + found.start()
            text = found.group()[:-2].decode("ascii", "replace")
            return Kernel(text, run.virtual + at, run.physical + at)
    return None
