# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sections of a device state, as xen-save-devices-state writes it. Pure.

A section does not tell its length. It ends with a footer that repeats its number, and then the next
one begins, or the file ends: what looks so by chance inside a section is told by what follows it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import StoreError

_HEADER = struct.pack(">II", 0x5145564D, 3)
_EOF, _FULL, _FOOTER = 0x00, 0x04, 0x7E


@dataclass(frozen=True)
class Section:
    """The state of one device. `start`: where its data begins in the file."""

    name: str
    number: int
    instance: int
    version: int
    start: int
    data: bytes


@dataclass(frozen=True)
class _Head:
    name: str
    number: int
    instance: int
    version: int
    length: int


def parse_sections(data: bytes) -> list[Section]:
    """All of them, in order; StoreError says where it stops making sense."""
    if data[:8] != _HEADER:
        raise StoreError("it does not begin as a device state of QEMU")
    found: list[Section] = []
    at = 8
    while not _ends(data, at):
        head = _head(data, at)
        if head is None:
            raise StoreError(f"no section begins at byte {at}")
        start = at + head.length
        end = _end(data, start, head.number)
        if end < 0:
            raise StoreError(f"section '{head.name}' at byte {at} has no end")
        found.append(
            Section(head.name, head.number, head.instance, head.version, start, data[start:end])
        )
        at = end + 5
    if not found:
        raise StoreError("it has no section")
    return found


def _ends(data: bytes, at: int) -> bool:
    return at == len(data) - 1 and data[at] == _EOF


def _end(data: bytes, start: int, number: int) -> int:
    footer = bytes([_FOOTER]) + struct.pack(">I", number)
    at = data.find(footer, start)
    while at >= 0 and not (_ends(data, at + 5) or _head(data, at + 5)):
        at = data.find(footer, at + 1)
    return at


def _head(data: bytes, at: int) -> Optional[_Head]:
    if at + 6 > len(data) or data[at] != _FULL:
        return None
    number = struct.unpack_from(">I", data, at + 1)[0]
    size = data[at + 5]
    name = data[at + 6 : at + 6 + size]
    if not size or at + 14 + size > len(data) or any(not 0x20 <= byte <= 0x7E for byte in name):
        return None
    instance, version = struct.unpack_from(">II", data, at + 6 + size)
    return _Head(name.decode("ascii"), number, instance, version, 14 + size)
