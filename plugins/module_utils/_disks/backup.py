# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scheme backup: a full copy-before-write copy of each disk, into the store.

`blockdev-backup` of all disks begins in one transaction while the guest is stopped. The guest's own
chain, and with it its command line, stays as it is. QEMU gets each target as a descriptor
(/dev/fdset/N): it needs no access to the store.

The room that a copy can need is reserved beforehand. QEMU before 10.1 passes an error of the target
on to the guest's write (on-cbw-error is break-guest-write and cannot be chosen), so a store that
fills up must not fail a copy-before-write.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.qmp import Qmp
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import leftovers
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
    StoreError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import Disk
from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files, names
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import IMAGE_MODE
from ansible_collections.livesnap.qemu.plugins.module_utils._store.space import qcow2_bytes

NAME = "backup"
FORMAT = "qcow2"
_FALLOC_KEEP_SIZE = 1
#: Seconds that making an empty image may take.
_QEMU_IMG_LIMIT = 60.0
#: Room for what the guest allocates between the estimate and the instant, bytes.
_GROWTH = 64 << 20


@dataclass
class _Copy:
    disk: Disk
    node: str
    file: str
    path: Path
    reserve: int
    fd: int = -1


class Backup:
    """The copies of one snapshot."""

    def __init__(
        self, prefix: str, disks: Sequence[Disk], folder: Path, owner: tuple[int, int]
    ) -> None:
        """`owner`: uid and gid of the guest's QEMU. `folder`: the snapshot in the making."""
        self._prefix = prefix
        self._owner = owner
        self._copies = []
        for index, disk in enumerate(disks):
            file = f"disks/{index}-{names.safe(disk.label)}.{FORMAT}"
            copy = _Copy(disk, f"{prefix}d{index}", file, folder / file, 0)
            self._copies.append(copy)
        self._begun = False

    @staticmethod
    def estimate(qmp: Qmp, disks: Sequence[Disk]) -> dict[str, int]:
        """Node name -> the most that the copy can take, bytes. Queries only."""
        nodes = {
            str(node["node-name"]): node
            for node in qmp.execute("query-named-block-nodes", {"flat": False})
        }
        return {
            disk.node: qcow2_bytes(
                _allocated(nodes.get(disk.node, {}), disk.virtual_bytes) + _GROWTH,
                disk.virtual_bytes,
            )
            for disk in disks
        }

    @staticmethod
    def check() -> None:
        """Refuse when qemu-img is not there."""
        if shutil.which("qemu-img") is None:
            raise RefusedError(
                "qemu-img is not installed", "install qemu-utils (qemu-img)", "qemu_img"
            )

    def prepare(self, qmp: Qmp, estimates: dict[str, int]) -> None:
        """Make the targets, reserve their room, open them in QEMU. Nothing is copied yet."""
        for copy in self._copies:
            copy.reserve = estimates[copy.disk.node]
            _create(copy.path, copy.disk.virtual_bytes)
            with files.as_store_error(f"'{copy.path}' cannot be opened"):
                copy.fd = os.open(copy.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            _reserve(copy.fd, copy.reserve, str(copy.path))
            fdset = qmp.add_fd(copy.fd, f"{self._prefix}{copy.disk.node}"[:200])
            qmp.execute(
                "blockdev-add",
                {
                    "driver": FORMAT,
                    "node-name": copy.node,
                    "discard": "unmap",
                    "detect-zeroes": "unmap",
                    "file": {"driver": "file", "filename": f"/dev/fdset/{fdset}"},
                },
            )

    def actions(self) -> list[dict[str, Any]]:
        """Their part of the transaction. They exist from its reply on."""
        self._begun = True
        return [
            {
                "type": "blockdev-backup",
                "data": {
                    "job-id": f"{copy.node}-job",
                    "device": copy.disk.node,
                    "target": copy.node,
                    "sync": "full",
                    "auto-dismiss": False,
                },
            }
            for copy in self._copies
        ]

    def poll(self, qmp: Qmp) -> tuple[bool, int, int]:
        """(all are done, bytes copied, bytes in all). Raises LivesnapError when one failed."""
        found = {str(job["id"]): job for job in leftovers.jobs(qmp, self._prefix)}
        finished, done, total = True, 0, 0
        for copy in self._copies:
            job = found.get(f"{copy.node}-job")
            if job is None:
                raise LivesnapError(
                    f"the copy of disk '{copy.disk.label}' has disappeared from QEMU",
                    "somebody else dismissed block job '" + copy.node + "-job'",
                )
            if job.get("error"):
                raise LivesnapError(
                    f"the copy of disk '{copy.disk.label}' failed: {job['error']}",
                    "is there room in the store?",
                )
            size = max(int(job["total-progress"]), copy.disk.virtual_bytes)
            total += size
            if job["status"] == "concluded":
                done += size
            else:
                finished = False
                done += min(size, int(job["current-progress"]))
        return finished, done, total

    def finish(self, qmp: Qmp) -> list[dict[str, Any]]:
        """After poll() said all: take them out of QEMU, make them durable, give them their owner.

        Returns disks[] of the manifest.
        """
        leftovers.remove(qmp, self._prefix)
        found = []
        for copy in self._copies:
            subject = f"'{copy.path}' cannot be completed"
            with files.as_store_error(subject):
                size = os.fstat(copy.fd).st_size
                # To the size that it has: gives back what was reserved behind the end.
                os.ftruncate(copy.fd, size)
                os.fsync(copy.fd)
                os.fchown(copy.fd, *self._owner)
                os.fchmod(copy.fd, IMAGE_MODE)
                info = os.fstat(copy.fd)
            self._close(copy)
            found.append(entry(copy.disk, copy.file, info.st_size, info.st_blocks * 512))
        return found

    def abort(self, qmp: Optional[Qmp]) -> str:
        """Take all of it out of QEMU; '' or what went wrong. The files go with the folder."""
        problem = ""
        if qmp is not None:
            try:
                leftovers.remove(qmp, self._prefix)
            except LivesnapError as err:
                problem = str(err)
        for copy in self._copies:
            self._close(copy)
        return problem

    @staticmethod
    def _close(copy: _Copy) -> None:
        if copy.fd >= 0:
            with contextlib.suppress(OSError):
                os.close(copy.fd)
            copy.fd = -1


def entry(disk: Disk, file: str, size: int, allocated: int) -> dict[str, Any]:
    """disks[] of the manifest. Pure."""
    return {
        "match": disk.label,
        "device": disk.device or None,
        "qdev": disk.qdev or None,
        "node": disk.node,
        "serial": disk.serial or None,
        "scheme": NAME,
        "file": file,
        "format": FORMAT,
        "bytes": disk.virtual_bytes,
        "stored_bytes": allocated,
        "file_bytes": size,
        "source": {"file": disk.file, "format": disk.format},
    }


def _allocated(node: dict[str, Any], virtual: int) -> int:
    """Bytes that a node and what it stands on have allocated; all of it where that is unknown."""
    total = 0
    image: Optional[dict[str, Any]] = node.get("image")
    if image is None:
        return virtual
    while image is not None:
        if "actual-size" not in image:
            return virtual
        total += int(image["actual-size"])
        image = image.get("backing-image")
    # Protocols without files say 0, or nothing.
    return total or virtual


def _create(path: Path, size: int) -> None:
    """An empty qcow2 file that root alone may read."""
    with files.as_store_error(f"'{path}' cannot be made"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.close(fd)
    argv = ["qemu-img", "create", "-q", "-f", FORMAT, str(path), str(size)]
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
