# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A process that is killed between two changes of files."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any


def die_at(step: int) -> None:
    """SIGKILL to this process before so many changes of files and their folders."""
    left = [step]

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **options)

        return call

    for name in ("rename", "unlink", "rmdir", "fsync"):
        setattr(os, name, dying(getattr(os, name)))
