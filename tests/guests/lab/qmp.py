# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plain, blocking use of qemu.qmp: tests do not judge the collection by its own QMP code."""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

from qemu.qmp import ConnectError, ExecuteError, QMPClient
from qemu.qmp.events import EventListener
from qemu.qmp.qmp_client import NegotiationError


class QmpError(Exception):
    """QEMU refused a command; `error_class` and `desc` are its words."""

    def __init__(self, error_class: str, desc: str) -> None:
        super().__init__(f"{error_class}: {desc}")
        self.error_class = error_class
        self.desc = desc


class Monitor(ABC):
    """What can be asked of QEMU's monitor, however it is reached."""

    @abstractmethod
    def execute(self, command: str, arguments: dict[str, Any] | None = None,
                timeout: float | None = None) -> Any:
        """The command's return value; QmpError if QEMU refused it."""

    def hmp(self, line: str) -> str:
        """The text that a command of the human monitor prints."""
        text = self.execute("human-monitor-command", {"command-line": line})
        assert isinstance(text, str)
        return text

    def status(self) -> str:
        """running, paused, inmigrate, ..."""
        return str(self.execute("query-status")["status"])

    @abstractmethod
    def close(self) -> None:
        """Ends the connection, if there is one; never fails."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class QmpClient(Monitor):
    """One connection to a QMP socket, which serves one client at a time: hold it briefly."""

    def __init__(self, path: str | os.PathLike[str], timeout: float = 10.0) -> None:
        self._timeout = timeout
        self._loop = asyncio.new_event_loop()
        self._events: list[dict[str, Any]] = []
        try:
            try:
                self._connect(os.fspath(path))
            except ConnectError as error:
                # An event between the greeting and the first reply is too much for qemu.qmp.
                if not isinstance(error.exc, NegotiationError):
                    raise
                self._connect(os.fspath(path))
        except BaseException:
            self._loop.close()
            raise

    def _connect(self, path: str) -> None:
        self._client = QMPClient("lab")
        self._listener = EventListener()
        self._client.register_listener(self._listener)
        self._run(self._client.connect(path))

    def _run(self, awaitable: Any, timeout: float | None = None) -> Any:
        return self._loop.run_until_complete(
            asyncio.wait_for(awaitable, timeout if timeout is not None else self._timeout))

    def execute(self, command: str, arguments: dict[str, Any] | None = None,
                timeout: float | None = None) -> Any:
        """The command's return value; QmpError if QEMU refused it, TimeoutError in time."""
        try:
            return self._run(self._client.execute(command, arguments), timeout)
        except ExecuteError as error:
            raise QmpError(error.error_class, str(error)) from error

    def events(self) -> list[dict[str, Any]]:
        """All events since the connection was made, in order."""
        self._run(asyncio.sleep(0))
        while not self._listener.empty():
            self._events.append(dict(self._run(self._listener.get())))
        return list(self._events)

    def wait_event(self, name: str, timeout: float = 10.0) -> dict[str, Any]:
        """The first event of that name that is not yet in events(); TimeoutError if none comes."""

        async def wait() -> dict[str, Any]:
            while True:
                event = dict(await self._listener.get())
                self._events.append(event)
                if event["event"] == name:
                    return event

        found: dict[str, Any] = self._run(wait(), timeout)
        return found

    def close(self) -> None:
        if self._loop.is_closed():
            return
        try:
            self._run(self._client.disconnect())
        except Exception:  # noqa: BLE001, S110 - the guest may be gone already
            pass
        self._loop.close()
