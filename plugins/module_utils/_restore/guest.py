# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest that is ended and brought back, whichever way it is reached: what both ways share."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import AgentError, RestoreError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.address import Address
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.agent_commands import (
    AgentCommands,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.waking import announce, wake

#: How long an ordinary QEMU takes to end, its caches written. Seconds.
END_LIMIT = 60.0

#: Is told the (pid, start time) of a QEMU as soon as it is started.
Noted = Callable[[int, int], None]


@dataclass(frozen=True)
class State:
    """A snapshot to come back from. bytes: of its RAM. running: whether it is let go then."""

    folder: Path
    bytes: int
    running: bool
    frozen: bool

    @classmethod
    def of(cls, folder: Path, fields: Mapping[str, Any]) -> State:
        """Of a manifest that was read and checked, with RAM."""
        return cls(
            folder,
            fields["memory"]["bytes"],
            fields["was_running"],
            fields["consistency"]["freeze"]["achieved"],
        )


class Guest(ABC):
    """One guest. All that it knows is in noted(), so that whoever reads the journal can go on."""

    def __init__(self, address: Address, name: str, helper: str, private: Path) -> None:
        """`name` is the guest's, for messages; `private` the journal's folder, for its files."""
        self.address = address
        self.name = name
        self.helper = helper
        self.private = private

    @abstractmethod
    def noted(self) -> dict[str, Any]:
        """For the journal."""

    @abstractmethod
    def prepare(self, state: State) -> None:
        """What can be done before the guest is touched."""

    @abstractmethod
    def end(self) -> None:
        """Its QEMU is gone when this returns, and has written what it had to."""

    @abstractmethod
    def bring(self, state: State, noted: Noted) -> list[str]:
        """Start it from a snapshot, as it was then: what is not as it should be."""

    @abstractmethod
    def bring_back(self, state: Optional[State], noted: Noted) -> list[str]:
        """Start it as it was before; from power-on without a state."""

    @abstractmethod
    def kill(self, brought: list[int]) -> None:
        """End what bring() started, however far it came. RestoreError: something else runs."""

    def hold(self) -> None:
        """Let it stand still."""
        with self.address.connect() as connection:
            connection.stop()

    def release(self) -> None:
        """Let it go on, if it stands still because of hold()."""
        with self.address.connect() as connection:
            if connection.execute("query-status")["status"] == "paused":
                connection.cont()

    def woken(self, connection: Connection, state: State) -> list[str]:
        """After its state was loaded: running, thawed, on time and announced, or paused."""
        status = str(connection.execute("query-status")["status"])
        if status not in ("paused", "prelaunch", "running"):
            raise RestoreError(f"guest '{self.name}' is '{status}' after its state was loaded")
        if not state.running:
            return []
        agent = None if self.has_no_agent(connection) else self._patient_agent
        said = wake(connection, agent, state.frozen, f"guest '{self.name}'")
        announce(connection)
        return said

    @abstractmethod
    def has_no_agent(self, connection: Connection) -> bool:
        """Whether there is no way to an agent at all."""

    def _patient_agent(self, timeout: float) -> AgentCommands:
        """The agent's port is opened a moment after the guest runs on."""
        end = time.monotonic() + timeout
        while True:
            with contextlib.suppress(AgentError):
                return self.address.agent(max(0.5, min(5.0, end - time.monotonic())))
            if time.monotonic() > end:
                return self.address.agent(1.0)
            time.sleep(0.2)
