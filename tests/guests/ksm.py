# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine's KSM (merging of equal pages), borrowed by a test."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

PLACE = Path("/sys/kernel/mm/ksm")
#: Leaves nothing out, and hardly rests.
HURRIED = {"smart_scan": "0", "sleep_millisecs": "1", "pages_to_scan": "20000"}
_PATIENCE = 60.0


class Ksm:
    """It is off, and all of its switches are as they were, before and after."""

    def runs(self) -> bool:
        """Whether it merges at present."""
        return (PLACE / "run").read_text().strip() == "1"

    def switch_on(self) -> None:
        """As an administrator does, who knows nothing of us."""
        (PLACE / "run").write_text("1")


@functools.cache
def _until() -> float:
    """Until when a session waits for others: once, not once a test."""
    return time.monotonic() + _PATIENCE


def _in_use(lock: TextIO) -> bool:
    """By another test (it holds the lock), a snapshot that has paused it, or an administrator."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    if (PLACE / "run").read_text().strip() == "0" and not Path("/run/livesnap/ksm").exists():
        return False
    fcntl.flock(lock, fcntl.LOCK_UN)
    return True


@contextlib.contextmanager
def borrowed() -> Iterator[Ksm]:
    """It, hurried; at the end what it has merged is parted again. Skips where it is in use."""
    if not (PLACE / "run").exists():
        pytest.skip(f"'{PLACE}' is not there: this kernel has no KSM")
    # There is one for the whole machine; tests of several checkouts may run on it.
    with (PLACE / "run").open() as lock:
        while _in_use(lock):
            if time.monotonic() > _until():
                pytest.skip("KSM of this machine is in use")
            time.sleep(0.2)
        before = {name: (PLACE / name).read_text() for name in HURRIED if (PLACE / name).exists()}
        try:
            for name in before:
                (PLACE / name).write_text(HURRIED[name])
            yield Ksm()
        finally:
            for value in ("2", "0"):
                (PLACE / "run").write_text(value)
            for name, text in before.items():
                (PLACE / name).write_text(text)
