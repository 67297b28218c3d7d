# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plain use of the guest agent, independent of the collection's own."""

from __future__ import annotations

import base64
import json
import os
import random
import socket
import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self


class AgentError(Exception):
    """The agent refused a command or did not answer in time."""


class Agent(ABC):
    """What can be asked of a guest agent, however it is reached."""

    @abstractmethod
    def execute(self, command: str, timeout: float | None = None, **arguments: Any) -> Any:
        """The command's return value; AgentError if the agent refused it or did not answer."""

    def freeze_status(self) -> str:
        """frozen or thawed."""
        return str(self.execute("guest-fsfreeze-status"))

    def run(self, *argv: str, timeout: float = 20.0) -> str:
        """What a program in the guest prints; AgentError if it fails."""
        started = self.execute("guest-exec", path=argv[0], arg=list(argv[1:]),
                               **{"capture-output": True})
        deadline = time.monotonic() + timeout
        while True:
            state = self.execute("guest-exec-status", pid=started["pid"])
            if state["exited"]:
                break
            if time.monotonic() > deadline:
                raise AgentError(f"{' '.join(argv)} did not end within {timeout:g} s")
            time.sleep(0.05)
        output = base64.b64decode(state.get("out-data", "")).decode(errors="replace")
        if state.get("exitcode") != 0:
            errors = base64.b64decode(state.get("err-data", "")).decode(errors="replace")
            code = state.get("exitcode")
            raise AgentError(f"{' '.join(argv)} ended with {code}: {output}{errors}")
        return output

    @abstractmethod
    def close(self) -> None:
        """Ends the conversation, if there is one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class AgentClient(Agent):
    """One conversation with a guest agent. Its socket serves one client at a time."""

    def __init__(self, path: str | os.PathLike[str], timeout: float = 10.0) -> None:
        self._timeout = timeout
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(os.fspath(path))
            self._sync()
        except BaseException:
            self._socket.close()
            raise

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise AgentError("the agent did not answer in time")
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(65536)
            except socket.timeout:
                continue
            if not data:
                raise AgentError("the agent's socket was closed")
            self._buffer += data
        line, _unused, self._buffer = self._buffer.partition(b"\n")
        return line

    def _send(self, command: str, arguments: dict[str, Any], lead: bytes = b"") -> None:
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        self._socket.sendall(lead + json.dumps(request).encode() + b"\n")

    def _sync(self) -> None:
        token = random.getrandbits(31)
        self._send("guest-sync-delimited", {"id": token}, b"\xff")
        deadline = time.monotonic() + self._timeout
        while True:
            # Answers of earlier conversations may come first: ours follows a 0xff byte.
            line = self._line(deadline).rpartition(b"\xff")[2]
            try:
                if json.loads(line).get("return") == token:
                    return
            except ValueError:
                continue

    def execute(self, command: str, timeout: float | None = None, **arguments: Any) -> Any:
        self._send(command, arguments)
        answer = json.loads(self._line(time.monotonic() + (timeout or self._timeout)))
        if "error" in answer:
            raise AgentError(f"{command}: {answer['error'].get('desc')}")
        return answer.get("return")

    def close(self) -> None:
        self._socket.close()
