# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A conversation with one guest's QEMU, whichever way it is reached."""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import Any, Mapping, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._closing import Closing


class Connection(Closing):
    """QMP commands with limits, and events. Use as a context manager, or close() it.

    After QmpTimeout or QmpDisconnected it is dead: whether the command took effect is not known, so
    connect again and ask.
    """

    #: QEMU's process.
    peer_pid: int = 0
    version: tuple[int, ...] = ()
    package: str = ""
    #: Whether every event that QEMU sent before a reply is here when the reply is.
    prompt_events: bool = True
    #: Whether nobody else can speak to QEMU while this is open.
    exclusive: bool = True

    @abstractmethod
    def execute(
        self, cmd: str, arguments: Optional[Mapping[str, Any]] = None, timeout: float = 10.0
    ) -> Any:
        """A command's return value, or QmpCommandError, QmpTimeout, QmpDisconnected."""

    @abstractmethod
    def execute_with_fd(
        self, cmd: str, arguments: Mapping[str, Any], fd: int, timeout: float = 10.0
    ) -> Any:
        """The same for a command that takes a descriptor. The caller's own stays open."""

    @abstractmethod
    def stop(self, timeout: float = 10.0) -> None:
        """Pause the guest. It stands still when this returns."""

    @abstractmethod
    def cont(self, timeout: float = 10.0) -> None:
        """Let the guest go on."""

    @abstractmethod
    def events(self, wait: float = 0.0) -> list[dict[str, Any]]:
        """All events that arrived and were not returned before, oldest first, as QEMU sent them.

        `wait`: wait up to so many seconds for the first one. Never raises for a dead connection:
        what was collected before is still handed out.
        """

    @property
    @abstractmethod
    def dead(self) -> bool:
        """Whether the connection is known to be unusable."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it. Bounded; may be called again."""

    def events_to(self, name: str, wait: float) -> list[dict[str, Any]]:
        """events(), until one of that name is among them or so many seconds have passed."""
        end = time.monotonic() + wait
        found = self.events()
        while not any(event["event"] == name for event in found):
            left = end - time.monotonic()
            if left <= 0 or self.dead:
                break
            found += self.events(left)
        return found

    def settle(self, timeout: float) -> bool:
        """Wait until nothing that was given up on can still take effect; whether there was any.

        A connection that serves one client takes the next one after that.
        """
        return False

    def hmp(self, line: str, timeout: float = 10.0) -> str:
        """The output of a command of the human monitor, with plain line ends."""
        text = self.execute("human-monitor-command", {"command-line": line}, timeout)
        return str(text).replace("\r\n", "\n")

    def getfd(self, name: str, fd: int, timeout: float = 10.0) -> None:
        """Give QEMU a copy of a descriptor under a name. The caller's own stays open."""
        self.execute_with_fd("getfd", {"fdname": name}, fd, timeout)

    def closefd(self, name: str, timeout: float = 10.0) -> None:
        """Close what getfd gave."""
        self.execute("closefd", {"fdname": name}, timeout)

    def add_fd(
        self, fd: int, opaque: str, timeout: float = 10.0, fdset: Optional[int] = None
    ) -> int:
        """Give QEMU a descriptor in a new (or the given) set; returns N of '/dev/fdset/N'."""
        arguments: dict[str, Any] = {"opaque": opaque}
        if fdset is not None:
            arguments["fdset-id"] = fdset
        return int(self.execute_with_fd("add-fd", arguments, fd, timeout)["fdset-id"])

    def remove_fdset(self, fdset: int, timeout: float = 10.0) -> None:
        """Remove a set; QEMU closes its descriptors once nothing uses them.

        Up to QEMU 9.0 it only closes them while the guest runs: remove sets after `cont`.
        """
        self.execute("remove-fd", {"fdset-id": fdset}, timeout)
