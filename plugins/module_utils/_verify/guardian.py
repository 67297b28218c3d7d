# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A process that removes the clone of a drill when the drill is over, whatever has ended it.

It does nothing else: it waits for the end of a pipe that the drill holds, or for the end of the
time. If both are killed, the next recovery finds the clone by what its state says of its maker.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import NoReturn

from ansible_collections.livesnap.qemu.plugins.module_utils import _scope
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.place import Place
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.standing import lock_key
from ansible_collections.livesnap.qemu.plugins.module_utils._closing import Closing
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._store import locks

#: How often removal is tried, and how long it is waited between. Seconds.
_TRIES, _PAUSE = 20, 0.5
#: A drill that is killed closes its pipe before its lock. Seconds that it may take.
_ENDING = 2.0


class Guardian(Closing):
    """Of one drill. close() when the clone is gone, or is to go."""

    def __init__(self, place: Place, limit: float) -> None:
        """Starts it; the clone goes after so many seconds at the latest."""
        self._deadline = time.monotonic() + limit
        reader, self._writer = os.pipe()
        child = os.fork()
        if child == 0:
            # Nothing of the module's own may run in here.
            with contextlib.suppress(BaseException):
                os.setsid()
                if os.fork() == 0:
                    _guard(place, reader, limit)
            os._exit(0)
        os.close(reader)
        os.waitpid(child, 0)

    @property
    def expired(self) -> bool:
        """Whether the time is over: then it has removed the clone."""
        return time.monotonic() >= self._deadline

    def close(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1


def _guard(place: Place, reader: int, limit: float) -> NoReturn:
    try:
        os.chdir("/")
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) != reader:
                with contextlib.suppress(OSError):
                    os.close(int(name))
        _scope.move(os.getpid(), f"livesnap-drill-{os.getpid()}", f"livesnap drill {place.name}")
        select.select([reader], [], [], limit)
        for _unused in range(_TRIES):
            try:
                # What is not there is not missed; a QEMU may have been started a moment ago.
                place.remove()
            except LivesnapError:
                time.sleep(_PAUSE)
            else:
                # A drill that was killed while it made the clone has left its lock.
                locks.forget(lock_key(place.guest, place.name), _ENDING)
                break
    finally:
        os._exit(0)
