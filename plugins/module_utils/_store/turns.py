# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turns: at most so many snapshots at once on a host, or into the medium of a store.

N files, and a flock of one of them. They are held where the snapshots are made: controllers know
nothing of one another, and AWX runs parts of one job side by side. A turn dies with its holder. In
a store that several hosts mount, flock has to work across them, as with NFS 4.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Callable, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import TimedOutError
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files, locks, rundir

_POLL = 0.2
_NAME = "turn"


class Turn(locks.Held):
    """One of them."""

    def _tidy(self) -> None:
        with contextlib.suppress(OSError):
            os.rmdir(self.path.parent)
        super()._tidy()


def of_host() -> Path:
    """Where the turns of this host are."""
    return rundir.root() / _NAME


def of_store(store: str) -> Path:
    """Where those of a store's medium are."""
    return Path(store) / f".{_NAME}"


def take(
    folder: Path,
    count: int,
    timeout: float,
    what: str,
    cancelled: Callable[[], bool] = lambda: False,
) -> Turn:
    """One of `count` turns within so many seconds, or TimedOutError.

    `what` is for messages, such as "host".
    """
    end = time.monotonic() + timeout
    while True:
        turn = _free(folder, count)
        if turn is not None:
            return turn
        if cancelled():
            raise TimedOutError(f"the wait for a turn of the {what} was cancelled")
        if time.monotonic() >= end:
            raise TimedOutError(
                f"all {count} turns of the {what} were taken by other snapshots for"
                f" {timeout:g} s ('{folder}')",
                "try again later, or raise turn_timeout or the number of turns",
            )
        time.sleep(_POLL)


def _free(folder: Path, count: int) -> Optional[Turn]:
    on_host = folder.parent == rundir.root()
    if on_host:
        rundir.make_root()
    with files.as_store_error(f"'{folder}' cannot be made"):
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            pass
        except FileNotFoundError:
            if not on_host:
                raise
            # Another run's tidy_root(); the next look makes it again.
            return None
    for number in range(count):
        path = folder / str(number)
        with contextlib.suppress(FileNotFoundError):
            fd = locks.try_lock(path)
            if fd is not None:
                return Turn(path, fd)
    return None
