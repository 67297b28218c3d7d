# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One lock a guest: a flock that dies with its holder, so that no lock is ever stale.

Named after QEMU's process (pid and start time), whatever the store and the name in it. Beside it,
for messages, who holds it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import time
from pathlib import Path
from typing import Any, Callable, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._closing import Closing
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    StoreError,
    TimedOutError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files, rundir

_POLL = 0.1
#: A holder that is stopped (SIGSTOP) for so long does not work on anything: it is ended. Seconds.
STOPPED_LIMIT = 3.0


class Held(Closing):
    """A file with a flock, until close() or the death of this process."""

    def __init__(self, path: Path, fd: int) -> None:
        """Of a descriptor that has the flock: see try_lock()."""
        self.path = path
        self._fd = fd

    def close(self) -> None:
        """Let go; may be called again."""
        if self._fd < 0:
            return
        # Unlinked while it is held: whoever waits on this file finds another one in its place.
        for path in self._files():
            with contextlib.suppress(OSError):
                os.unlink(path)
        os.close(self._fd)
        self._fd = -1
        self._tidy()

    def _files(self) -> tuple[Path, ...]:
        """What goes with it, in that order."""
        return (self.path,)

    def _tidy(self) -> None:
        """After it has been let go."""
        rundir.tidy_root()


class GuestLock(Held):
    """The lock of one guest."""

    @classmethod
    def acquire(
        cls,
        key: str,
        about: dict[str, Any],
        timeout: float,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> GuestLock:
        """Take it within so many seconds, or TimedOutError that says who holds it and since when.

        `about` is put beside it: {guest, snapshot, ...}; pid, start time and time are added.
        """
        rundir.make_root()
        path = rundir.root() / "lock" / key
        deadline = time.monotonic() + timeout
        stopped_since: Optional[float] = None
        while True:
            fd = try_lock(path)
            if fd is not None:
                lock = cls(path, fd)
                files.write_json(
                    path.with_name(key + ".json"), {**about, **rundir.myself()}, durable=False
                )
                return lock
            now = time.monotonic()
            holder = holder_of(key)
            if holder is not None and rundir.state_of(int(holder["pid"])) == "T":
                stopped_since = now if stopped_since is None else stopped_since
                if now - stopped_since >= STOPPED_LIMIT and rundir.is_process(holder):
                    os.kill(int(holder["pid"]), signal.SIGKILL)
            else:
                stopped_since = None
            if cancelled():
                raise TimedOutError("the wait for the guest's lock was cancelled")
            if now >= deadline:
                who = describe(holder)
                raise TimedOutError(
                    f"the guest is locked by {who} (waited {timeout:g} s)",
                    "try again later, or raise lock_timeout",
                )
            time.sleep(_POLL)

    def _files(self) -> tuple[Path, ...]:
        return (self.path.with_name(self.path.name + ".json"), self.path)


def try_lock(path: Path) -> Optional[int]:
    """A descriptor with the flock of the file that has this name, or None when it is held."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        # Another run's tidy_root().
        rundir.make_root()
        return None
    except OSError as err:
        raise StoreError(f"lock '{path}' cannot be opened: {err.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = os.fstat(fd)
        named = os.stat(path)
        if (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino):
            return fd
    except OSError as err:
        if err.errno not in (errno.EWOULDBLOCK, errno.ENOENT):
            os.close(fd)
            raise StoreError(f"lock '{path}' cannot be taken: {err.strerror}") from None
    os.close(fd)
    return None


def forget(key: str, timeout: float = 0.0) -> None:
    """Remove what a holder that died has left of a lock that nobody is going to take again.

    One that is about to end may hold it so many seconds longer; after that it is left alone.
    """
    path = rundir.root() / "lock" / key
    deadline = time.monotonic() + timeout
    while path.exists():
        fd = try_lock(path)
        if fd is not None:
            GuestLock(path, fd).close()
        elif time.monotonic() > deadline:
            return
        else:
            time.sleep(_POLL / 5)


def is_held(key: str) -> bool:
    """Whether a process holds it. Creates nothing."""
    path = rundir.root() / "lock" / key
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def holder_of(key: str) -> Optional[dict[str, Any]]:
    """What the holder wrote beside its lock, if it is readable."""
    try:
        about = files.read_object(rundir.root() / "lock" / f"{key}.json")
    except StoreError:
        return None
    return about if isinstance(about.get("pid"), int) else None


def describe(holder: Optional[dict[str, Any]]) -> str:
    """For messages."""
    if holder is None:
        return "another process, which has not said who it is"
    return (
        f"process {holder['pid']}, which since {holder.get('since')} works on snapshot"
        f" '{holder.get('snapshot')}' of guest '{holder.get('guest')}'"
    )
