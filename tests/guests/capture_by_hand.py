# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drives `livesnap-helper capture` and a guest's QMP without the collection: the bare bracket."""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab import Guest


class CaptureFailed(Exception):
    """The helper's error or aborted event."""

    def __init__(self, event: dict[str, Any]) -> None:
        super().__init__(event.get("message"))
        self.event = event


def _start_time(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rsplit(")", 1)[1].split()[19])


def give_fd(guest: Guest, name: str, fd: int) -> None:
    """QMP getfd on a connection of its own; SCM_RIGHTS goes with the command's bytes."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(10)
        link.connect(str(guest.look_path))
        reader = link.makefile("r")
        reader.readline()
        link.sendall(b'{"execute":"qmp_capabilities"}\n')
        reader.readline()
        link.sendmsg([json.dumps({"execute": "getfd", "arguments": {"fdname": name}}).encode()],
                     [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
        while True:
            answer = json.loads(reader.readline())
            if "return" in answer:
                return
            assert "error" not in answer, answer


class Capture:
    """One run of the helper for one guest."""

    def __init__(self, helper: Path, guest: Guest, image: Path, attach: str = "device",
                 env: Mapping[str, str] | None = None, stderr: int | None = None,
                 **options: Any) -> None:
        self.guest = guest
        self.image = image
        self.attach = attach
        self.events: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [str(helper), "capture"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
            start_new_session=True, env={**os.environ, **(env or {})})
        with guest.look() as qmp:
            ramblock = qmp.hmp("info ramblock")
        if attach == "device":
            fd = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
            try:
                give_fd(guest, "livesnap-test-uffd", fd)
            finally:
                os.close(fd)
        memory = guest.options.memory << 20
        self.say(request="start", id=str(uuid.uuid4()), guest="test", pid=guest.pid,
                 start_time=_start_time(guest.pid or 0), ramblock=ramblock,
                 gpa=[{"gpa": 0, "block": "pc.ram", "offset": 0, "length": memory}],
                 machine="pc-i440fx-7.2", qemu_version="7.2", image=str(image), attach=attach,
                 **options)

    def say(self, **request: Any) -> None:
        """Sends a request."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()

    def expect(self, name: str) -> dict[str, Any]:
        """The next event of that name; CaptureFailed if another end comes first."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event: dict[str, Any] = json.loads(line)
            self.events.append(event)
            if event["event"] == name:
                return event
            if event["event"] in ("error", "aborted"):
                raise CaptureFailed(event)
        raise AssertionError(f"the helper ended before {name!r}: {self.events}")

    def attached(self) -> dict[str, Any]:
        """Waits until it has the userfaultfd; takes the device back from QEMU."""
        event = self.expect("attached")
        if self.attach == "device":
            with self.guest.look() as qmp:
                qmp.execute("closefd", {"fdname": "livesnap-test-uffd"})
        return event

    def prearm(self) -> bool:
        """While the guest runs; whether the helper found it worth it."""
        self.say(request="prearm")
        return bool(self.expect("prearmed")["done"])

    def protect(self) -> dict[str, Any]:
        """The guest must be stopped."""
        with self.guest.look() as qmp:
            ramblock = qmp.hmp("info ramblock")
        self.say(request="protect", ramblock=ramblock)
        return self.expect("protected")

    def arm(self) -> dict[str, Any]:
        """Asks for the instant."""
        self.say(request="arm")
        return self.expect("armed")

    def leave(self) -> None:
        """Closes our ends of all its standard streams."""
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def wait(self, limit: float = 60.0) -> int:
        """Its exit code."""
        return self.process.wait(timeout=limit)
