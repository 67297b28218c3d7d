# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be asked of any running test guest, whoever started it: a clone, for one."""

from __future__ import annotations

import contextlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError

from .agent import Agent, AgentClient, AgentError
from .errors import LabError
from .qmp import Monitor, QmpClient


class Witnessed(ABC):
    """A guest by its monitor and its agent, whatever leads to them."""

    @abstractmethod
    def qmp(self, timeout: float = 10.0) -> Monitor:
        """Its monitor, to be closed soon."""

    @abstractmethod
    def agent(self, timeout: float = 10.0) -> Agent:
        """A conversation with its agent, to be closed soon; AgentError if it does not answer."""

    def wait_status(self, wanted: str, limit: float = 60.0) -> None:
        """Returns when QEMU is there and query-status says that."""
        deadline = time.monotonic() + limit
        while True:
            try:
                with self.qmp() as qmp:
                    status = qmp.status()
            except (OSError, ConnectError) as error:
                status = f"no QMP: {error}"
            if status == wanted:
                return
            if time.monotonic() > deadline:
                raise LabError(f"the guest is not '{wanted}': {status}")
            time.sleep(0.1)

    def wait_agent(self, limit: float = 20.0) -> None:
        """Returns when the agent answers."""
        deadline = time.monotonic() + limit
        while True:
            try:
                with self.agent(timeout=2.0):
                    return
            except (AgentError, OSError) as error:
                if time.monotonic() > deadline:
                    raise LabError(f"the agent does not answer: {error}") from error
                time.sleep(0.1)

    def ask(self, request: str = "state") -> dict[str, Any]:
        """The witness' state, asked through the agent; "reset" begins a new longest pause."""
        with self.agent() as agent:
            answer: dict[str, Any] = json.loads(agent.run("/bin/witness", "--ask", request))
        return answer

    def counts(self, limit: float = 30.0) -> dict[str, Any]:
        """The witness' state once it was seen to count on, intact; LabError if it does not."""
        first = self.ask()
        deadline = time.monotonic() + limit
        while True:
            state = self.ask()
            if not state["intact"]:
                raise LabError(f"the witness found damage: {state['error']}")
            # Three: the step under way, one after it, and one that began after that.
            if state["counter"] >= first["counter"] + 3:
                return state
            if time.monotonic() > deadline:
                raise LabError(f"the witness does not count: {state}")
            time.sleep(0.1)

    def wait_boot(self, other_than: str, limit: float = 180.0) -> None:
        """Returns when the witness of a boot other than that one answers."""
        deadline = time.monotonic() + limit
        while True:
            try:
                if self.ask()["boot"] != other_than:
                    return
            except (AgentError, OSError) as error:
                last: object = error
            else:
                last = "it still runs the boot of before"
            if time.monotonic() > deadline:
                raise LabError(f"the guest did not boot again: {last}")
            time.sleep(0.3)

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Paused meanwhile, if it runs: while something is judged, it need not take a core."""
        with self.qmp() as qmp:
            running = qmp.status() == "running"
            if running:
                qmp.execute("stop")
        try:
            yield
        finally:
            if running:
                with self.qmp() as qmp:
                    qmp.execute("cont")

    def devices(self) -> dict[str, str]:
        """I/O on each device: name (a disk's serial, net, vga) -> ok or bad; rtc_drift_s."""
        with self.agent() as agent:
            text = agent.run("/bin/devices")
        return dict(line.split("=", 1) for line in text.split())


class Reach(Witnessed):
    """A guest by its sockets."""

    def __init__(self, qmp_path: Path, agent_path: Path | None = None,
                 pid: int | None = None) -> None:
        self.qmp_path = qmp_path
        self.agent_path = agent_path
        self.pid = pid

    def qmp(self, timeout: float = 10.0) -> QmpClient:
        return QmpClient(self.qmp_path, timeout)

    def agent(self, timeout: float = 10.0) -> AgentClient:
        if self.agent_path is None:
            raise LabError("this guest has no agent socket")
        return AgentClient(self.agent_path, timeout)
