# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judges whether copies of RAM and disks are of one instant, by what the witness wrote.

The layout is that of tests/images/witness.c. It knows nothing of snapshots: it reads raw memory and
disk images.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import disks

PAGE = 4096
RAM_MAGIC = struct.pack("<Q", 0x4C5357524D303153)
DISK_MAGIC = struct.pack("<Q", 0x4C53574453304B31)
_HEAD = struct.Struct("<QQQQ")
_TAIL = struct.Struct("<Q")


@dataclass(frozen=True)
class DiskState:
    """The one record on a disk."""

    boot: int
    index: int
    counter: int
    tail: int


@dataclass(frozen=True)
class RamState:
    """The witness' buffer: (counter, tail) of each page that was found, by page index."""

    boot: int
    pages: dict[int, tuple[int, int]]
    twice: int = 0  # pages found at two places: nothing can be said then


def _records(path: Path, magic: bytes) -> list[tuple[int, int, int, int]]:
    """(boot, index, counter, tail) of each page that begins with the magic."""
    if path.stat().st_size == 0:
        return []
    found = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(magic)
        while at >= 0:
            if at % PAGE == 0 and at + PAGE <= len(data):
                _unused, boot, index, counter = _HEAD.unpack_from(data, at)
                found.append((boot, index, counter, _TAIL.unpack_from(data, at + PAGE - 8)[0]))
                at += PAGE - 8
            at = data.find(magic, at + 8)
    return found


def disk_state(image: Path | str) -> DiskState:
    """The record on a disk image of any format; ValueError unless there is exactly one."""
    with disks.as_raw(Path(image)) as raw:
        records = _records(raw, DISK_MAGIC)
    if len(records) != 1:
        raise ValueError(f"{image}: {len(records)} records of the witness instead of one")
    return DiskState(*records[0])


def ram_state(files: Path | str | Iterable[Path | str], boot: int | None = None) -> RamState:
    """The witness' buffer in raw memory: one file, several, or a folder of them.

    Memory keeps pages of earlier boots; `boot` (that of a disk's record) says which are meant.
    Without it there must be only one.
    """
    if isinstance(files, (str, Path)):
        path = Path(files)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
    records = [record for file in files for record in _records(Path(file), RAM_MAGIC)]
    boots = {record[0] for record in records}
    if boot is None:
        if len(boots) != 1:
            raise ValueError(f"the memory has pages of {len(boots)} boots of the witness")
        boot = boots.pop()
    pages: dict[int, tuple[int, int]] = {}
    twice = 0
    for found, index, counter, tail in records:
        if found == boot:
            twice += index in pages
            pages[index] = (counter, tail)
    return RamState(boot, pages, twice)


def _judge_pages(pages: Sequence[tuple[int, int]]) -> tuple[int, bool, str]:
    """(k, all pages hold k, reason): k is the step that the buffer is in."""
    k = pages[0][0]
    # The page that the instant fell into may have its counter, and not yet its tail.
    split = next((i for i, (_unused, tail) in enumerate(pages) if tail != k), len(pages))
    rest = pages[split:]
    if rest and rest[0] == (k, k - 1):
        rest = rest[1:]
        if not rest:
            return k, False, ""
    for offset, page in enumerate(rest, len(pages) - len(rest)):
        if page != (k - 1, k - 1):
            return k, False, f"page {offset} holds {page} where the first holds {k}"
    return k, split == len(pages), ""


def judge(ram: RamState | None, disk_states: Sequence[DiskState], pages: int | None = None) -> str:
    """Empty if RAM and disks are of one instant, otherwise the reason why they are not.

    The witness goes through (disks in order, pages in order) again and again: right is a prefix of
    that sequence with k and a rest with k - 1. `pages` is the buffer's size as the witness printed
    it. ram=None judges the disks alone.
    """
    for number, disk in enumerate(disk_states):
        if disk.counter != disk.tail:
            return f"disk {number}: a torn record, {disk.counter} and {disk.tail}"
        if disk.index != number:
            return f"disk {number} has the record of disk {disk.index}"
    counters = [disk.counter for disk in disk_states]
    falling = all(later <= earlier for earlier, later in zip(counters, counters[1:]))
    if not falling or counters[0] - counters[-1] > 1:
        return f"the disks hold {counters}"
    if ram is None:
        return ""
    if ram.twice:
        return f"{ram.twice} pages were found twice"
    if not ram.pages:
        return "no page of the witness was found in RAM"
    if any(disk.boot != ram.boot for disk in disk_states):
        return "the disks are of another boot than RAM"
    if sorted(ram.pages) != list(range(pages or max(ram.pages) + 1)):
        return f"{len(ram.pages)} pages of {pages or max(ram.pages) + 1} were found"
    k, full, reason = _judge_pages([ram.pages[index] for index in range(len(ram.pages))])
    if reason:
        return reason
    right = [k] * len(counters)
    begun = full and all(counter in (k, k + 1) for counter in counters)
    if counters != right and not begun:
        return f"RAM is in step {k}{' and done' if full else ''}, the disks hold {counters}"
    return ""
