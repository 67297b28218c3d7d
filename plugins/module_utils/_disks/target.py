# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file that a disk is copied to: made, given its room, completed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.livesnap.qemu.plugins.module_utils._disks.increment import Choice
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import StoreError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import Disk
from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import IMAGE_MODE

FORMAT = "qcow2"
_FALLOC_KEEP_SIZE = 1
#: Seconds that making an empty image may take.
_QEMU_IMG_LIMIT = 60.0


@dataclass
class Target:
    """The copy of one disk. `file` is below the snapshot's folder, `path` the whole of it."""

    disk: Disk
    #: Name of the block node, where it is one of ours.
    node: str
    file: str
    path: Path
    fd: int = -1
    #: What it stands on.
    choice: Choice = field(default_factory=Choice)
    #: Of the disk, that counts from this copy on; '' is none.
    bitmap: str = ""
    #: Bytes a second that are copied at most; 0 is unlimited.
    speed: int = 0
    #: As option disk_compression.
    compression: str = "none"

    @property
    def compressed(self) -> bool:
        """Whether what is copied into it is to be compressed."""
        return self.compression != "none"

    def make(self, room: int) -> None:
        """An empty image that root alone may read, with so many bytes reserved for it."""
        base = self.choice.base
        size, below = self.disk.virtual_bytes, "" if base is None else base.below
        _create(self.path, size, below, self.compression)
        with files.as_store_error(f"'{self.path}' cannot be opened"):
            self.fd = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        _reserve(self.fd, room, str(self.path))

    def complete(self, owner: tuple[int, int]) -> os.stat_result:
        """Durable, and its user's; what was reserved behind the end is given back."""
        with files.as_store_error(f"'{self.path}' cannot be completed"):
            os.ftruncate(self.fd, os.fstat(self.fd).st_size)
            os.fsync(self.fd)
            os.fchown(self.fd, *owner)
            os.fchmod(self.fd, IMAGE_MODE)
            info = os.fstat(self.fd)
        self.close()
        return info

    def close(self) -> None:
        """Let go of the file; may be called again."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.fd)
            self.fd = -1


def _create(path: Path, size: int, below: str, compression: str) -> None:
    """An empty qcow2 file that root alone may read; `below`: the image it stands on, or ''."""
    with files.as_store_error(f"'{path}' cannot be made"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.close(fd)
    stands = ["-F", FORMAT, "-b", below] if below else []
    kind = [] if compression == "none" else ["-o", f"compression_type={compression}"]
    argv = ["qemu-img", "create", "-q", "-f", FORMAT, *kind, *stands, str(path), str(size)]
    done = run_bounded(argv, _QEMU_IMG_LIMIT)
    if done.problem:
        raise StoreError(f"'{path}' cannot be made: 'qemu-img create' {done.problem}")
    if done.code != 0:
        raise StoreError(f"'{path}' cannot be made: {done.words}")


def _reserve(fd: int, size: int, path: str) -> None:
    """Reserve room behind the end of a file. Where the file system cannot, nothing is reserved."""
    try:
        _fallocate(fd, _FALLOC_KEEP_SIZE, size)
    except OSError as err:
        if err.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            return
        raise StoreError(
            f"'{path}' cannot be given its {size} bytes: {err.strerror}",
            "remove snapshots, or enlarge the store's file system",
        ) from None


def _fallocate(fd: int, mode: int, length: int) -> None:
    """fallocate(2): os.posix_fallocate has no modes."""
    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.fallocate64 if hasattr(libc, "fallocate64") else libc.fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    while call(fd, mode, 0, length) != 0:
        number = ctypes.get_errno()
        if number == errno.EINTR:
            continue
        raise OSError(number, os.strerror(number))
