# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guest RAM straight out of a QEMU process, by a way of its own: tests judge the helper by it."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"^\s*(\S+)\s+\d+ \S+\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)", re.M)


@dataclass(frozen=True)
class Block:
    """A RAMBlock and where it lies in its process."""

    name: str
    used: int
    host: int


def find_blocks(pid: int, info_ramblock: str) -> list[Block]:
    """All that `info ramblock` lists, in its order.

    Their addresses are in QEMU's heap, 16 bytes before the three numbers that are printed (struct
    RAMBlock of 6.2 to 10.0).
    """
    regions = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, flags, *rest = line.split(maxsplit=5)
        start, end = (int(number, 16) for number in span.split("-"))
        private = len(rest) < 4 or "[heap]" in line
        if flags.startswith("rw") and private and end - start < 64 << 20:
            regions.append((start, end))
    blocks = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:

        def read(start: int, length: int) -> bytes:
            memory.seek(start)
            return memory.read(length)

        heap = [read(start, end - start) for start, end in regions]
        for name, offset, used, total in _LINE.findall(info_ramblock):
            key = struct.pack("<QQQ", int(offset, 16), int(used, 16), int(total, 16))
            hits = []
            for data in heap:
                at = data.find(key)
                while at >= 0:
                    idstr = data[at + 36:at + 36 + len(name) + 1]
                    if idstr == name.encode() + b"\0":
                        hits.append(struct.unpack_from("<Q", data, at - 16)[0])
                    at = data.find(key, at + 8)
            if len(hits) != 1:
                raise ValueError(f"{len(hits)} places in QEMU look like block {name}")
            blocks.append(Block(name, int(used, 16), hits[0]))
    return blocks


def read_block(pid: int, block: Block) -> bytes:
    """Its memory now."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(block.host)
        data = bytearray()
        while len(data) < block.used:
            data += memory.read(block.used - len(data))
        return bytes(data)
