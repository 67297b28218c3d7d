# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run hears from outside, and what it says while it works."""

from __future__ import annotations

import time
from typing import Optional, Protocol

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError


class Aborted(LivesnapError):
    """The run was asked to end: by state absent, or because its caller died before the instant."""


class Link(Protocol):
    """The owner's view of the module that started it, and of signals."""

    def caller_gone(self) -> bool:
        """Whether the module that asked for this is gone."""

    def asked_to_end(self) -> bool:
        """Whether SIGTERM came (state: absent)."""


class Unlinked:
    """Nobody listens and nobody interrupts."""

    def caller_gone(self) -> bool:
        """Never."""
        return False

    def asked_to_end(self) -> bool:
        """Never."""
        return False


class Limit:
    """A point in time, seconds from now; None is never."""

    def __init__(self, seconds: Optional[float], what: str) -> None:
        """`what` is the subject of the message when it is reached."""
        self._at = None if seconds is None else time.monotonic() + seconds
        self._what = what
        self._seconds = seconds

    def left(self, most: float) -> float:
        """Seconds left, `most` at most; raises LivesnapError when there are none."""
        if self._at is None:
            return most
        left = self._at - time.monotonic()
        if left <= 0:
            raise LivesnapError(f"{self._what} took longer than {self._seconds:g} s")
        return min(left, most)

    def reached(self) -> bool:
        """Whether it is over."""
        return self._at is not None and time.monotonic() >= self._at
