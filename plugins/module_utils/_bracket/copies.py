# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The copies of the disks while the guest runs, watched over a socket that others need, too.

QEMU serves one client a QMP socket, and a copy can take hours: after the first seconds the owner
connects, asks, and lets go. libvirt serves many. Their checksums are made when they are complete,
while RAM may still be on its way.
"""

from __future__ import annotations

import time
from typing import Any, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.run import Run
from ansible_collections.livesnap.qemu.plugins.module_utils._closing import Closing
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.captured import (
    CapturedDisks,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    QmpCommandError,
    QmpConnectError,
    QmpError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import sums

#: How often the jobs are asked for at first, and later; when later begins. Seconds.
_POLL, _POLL_LATER, _LATER = 0.25, 1.0, 2.0
#: So many failures to connect in a row are the end, unless somebody else just holds the socket.
#: libvirtd may be restarted meanwhile.
_LOST = 60


class Copies(Closing):
    """What becomes of a run's disk copies; run.disk_entries has them at the end."""

    def __init__(self, run: Run) -> None:
        """Right after the instant."""
        self._run = run
        self._begun = time.monotonic()
        self._next = self._begun
        self._lost = 0
        self._entries: list[dict[str, Any]] = []
        self._digests: Optional[sums.Digests] = None
        #: (bytes copied, bytes in all)
        self.counts = (0, 0)
        self.done = run.disks is None
        if self.done:
            run.qmp.close()

    def look(self) -> None:
        """Ask, if it is time to. Raises LivesnapError when a copy failed or QEMU ended."""
        if self._digests is not None:
            if not self.done and self._digests.finished():
                self._run.disk_entries = sums.added(self._entries, self._digests)
                self.done = True
            return
        now = time.monotonic()
        disks = self._run.disks
        if self.done or disks is None or now < self._next:
            return
        later = now - self._begun > _LATER
        self._next = now + (_POLL_LATER if later else _POLL)
        try:
            qmp = self._run.reconnect(2.0)
            finished, copied, total = disks.poll(qmp)
            self._watch(qmp, disks)
        except QmpCommandError:
            raise
        except QmpError as err:
            self._disconnected(err)
            return
        self._lost = 0
        self.counts = (copied, total)
        if finished:
            self._run.timings["disk_copy_s"] = round(time.monotonic() - self._begun, 3)
            self._entries = disks.finish(qmp)
            self._digests = sums.of_disks(self._run.place(), self._entries)
        if finished or (later and qmp.exclusive):
            qmp.close()

    def close(self) -> None:
        """End what is still being read of the copies."""
        if self._digests is not None:
            self._digests.close()

    def _disconnected(self, err: QmpError) -> None:
        if not self._run.process.alive():
            raise LivesnapError(
                f"guest '{self._run.spec.guest}' ended before its disks were copied"
            ) from None
        if isinstance(err, QmpConnectError) and err.kind == "busy":
            return
        self._lost += 1
        if self._lost > _LOST:
            raise err

    def _watch(self, qmp: Connection, disks: CapturedDisks) -> None:
        """A copy-before-write that fails fails the guest's own write, and QEMU stops the guest.

        (werror.) The copies are ended, and the guest goes on: that write is tried again.
        """
        if not self._run.plan.facts.running:
            return
        if qmp.execute("query-status")["status"] != "io-error":
            return
        if not disks.undo(qmp):
            qmp.cont()
        raise LivesnapError(
            f"a disk of guest '{self._run.spec.guest}' failed while it was copied; the copy was"
            " ended, and the guest was resumed",
            "is there room in the store?",
        )
