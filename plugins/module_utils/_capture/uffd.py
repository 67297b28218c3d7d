# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Engine uffd: the helper write-protects RAM from outside, and the guest runs on at once."""

from __future__ import annotations

import contextlib
import os

from ansible_collections.livesnap.qemu.plugins.module_utils._capture.capture import Capture
from ansible_collections.livesnap.qemu.plugins.module_utils._capture.subject import Subject
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import QmpError, RefusedError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.engine_checks import (
    Reason,
    uffd_reasons,
)

NAME = "uffd"
_DEVICE = "/dev/userfaultfd"


def reasons(subject: Subject) -> list[Reason]:
    """Why this engine must stand aside; an empty list: it can work. Pure."""
    return uffd_reasons(subject.facts) + subject.seen[NAME]


class UffdCapture(Capture):
    """Protects, and copies while the guest runs."""

    def attach(self, qmp: Connection, fd_name: str, timeout: float) -> None:
        """Get a userfaultfd of QEMU's address space. The guest stands still for about 1 ms."""
        if not os.path.exists(_DEVICE):
            self._start({"attach": "inject"}, timeout)
            return
        try:
            fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        except OSError as err:
            raise RefusedError(
                f"'{_DEVICE}' cannot be opened: {err.strerror}", "run as root"
            ) from None
        try:
            qmp.getfd(fd_name, fd)
        finally:
            os.close(fd)
        try:
            self._start({"attach": "device"}, timeout)
        finally:
            with contextlib.suppress(QmpError):
                qmp.closefd(fd_name)

    def prearm(self, timeout: float) -> None:
        """While the guest runs: protect RAM in small pages, which would take long in the pause.

        The helper decides whether that is worth it, and logs it.
        """
        helper = self._running()
        helper.send({"request": "prearm"})
        helper.wait_for("prearmed", timeout, self._other)


#: What carries it out.
CAPTURE = UffdCapture
