# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be asked of a guest's agent, whichever way it is reached."""

from __future__ import annotations

import base64
import time
from abc import abstractmethod
from typing import Any, Mapping, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._closing import Closing
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import AgentHung


class AgentCommands(Closing):
    """A conversation with the agent of one guest. Use as a context manager, or close() it."""

    @abstractmethod
    def execute(
        self, command: str, arguments: Optional[Mapping[str, Any]] = None, timeout: float = 5.0
    ) -> Any:
        """A command's return value. AgentHung: no answer in time; it may still come into effect."""

    def ping(self, timeout: float = 5.0) -> None:
        """Whether it answers: returns, or raises."""
        self.execute("guest-ping", timeout=timeout)

    def freeze(self, timeout: float = 5.0) -> int:
        """Freeze all file systems; how many. After any error of this call a thaw is due."""
        return int(self.execute("guest-fsfreeze-freeze", timeout=timeout))

    def thaw(self, timeout: float = 5.0) -> int:
        """Thaw all file systems; how many were frozen."""
        return int(self.execute("guest-fsfreeze-thaw", timeout=timeout))

    def status(self, timeout: float = 5.0) -> str:
        """'frozen' or 'thawed': what the agent did, not what the kernel says."""
        return str(self.execute("guest-fsfreeze-status", timeout=timeout))

    def set_time(self, nanoseconds: Optional[int] = None, timeout: float = 5.0) -> None:
        """Set the guest's clock: to this moment, or to nanoseconds since 1970 (UTC).

        Some agents set the clock and then fail to write it to the RTC (no hwclock): that is an
        AgentCommandError with the clock right.
        """
        now = time.time_ns() if nanoseconds is None else nanoseconds
        self.execute("guest-set-time", {"time": now}, timeout)

    def run(
        self, path: str, arguments: tuple[str, ...] = (), timeout: float = 10.0
    ) -> tuple[int, bytes, bytes]:
        """Run a program in the guest: (exit status or 128 + signal, stdout, stderr)."""
        deadline = time.monotonic() + timeout
        request = {"path": path, "arg": list(arguments), "capture-output": True}
        pid = self.execute("guest-exec", request, timeout)["pid"]
        while True:
            left = max(0.1, deadline - time.monotonic())
            state = self.execute("guest-exec-status", {"pid": pid}, left)
            if state["exited"]:
                code = state.get("exitcode", 128 + int(state.get("signal", 0)))
                out, err = (
                    base64.b64decode(state.get(key, "")) for key in ("out-data", "err-data")
                )
                return int(code), out, err
            if time.monotonic() >= deadline:
                raise AgentHung(f"'{path}' in the guest did not end within {timeout:g} s")
            time.sleep(0.05)
