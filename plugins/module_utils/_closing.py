# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is open until it is closed, as a context manager."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Optional, TypeVar

Self = TypeVar("Self", bound="Closing")


class Closing(ABC):
    """`with` closes it at the end, whatever happens in between."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it; may be called again. Never fails, and takes a bounded time."""

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()
