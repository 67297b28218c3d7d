# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qemu-guest-agent through its socket, synchronous and bounded.

The channel is a serial line: it has no connections, so an answer to somebody who gave up long ago
comes to whoever listens next. Every conversation therefore starts with the byte 0xFF, which resets
the agent's parser, and guest-sync-delimited, whose answer is led by 0xFF and carries our number
(QEMU's docs/interop/qemu-ga-ref). After a limit was reached the next command starts that way again.
"""

from __future__ import annotations

import json
import random
import select
import socket
import time
from typing import Any, Mapping, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._connection import _peer
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    AgentAbsent,
    AgentBusy,
    AgentCommandError,
    AgentError,
    AgentHung,
    QmpConnectError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.agent_commands import (
    AgentCommands,
)

_SENTINEL = b"\xff"
_LIMIT_BYTES = 64 << 20


class Agent(AgentCommands):
    """A conversation with the agent of one guest, through its socket."""

    def __init__(self, path: str, sock: socket.socket) -> None:
        """Of a connected, non-blocking socket: see connect()."""
        self.path = path
        self._sock = sock
        self._buffer = b""
        self._synced = False

    @classmethod
    def connect(cls, path: str, timeout: float = 5.0) -> Agent:
        """Connect and synchronise within `timeout` seconds.

        AgentAbsent: no socket, or nobody listens on it. AgentBusy: another client holds it.
        AgentHung: the guest does not answer (no agent in it, or it hangs).
        """
        deadline = time.monotonic() + timeout
        try:
            sock = _peer.connect_unix(path, timeout, what="agent socket")
        except QmpConnectError as err:
            kind = AgentBusy if err.kind == "busy" else AgentAbsent
            raise kind(err.msg, err.hint) from None
        agent = cls(path, sock)
        try:
            agent._sync(deadline, timeout)
        except BaseException:
            agent.close()
            raise
        return agent

    def sync(self, timeout: float = 5.0) -> None:
        """Drop what is left of earlier conversations."""
        self._sync(time.monotonic() + timeout, timeout)

    def _sync(self, deadline: float, timeout: float) -> None:
        number = random.SystemRandom().randrange(1, 1 << 53)
        self._buffer = b""
        self._synced = False
        try:
            self._send(
                {"execute": "guest-sync-delimited", "arguments": {"id": number}},
                deadline,
                _SENTINEL,
            )
            while True:
                line = self._line(deadline)
                # What comes before the last 0xFF is of others.
                if _SENTINEL in line:
                    line = line[line.rindex(_SENTINEL) + 1 :]
                elif not self._synced:
                    continue
                if _parse(line).get("return") == number:
                    self._synced = True
                    return
        except TimeoutError:
            peer = _peer.peer_credentials(self._sock)[0]
            if _peer.waits_in_backlog(peer, self.path):
                raise AgentBusy(
                    f"agent socket '{self.path}' is held by another client (waited {timeout:g} s)",
                    "end that client: QEMU serves one at a time",
                ) from None
            raise AgentHung(
                f"nobody answers on agent socket '{self.path}' within {timeout:g} s",
                "is qemu-guest-agent running in the guest?",
            ) from None

    def execute(
        self, command: str, arguments: Optional[Mapping[str, Any]] = None, timeout: float = 5.0
    ) -> Any:
        deadline = time.monotonic() + timeout
        if not self._synced:
            self._sync(deadline, timeout)
        request: dict[str, Any] = {"execute": command}
        if arguments is not None:
            request["arguments"] = dict(arguments)
        try:
            self._send(request, deadline)
            reply = _parse(self._line(deadline))
        except TimeoutError:
            self._synced = False
            raise AgentHung(
                f"the guest's agent did not answer '{command}' within {timeout:g} s",
                f"agent socket '{self.path}'; it may still carry the command out",
            ) from None
        except BaseException:
            self._synced = False
            raise
        if "return" in reply:
            return reply["return"]
        error = reply.get("error")
        if not isinstance(error, dict):
            self._synced = False
            raise AgentError(
                f"the guest's agent answered '{command}' with something unintelligible"
            )
        raise AgentCommandError(command, str(error.get("class", "")), str(error.get("desc", "")))

    def _send(self, request: Mapping[str, Any], deadline: float, lead: bytes = b"") -> None:
        data = memoryview(lead + json.dumps(request).encode() + b"\n")
        while data:
            self._wait(deadline, write=True)
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                continue
            except OSError as err:
                raise AgentError(f"agent socket '{self.path}' failed: {err.strerror}") from None

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._buffer:
            self._wait(deadline, write=False)
            try:
                data = self._sock.recv(65536)
            except BlockingIOError:
                continue
            except OSError as err:
                raise AgentError(f"agent socket '{self.path}' failed: {err.strerror}") from None
            if not data:
                raise AgentError(
                    f"QEMU closed agent socket '{self.path}'", "is the guest still running?"
                )
            self._buffer += data
            if len(self._buffer) > _LIMIT_BYTES:
                raise AgentError(f"the guest's agent on '{self.path}' floods its channel")
        line, _unused, self._buffer = self._buffer.partition(b"\n")
        return line

    def _wait(self, deadline: float, write: bool) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        ours = [self._sock]
        ready = select.select([] if write else ours, ours if write else [], [], left)
        if not (ready[0] or ready[1]):
            raise TimeoutError

    def close(self) -> None:
        self._sock.close()


def _parse(line: bytes) -> dict[str, Any]:
    """The object on a line, {} for anything else: what a guest sends is never trusted."""
    try:
        value = json.loads(line.lstrip(_SENTINEL))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
