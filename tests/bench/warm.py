# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory that the host has touched a moment ago.

On a virtual host the first touch of a page can cost fifty times what the next one costs, and a page
that was free for two seconds may be taken back (free page reporting). Without this, whoever comes
first after a quiet moment would pay for it, and not what is measured.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
from collections.abc import Iterator
from typing import Callable

_HUGE = 2 << 20


@contextlib.contextmanager
def warm(size: int) -> Iterator[Callable[[], None]]:
    """A process that holds so many bytes, touched; what is yielded gives them away."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, size, 4096):
            memory[at] = 1
        os.write(tell, b"1")
        signal.pause()
    os.close(tell)
    gone = False

    def give() -> None:
        nonlocal gone
        if not gone:
            gone = True
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    try:
        os.read(ready, 1)
        yield give
    finally:
        os.close(ready)
        give()
