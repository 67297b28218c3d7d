# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scheme reflink: the image files themselves are cloned while the guest stands still (FICLONE).

The clone lies in the store and shares its blocks with the image until the guest writes to them, so
both have to be on one file system that can do this: XFS or btrfs. What QEMU had in its caches is in
the image when the guest has stopped, tables of qcow2 included.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from typing import Any, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import image_file
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.scheme import (
    Making,
    Scheme,
    Share,
    Subject,
    entry,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
    StoreError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import FORMATS, Disk
from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import IMAGE_MODE

#: linux/fs.h; a name in Python's fcntl from 3.14 on.
_FICLONE = 0x40049409
#: As stat(1) calls them.
_FILE_SYSTEMS = ("xfs", "btrfs")
#: What FICLONE fails with where it cannot be done.
_IMPOSSIBLE = (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS)


class Reflink(Scheme):
    """The clones of one snapshot."""

    NAME = "reflink"

    def __init__(self, making: Making, shares: Sequence[Share]) -> None:
        """Touches nothing yet."""
        super().__init__(making, shares)
        self._clones: list[_Clone] = []

    @classmethod
    def check(cls, subject: Subject, qmp: Connection, disks: Sequence[Disk]) -> None:
        """Refuse what is no image file of its own, on a file system that clones files."""
        for disk in disks:
            why = _why_not(subject, disk)
            if why:
                raise _refused(disk, why)

    @classmethod
    def estimate(
        cls, subject: Subject, qmp: Connection, disks: Sequence[Disk]
    ) -> dict[str, int]:
        """Nothing: a clone has no blocks of its own before the guest writes."""
        return dict.fromkeys((disk.node for disk in disks), 0)

    def prepare(self, qmp: Connection) -> None:
        """Open the images and make the files beside; try once what has to work in the pause."""
        for share in self.shares:
            clone = _Clone(self.making, share)
            self._clones.append(clone)
            clone.open()

    def commit(self, qmp: Connection, timeout: float) -> None:
        """The images as they are now. A call that hangs in storage meets the guard's deadline."""
        for clone in self._clones:
            clone.make()

    def finish(self, qmp: Connection) -> list[dict[str, Any]]:
        """Durable, and QEMU's user's."""
        return [clone.complete() for clone in self._clones]

    def undo(self, qmp: Connection) -> str:
        """Let go of the files: they go with the folder, and nothing else was touched."""
        for clone in self._clones:
            clone.close()
        return ""


class _Clone:
    """The clone of one image."""

    def __init__(self, making: Making, share: Share) -> None:
        self._subject = making.subject
        self._disk = share.disk
        self._format = FORMATS[share.disk.format]
        self._file = share.file(self._format)
        self._path = making.folder / self._file
        self._image = -1
        self._fd = -1

    def open(self) -> None:
        """Both files; FICLONE is tried, and what it made given back, which would take its time."""
        with files.as_store_error(f"'{self._disk.file}' cannot be opened"):
            path = opened_path(self._subject.process.pid, self._disk.file)
            self._image = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with files.as_store_error(f"'{self._path}' cannot be made"):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self._path, flags, 0o600)
        self.make()
        with files.as_store_error(f"'{self._path}' cannot be emptied"):
            os.ftruncate(self._fd, 0)

    def make(self) -> None:
        """The image as it is now, in place of what the file had."""
        try:
            fcntl.ioctl(self._fd, _FICLONE, self._image)
        except OSError as err:
            if err.errno in _IMPOSSIBLE:
                raise _refused(
                    self._disk,
                    f"the file system cannot clone '{self._disk.file}' into store"
                    f" '{self._subject.store}' ({err.strerror})",
                ) from None
            raise StoreError(
                f"'{self._disk.file}' cannot be cloned to '{self._path}': {err.strerror}",
                "is the file system full, or damaged?",
            ) from None

    def complete(self) -> dict[str, Any]:
        """disks[] of the manifest."""
        with files.as_store_error(f"'{self._path}' cannot be completed"):
            os.fsync(self._fd)
            os.fchown(self._fd, *self._subject.owner)
            os.fchmod(self._fd, IMAGE_MODE)
            info = os.fstat(self._fd)
        self.close()
        size, allocated = info.st_size, info.st_blocks * 512
        return entry(Reflink.NAME, self._disk, self._file, self._format, size, allocated)

    def close(self) -> None:
        """Let go of both files; may be called again."""
        for fd in (self._image, self._fd):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._image = self._fd = -1


def _refused(disk: Disk, why: str) -> RefusedError:
    return RefusedError(
        f"disk '{disk.label}' cannot be captured by scheme 'reflink': {why}",
        "choose scheme 'backup' for it, or have image and store on one XFS or btrfs",
        "reflink",
    )


def opened_path(pid: int, file: str) -> str:
    """How we get to the image that a QEMU has open by that name; OSError.

    Perhaps in a mount namespace of its own. Where our own has the same file that is taken: kernels
    before 5.18 clone within one mount only.
    """
    theirs = f"/proc/{pid}/root{file}"
    wanted = os.stat(theirs)
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(f"/proc/{pid}/fd/{name}"), wanted):
                break
    else:
        raise OSError(errno.ESTALE, "it is not the file that the guest's QEMU has open")
    with contextlib.suppress(OSError):
        if os.path.samestat(os.stat(file), wanted):
            return file
    return theirs


def _why_not(subject: Subject, disk: Disk) -> str:
    """Why a disk cannot be cloned; ''."""
    if disk.format not in FORMATS:
        return f"its format is '{disk.format}', neither raw nor qcow2"
    if not disk.file.startswith("/"):
        return f"'{disk.file}' is not a file"
    try:
        path = opened_path(subject.process.pid, disk.file)
        about = os.stat(path)
        device = os.stat(subject.store).st_dev
    except OSError as err:
        return f"'{disk.file}' cannot be looked at: {err.strerror}"
    if not stat.S_ISREG(about.st_mode):
        return f"'{disk.file}' is not a file"
    kinds = [_file_system(each) for each in (path, subject.store)]
    if kinds[0] not in _FILE_SYSTEMS:
        return f"'{disk.file}' is on {kinds[0]}, which cannot clone files"
    # On btrfs each subvolume is a device of its own, and files are cloned across them.
    if kinds[1] != kinds[0] or (kinds[0] != "btrfs" and about.st_dev != device):
        return f"store '{subject.store}' is on another file system than '{disk.file}'"
    return _why_not_whole(path, disk, about.st_size)


def _file_system(path: str) -> str:
    done = run_bounded(["stat", "-f", "-L", "-c", "%T", path], image_file.LOOK_LIMIT)
    return done.text.strip() or "an unknown file system"


def _why_not_whole(path: str, disk: Disk, size: int) -> str:
    """Why the file is not the whole disk; ''."""
    if FORMATS[disk.format] == "raw":
        # QEMU counts in sectors.
        whole = -(-size // 512) * 512
        return "" if whole == disk.virtual_bytes else f"it is not all of '{disk.file}'"
    try:
        about = image_file.look(path, "qcow2")
    except LivesnapError as err:
        return err.msg
    if about.get("backing-filename"):
        return f"'{disk.file}' has a backing file, '{about['backing-filename']}'"
    return image_file.why_not_alone(disk.file, about)
