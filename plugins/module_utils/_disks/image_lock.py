# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An image that nobody may write while we read it, by the locks that QEMU itself looks at.

QEMU marks what it does with an image by read locks on single bytes of the file: byte 100 + N means
that it has permission N, byte 200 + N that it shares permission N with nobody. Who opens an image
takes its own, then looks whether they go together with those of others (block/file-posix.c,
raw_apply_lock_bytes and raw_check_lock_bytes). They are locks of an open file (fcntl(2),
F_OFD_SETLK), so they end with their holder, whatever becomes of it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from typing import Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import RefusedError

_HAS, _SHARES_NOT = 100, 200
#: Numbers of permissions (include/block/block-common.h, BLK_PERM_*).
_READ, _WRITE, _RESIZE = 0, 1, 3
#: struct flock of 64-bit Linux: type, whence, start, length, pid.
_FLOCK = "hhqqi4x"
#: The file system has no such locks; QEMU then does without as well.
_NO_LOCKS = (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class ImageLock:
    """A reader's locks on one image, held until release(). Use as a context manager, or release().

    `kept`: whether they keep everybody else's QEMU from writing. Not where the file system has no
    locks; nor with block devices, because libvirt gives a QEMU device nodes of its own.
    """

    def __init__(self, path: str) -> None:
        """Take them. RefusedError when somebody has it open for writing, or it is not there."""
        self.path = path
        self.kept = False
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as err:
            raise RefusedError(
                f"disk image '{path}' cannot be opened: {err.strerror}", reason="image"
            ) from None
        try:
            self._take()
        except BaseException:
            self.release()
            raise

    def _take(self) -> None:
        regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
        try:
            for byte in (_HAS + _READ, _SHARES_NOT + _WRITE, _SHARES_NOT + _RESIZE):
                self._call(fcntl.F_OFD_SETLK, fcntl.F_RDLCK, byte)
            for byte in (_HAS + _WRITE, _HAS + _RESIZE, _SHARES_NOT + _READ):
                if self._call(fcntl.F_OFD_GETLK, fcntl.F_WRLCK, byte) != fcntl.F_UNLCK:
                    raise RefusedError(
                        f"disk image '{self.path}' is in use: another process may write to it",
                        "look for it with 'lslocks' or 'fuser', and end it",
                        "image_in_use",
                    )
        except OSError as err:
            if err.errno not in _NO_LOCKS:
                raise RefusedError(
                    f"disk image '{self.path}' cannot be locked: {err.strerror}", reason="image"
                ) from None
            return
        self.kept = regular

    def _call(self, command: int, kind: int, byte: int) -> int:
        """fcntl(2) for one byte; the lock's type that it answers with."""
        asked = struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0)
        return int(struct.unpack(_FLOCK, fcntl.fcntl(self._fd, command, asked))[0])

    def state(self) -> Optional[tuple[int, int]]:
        """What a write would change: size and time of the last one, in ns; None of a device."""
        info = os.fstat(self._fd)
        return (info.st_size, info.st_mtime_ns) if stat.S_ISREG(info.st_mode) else None

    def release(self) -> None:
        """Let others write; may be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
