# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a file shares: XFS and btrfs let files have the same blocks until one is written to.

Asked by FS_IOC_FIEMAP (linux/fiemap.h, Documentation/filesystems/fiemap.rst).
"""

from __future__ import annotations

import fcntl
import os
import struct

_FIEMAP = 0xC020660B
#: fm_start, fm_length, fm_flags, fm_mapped_extents, fm_extent_count, fm_reserved
_HEADER = struct.Struct("=QQIIII")
#: fe_logical, fe_physical, fe_length, fe_reserved64[2], fe_flags, fe_reserved[3]
_EXTENT = struct.Struct("=QQQ16xI12x")
_LAST, _SHARED = 0x1, 0x2000
_AT_ONCE = 256
_TO_THE_END = (1 << 64) - 1


def shared_bytes(path: str) -> int:
    """Bytes of a regular file that other files have as well; 0 where its file system cannot tell.

    Raises OSError when it cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return _shared(fd)
    finally:
        os.close(fd)


def _shared(fd: int) -> int:
    shared, start, last = 0, 0, False
    while not last:
        buffer = bytearray(_HEADER.size + _AT_ONCE * _EXTENT.size)
        _HEADER.pack_into(buffer, 0, start, _TO_THE_END - start, 0, 0, _AT_ONCE, 0)
        try:
            fcntl.ioctl(fd, _FIEMAP, buffer)
        except OSError:
            return 0
        count = _HEADER.unpack_from(buffer)[3]
        last = count == 0
        for number in range(count):
            at = _HEADER.size + number * _EXTENT.size
            logical, _physical, length, flags = _EXTENT.unpack_from(buffer, at)
            shared += length if flags & _SHARED else 0
            start, last = logical + length, bool(flags & _LAST)
    return shared
