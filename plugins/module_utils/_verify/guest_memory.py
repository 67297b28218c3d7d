# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest's memory as it is in a RAM image, without a guest: by the library, or by the helper.

The library is liblivesnap-image.so beside the helper. Where it, or cffi, is not there, the helper
is run for each piece.
"""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._closing import Closing
from ansible_collections.livesnap.qemu.plugins.module_utils._helper import run_for_bytes
from ansible_collections.livesnap.qemu.plugins.module_utils._image.binding import (
    ImageError,
    RamImage,
)

LIBRARY = "liblivesnap-image.so"
#: What is read at once, and how many of such pieces are kept; the same where all is read. Bytes.
PIECE, _KEPT = 256 << 10, 64
_LARGE_PIECE = 16 << 20
_READ_LIMIT = 60.0


@dataclass(frozen=True)
class Area:
    """RAM at guest-physical addresses. Bytes."""

    address: int
    length: int


class GuestMemory(Closing):
    """Read by pieces, some of which are kept. ImageError or HelperError for what is damaged."""

    def __init__(self, image: Path, gpa: list[Mapping[str, Any]], helper: str) -> None:
        """`gpa` as in the manifest; what is not in it is no RAM."""
        self._path = image
        self._helper = helper
        self._pieces: OrderedDict[int, bytes] = OrderedDict()
        self._image: Optional[RamImage] = None
        self.areas = sorted(
            (Area(int(each["gpa"]), int(each["length"])) for each in gpa),
            key=lambda area: area.address,
        )
        #: 'library', or 'helper' and why.
        self.read_by = "library"
        library = os.path.join(os.path.dirname(helper), LIBRARY)
        try:
            if not os.path.exists(library):
                raise ImageError(f"'{library}' is not there", "library")
            self._image = RamImage.open(str(image), library)
        except ImageError as err:
            if err.word != "library":
                raise
            self.read_by = f"helper: {err.msg}"

    def close(self) -> None:
        if self._image is not None:
            self._image.close()

    def read(self, address: int, length: int) -> Optional[bytes]:
        """Bytes at a guest-physical address; None unless all of them are RAM."""
        found = b""
        while len(found) < length:
            at = address + len(found)
            area = self._area(at)
            if area is None:
                return None
            start = max(area.address, at - at % PIECE)
            end = min(area.address + area.length, at - at % PIECE + PIECE)
            piece = self._piece(start, end - start)
            found += piece[at - start : at - start + length - len(found)]
        return found

    def word(self, address: int) -> Optional[int]:
        """8 bytes as the processor has them."""
        data = self.read(address, 8)
        return None if data is None else int(struct.unpack("<Q", data)[0])

    def pieces(self, overlap: int) -> Iterator[tuple[int, bytes]]:
        """(address, bytes) of all RAM; each begins with the last `overlap` bytes of the one before
        if they follow one another."""
        before, end = b"", -1
        for area in self.areas:
            for address in range(area.address, area.address + area.length, _LARGE_PIECE):
                size = min(_LARGE_PIECE, area.address + area.length - address)
                kept = before[-overlap:] if overlap and address == end else b""
                data = self._read(address, size)
                yield address - len(kept), kept + data
                before, end = data, address + size

    def _area(self, address: int) -> Optional[Area]:
        for area in self.areas:
            if area.address <= address < area.address + area.length:
                return area
        return None

    def _piece(self, start: int, length: int) -> bytes:
        piece = self._pieces.get(start)
        if piece is None:
            piece = self._pieces[start] = self._read(start, length)
            if len(self._pieces) > _KEPT:
                self._pieces.popitem(last=False)
        self._pieces.move_to_end(start)
        return piece

    def _read(self, address: int, length: int) -> bytes:
        if self._image is not None:
            return self._image.read_physical(address, length)
        where = ("--gpa", str(address), "--length", str(length))
        return run_for_bytes(self._helper, ["read", str(self._path), *where], _READ_LIMIT)
