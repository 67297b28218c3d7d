# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checksums of large files, piece by piece: several at a time, and damage has a place.

`checksums` of a disk in the manifest is {chunk_bytes, sha256: [one of each piece, in order]}.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._closing import Closing
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import StoreError

_LEAST = 16 << 20
#: Of one file, and of all files of a snapshot together: they stand in the manifest.
_MOST, _MOST_OF_ALL = 1024, 16384
_READ = 1 << 20
_NICE = 10
#: Threads that read the copies of a snapshot in the making.
_THREADS = 2


def chunk_bytes(size: int, files: int) -> int:
    """How long the pieces of a file are, if it is one of so many. A power of two. Pure."""
    most = max(1, min(_MOST, _MOST_OF_ALL // max(1, files)))
    chunk = _LEAST
    while chunk * most < size:
        chunk *= 2
    return chunk


def pieces(size: int, chunk: int) -> int:
    """How many a file of that size has. Pure."""
    return -(-size // chunk)


def fits(value: Any, size: int) -> bool:
    """Whether it is `checksums` of a file of that size. Pure."""
    if not isinstance(value, Mapping):
        return False
    chunk, digests = value.get("chunk_bytes"), value.get("sha256")
    if not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < _READ:
        return False
    return (
        isinstance(digests, list)
        and len(digests) == pieces(size, chunk)
        and all(isinstance(each, str) and len(each) == 64 for each in digests)
    )


@dataclass(frozen=True)
class Subject:
    """A file, how long it and its pieces are (bytes), and those pieces that are known already."""

    path: Path
    size: int
    chunk: int
    known: Mapping[int, str]


class Digests(Closing):
    """The checksums of files, made in threads that are nice to others. close() ends them."""

    def __init__(self, subjects: Sequence[Subject], threads: int, stored: bool = False) -> None:
        """Begins at once. stored: read what the storage has, and not what is in memory of it."""
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._subjects = subjects
        self._done = 0
        self._found: list[dict[int, str]] = [dict(each.known) for each in subjects]
        self.total_bytes = sum(each.size for each in subjects)
        self._pool = ThreadPoolExecutor(max(1, threads), initializer=_be_nice)
        self._tasks: list[Future[None]] = []
        for index, each in enumerate(subjects):
            if stored:
                forget(each.path)
            for piece in range(pieces(each.size, each.chunk)):
                if piece in each.known:
                    self._done += min(each.chunk, each.size - piece * each.chunk)
                else:
                    self._tasks.append(self._pool.submit(self._digest, index, piece))

    @property
    def done_bytes(self) -> int:
        """How much has been read."""
        return self._done

    def finished(self) -> bool:
        """Whether all are there; StoreError if a file cannot be read or is shorter."""
        ended = [task for task in self._tasks if task.done()]
        for task in ended:
            task.result()
        return len(ended) == len(self._tasks)

    def found(self) -> list[dict[int, str]]:
        """Piece -> checksum of each file, as far as they are there."""
        with self._lock:
            return [dict(each) for each in self._found]

    def close(self) -> None:
        self._stop.set()
        # A thread that hangs in storage is not waited for.
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _digest(self, index: int, piece: int) -> None:
        subject = self._subjects[index]
        offset = piece * subject.chunk
        end = min(subject.size, offset + subject.chunk)
        sha = hashlib.sha256()
        try:
            fd = os.open(subject.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                while offset < end and not self._stop.is_set():
                    data = os.pread(fd, min(_READ, end - offset), offset)
                    if not data:
                        raise StoreError(f"'{subject.path}' ends at byte {offset}")
                    sha.update(data)
                    offset += len(data)
                    with self._lock:
                        self._done += len(data)
            finally:
                os.close(fd)
        except OSError as err:
            raise StoreError(
                f"'{subject.path}' cannot be read at byte {offset}: {err.strerror}"
            ) from None
        if offset >= end:
            with self._lock:
                self._found[index][piece] = sha.hexdigest()


def _be_nice() -> None:
    """Of this thread alone."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def forget(path: Path) -> None:
    """Have the kernel drop what it has in memory of a file, as far as it is stored."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def of_disks(folder: Path, disks: Sequence[Mapping[str, Any]]) -> Digests:
    """Of the images of a snapshot in the making; `added` makes `checksums` of them."""
    subjects = [
        Subject(
            folder / disk["file"],
            disk["file_bytes"],
            chunk_bytes(disk["file_bytes"], len(disks)),
            {},
        )
        for disk in disks
        if disk["file"] is not None
    ]
    return Digests(subjects, _THREADS)


def added(disks: Sequence[Mapping[str, Any]], digests: Digests) -> list[dict[str, Any]]:
    """disks[] of the manifest with `checksums` of those in the store, once they are all there."""
    every = iter(digests.found())
    entries = []
    for disk in disks:
        entry = dict(disk)
        if disk["file"] is not None:
            found = next(every)
            entry["checksums"] = {
                "chunk_bytes": chunk_bytes(disk["file_bytes"], len(disks)),
                "sha256": [found[piece] for piece in sorted(found)],
            }
        entries.append(entry)
    return entries
