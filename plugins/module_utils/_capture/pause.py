# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Engine pause: the guest stands still while the helper reads its RAM.

It needs no userfaultfd, so it can capture what cannot be protected: files on disks, memory that
others map, have protected or give back. The guest goes on as soon as RAM is in the helper's own
memory (`staging`) as far as that has room, and waits for the storage with the rest.
"""

from __future__ import annotations

from ansible_collections.livesnap.qemu.plugins.module_utils._capture.capture import Capture
from ansible_collections.livesnap.qemu.plugins.module_utils._capture.subject import Subject
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.engine_checks import (
    Reason,
    pause_reasons,
)

NAME = "pause"


def reasons(subject: Subject) -> list[Reason]:
    """Why this engine must stand aside; an empty list: it can work. Pure."""
    return pause_reasons(subject.facts) + subject.seen[NAME]


class PauseCapture(Capture):
    """Copies while the guest stands still."""

    holds = True

    def attach(self, qmp: Connection, fd_name: str, timeout: float) -> None:
        """Make the helper ready. QEMU does not notice."""
        self._start({"engine": NAME}, timeout)

    def prearm(self, timeout: float) -> None:
        """Nothing: RAM is not protected."""


#: What carries it out.
CAPTURE = PauseCapture
