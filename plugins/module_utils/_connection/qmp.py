# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QMP, synchronous and bounded: qemu.qmp's asyncio client by composition.

qemu.qmp has no time limits of its own; each wait is wrapped here. Its loop runs only while a call
of ours waits, in the caller's thread: no thread is started, so callers may fork before they
connect. Events are collected from the first byte on, and in order with the replies: once a
command's reply is here, every event that QEMU sent before it is as well.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import select
import socket
import time
from typing import Any, Awaitable, Mapping, Optional, TypeVar

from ansible_collections.livesnap.qemu.plugins.module_utils import _deps
from ansible_collections.livesnap.qemu.plugins.module_utils._connection import _peer
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    QmpCommandError,
    QmpConnectError,
    QmpDisconnected,
    QmpError,
    QmpTimeout,
)

T = TypeVar("T")
_CLOSE_LIMIT = 1.0


class Qmp(Connection):
    """A conversation through a QMP socket, which serves one client at a time."""

    def __init__(self, path: str) -> None:
        """Not connected yet: see connect()."""
        self.path = path
        self._loop = asyncio.new_event_loop()
        self._client: Any = None
        self._sock: Optional[socket.socket] = None
        self._dead = ""

    @classmethod
    def connect(cls, path: str, timeout: float = 10.0, require_qemu: bool = True) -> Qmp:
        """Connect and negotiate within `timeout` seconds, or raise QmpConnectError.

        `require_qemu` checks that a QEMU process listens there (tests talk to fakes).
        """
        deadline = time.monotonic() + timeout
        qmp = cls(path)
        try:
            qmp._connect(deadline, timeout, require_qemu)
        except BaseException as err:
            qmp.close()
            # qemu.qmp takes an event that comes before the first reply for a wrong answer: again.
            if not getattr(err, "event_first", False):
                raise
            qmp = cls(path)
            try:
                qmp._connect(deadline, timeout, require_qemu)
            except BaseException:
                qmp.close()
                raise
        return qmp

    def _connect(self, deadline: float, timeout: float, require_qemu: bool) -> None:
        subject = f"QMP socket '{self.path}'"
        if _deps.qmp_package is None:
            raise QmpError("Python package 'qemu.qmp' is missing", "run playbooks/host.yml")
        sock = _peer.connect_unix(self.path, timeout)
        self._sock = sock
        self.peer_pid = _peer.peer_credentials(sock)[0]
        if require_qemu:
            self.peer_pid = _peer.qemu_of(sock, self.path)

        async def negotiate() -> None:
            # Made inside the loop: on Python 3.9 its queues belong to the loop they are made in.
            self._client = _client()
            await self._client.connect(sock)

        try:
            self._run(negotiate(), max(0.05, deadline - time.monotonic()))
        except asyncio.TimeoutError:
            if _peer.waits_in_backlog(self.peer_pid, self.path):
                raise QmpConnectError(
                    "busy",
                    f"{subject} is held by another client (no greeting within {timeout:g} s)",
                    _peer.BUSY_HINT,
                ) from None
            raise QmpConnectError(
                "not_qmp",
                f"{subject} sent no QMP greeting within {timeout:g} s: it is no QMP socket, or its"
                " QEMU hangs",
                "give the guest's QMP socket, not that of its agent, console or monitor",
            ) from None
        except _deps.qmp_package.QMPError as err:
            cause = getattr(err, "exc", err)
            failure = QmpConnectError(
                "not_qmp",
                f"{subject} does not speak QMP: {str(cause) or type(cause).__name__}",
                "give the guest's QMP socket, not that of its agent, console or monitor",
            )
            failure.event_first = isinstance(getattr(cause, "exc", None), AssertionError)
            raise failure from None
        greeting = self._client.greeting.QMP.version
        number = greeting["qemu"]
        self.version = (int(number["major"]), int(number["minor"]), int(number["micro"]))
        self.package = str(greeting.get("package", ""))

    def _run(self, awaitable: Awaitable[T], timeout: float) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(awaitable, timeout)

        return self._loop.run_until_complete(bounded())

    def _alive(self) -> None:
        if self._dead:
            raise QmpDisconnected(f"the QMP connection to '{self.path}' is gone: {self._dead}")

    def execute(
        self,
        cmd: str,
        arguments: Optional[Mapping[str, Any]] = None,
        timeout: float = 10.0,
    ) -> Any:
        self._alive()
        try:
            return self._run(self._client.execute(cmd, arguments), timeout)
        except asyncio.TimeoutError:
            self._kill(f"no reply to '{cmd}' within {timeout:g} s")
            raise QmpTimeout(
                f"QEMU (pid {self.peer_pid}) did not answer '{cmd}' within {timeout:g} s",
                "its main loop may be stuck in storage I/O",
            ) from None
        except _deps.qmp_package.ExecuteError as err:
            raise QmpCommandError(cmd, err.error_class, str(err)) from None
        except (_deps.qmp_package.QMPError, OSError, EOFError) as err:
            self._kill(f"it ended during '{cmd}'")
            raise QmpDisconnected(
                f"QEMU (pid {self.peer_pid}) closed the connection during '{cmd}'"
                f" ({err or type(err).__name__})"
            ) from None
        except BaseException:
            # A signal's exception: nobody waits any more for the reply that may still come.
            self._kill(f"interrupted during '{cmd}'")
            raise

    def _send_fd(self, fd: int) -> None:
        """A descriptor rides on a blank before its command; QEMU keeps it until that comes."""
        self._alive()
        if self._sock is None:
            raise AssertionError
        self._sock.sendmsg([b" "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])

    def execute_with_fd(
        self, cmd: str, arguments: Mapping[str, Any], fd: int, timeout: float = 10.0
    ) -> Any:
        self._send_fd(fd)
        return self.execute(cmd, arguments, timeout)

    def stop(self, timeout: float = 10.0) -> None:
        self.execute("stop", timeout=timeout)

    def cont(self, timeout: float = 10.0) -> None:
        self.execute("cont", timeout=timeout)

    def events(self, wait: float = 0.0) -> list[dict[str, Any]]:
        found = self._drain()
        if not found and wait > 0 and not self._dead:
            with contextlib.suppress(asyncio.TimeoutError):
                found = [dict(self._run(self._client.events.get(), wait))]
            found += self._drain()
        return found

    def _drain(self) -> list[dict[str, Any]]:
        if self._client is None:
            return []
        found: list[dict[str, Any]] = []
        quiet = 0
        # A few turns of the loop: bytes to the buffer, buffer to the reader, message to the queue.
        while quiet < 4 and not self._dead:
            self._loop.run_until_complete(asyncio.sleep(0))
            fresh = [dict(event) for event in self._client.events.clear()]
            found += fresh
            quiet = 0 if fresh or self._readable() else quiet + 1
        found += [dict(event) for event in self._client.events.clear()]
        return found

    def _readable(self) -> bool:
        if self._sock is None or self._sock.fileno() < 0:
            return False
        state = self._client.runstate
        if state != _deps.qmp_package.Runstate.RUNNING:
            # At its end a socket is readable for ever.
            self._dead = self._dead or "QEMU closed it"
            return False
        return bool(select.select([self._sock], [], [], 0)[0])

    @property
    def dead(self) -> bool:
        return bool(self._dead)

    def _kill(self, why: str) -> None:
        if not self._dead:
            self._dead = why
            self._disconnect()

    def _disconnect(self) -> None:
        if self._loop.is_closed():
            return
        with contextlib.suppress(Exception):
            if self._client is not None:
                self._run(self._client.disconnect(), _CLOSE_LIMIT)
        with contextlib.suppress(Exception):
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            if tasks:
                self._run(asyncio.wait(tasks), _CLOSE_LIMIT)
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.close()

    def close(self) -> None:
        self._dead = self._dead or "it was closed"
        self._disconnect()
        if not self._loop.is_closed():
            self._loop.close()


def _client() -> Any:
    """One that does not write each message out as text for a log that nobody keeps, by the hooks
    that qemu.qmp has for subclasses: in a pause there are four events a disk."""

    class Client(_deps.qmp_package.QMPClient):  # type: ignore[misc,name-defined]
        def _cb_outbound(self, msg: Any) -> Any:
            return msg

        def _cb_inbound(self, msg: Any) -> Any:
            return msg

    return Client("livesnap")
