# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Qmp against a real QEMU (without a guest), and against every wrong thing that a socket can be."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.qmp import Qmp
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    QmpCommandError,
    QmpConnectError,
    QmpDisconnected,
    QmpTimeout,
)
from bracket_kit import open_files


def listens(path: object) -> bool:
    """Whether a socket takes connections: between its file and that, QEMU has a moment."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    # Flags, the fourth field: SO_ACCEPTCON, a socket that listens.
    return any(line[-1] == str(path) and line[3] == "00010000" for line in lines)


class Bare:
    """A QEMU with nothing in it but a QMP socket and an agent's channel."""

    def __init__(self, folder: Path) -> None:
        self.qmp = str(folder / "qmp")
        self.agent = str(folder / "agent")
        self.process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-M", "none", "-S", "-nodefaults", "-nographic"),
                *("-qmp", f"unix:{self.qmp},server=on,wait=off"),
                *("-chardev", f"socket,id=a,path={self.agent},server=on,wait=off"),
            ],
            stdin=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        while not (listens(self.qmp) and listens(self.agent)):
            assert self.process.poll() is None and time.monotonic() < deadline, "QEMU did not start"
            time.sleep(0.02)


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Bare]:
    guest = Bare(tmp_path)
    yield guest
    guest.process.kill()
    guest.process.wait(10)


def refusal(path: object, timeout: float = 0.5) -> QmpConnectError:
    """Connecting fails, and in bounded time."""
    start = time.monotonic()
    with pytest.raises(QmpConnectError) as caught:
        Qmp.connect(str(path), timeout=timeout)
    assert time.monotonic() - start < timeout + 1.5
    assert str(path) in caught.value.msg
    return caught.value


def test_talks(bare: Bare) -> None:
    with Qmp.connect(bare.qmp) as qmp:
        assert qmp.peer_pid == bare.process.pid
        assert qmp.version >= (6, 0)
        assert qmp.execute("query-status")["status"] == "prelaunch"
        assert "VM status" in qmp.hmp("info status")
        qmp.execute("cont")
        assert [event["event"] for event in qmp.events()] == ["RESUME"]
        assert qmp.events() == []
    with Qmp.connect(bare.qmp) as qmp:
        qmp.execute("query-status")


def test_waits_for_events(bare: Bare) -> None:
    with Qmp.connect(bare.qmp) as qmp:
        start = time.monotonic()
        assert qmp.events(wait=0.2) == []
        assert time.monotonic() - start < 1
        qmp.execute("quit")
        assert [event["event"] for event in qmp.events(wait=2)] == ["SHUTDOWN"]


def test_command_error(bare: Bare) -> None:
    with Qmp.connect(bare.qmp) as qmp:
        with pytest.raises(QmpCommandError) as caught:
            qmp.execute("no-such-command")
        assert caught.value.error_class == "CommandNotFound"
        qmp.execute("query-status")


def test_descriptors(bare: Bare, tmp_path: Path) -> None:
    def opened(path: Path) -> int:
        return list(open_files(bare.process.pid).values()).count(str(path))

    file = tmp_path / "file"
    with Qmp.connect(bare.qmp) as qmp, open(file, "wb") as handle:
        qmp.getfd("livesnap-x", handle.fileno())
        assert opened(file) == 1
        qmp.closefd("livesnap-x")
        assert opened(file) == 0
        fdset = qmp.add_fd(handle.fileno(), "livesnap-x")
        assert opened(file) == 1
        assert qmp.execute("query-fdsets")[0]["fdset-id"] == fdset
        # QEMU up to 9.0 closes what is removed only while the guest runs (monitor/fds.c).
        qmp.execute("cont")
        qmp.remove_fdset(fdset)
        assert opened(file) == 0


def test_missing(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none").kind == "missing"


def test_not_a_socket(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file").kind == "not_socket"


def test_refuses(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "dead"))
    assert refusal(tmp_path / "dead").kind == "refused"


@pytest.mark.parametrize("greets", [False, True])
def test_not_qemu(tmp_path: Path, greets: bool) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "other"))
        sock.listen()
        error = refusal(tmp_path / "other")
        assert error.kind == "not_qemu"
        assert f"pid {os.getpid()}" in error.msg


def test_agent_socket_is_not_qmp(bare: Bare) -> None:
    assert refusal(bare.agent).kind == "not_qmp"


def test_held_by_another(bare: Bare) -> None:
    with Qmp.connect(bare.qmp):
        assert refusal(bare.qmp).kind == "busy"
        # So many that the backlog is full as well.
        waiting = [socket.socket(socket.AF_UNIX) for _unused in range(8)]
        for sock in waiting:
            sock.setblocking(False)
            try:
                sock.connect(bare.qmp)
            except BlockingIOError:
                break
        assert refusal(bare.qmp).kind == "busy"
        for sock in waiting:
            sock.close()
    with Qmp.connect(bare.qmp) as qmp:
        qmp.execute("query-status")


def test_long_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("s")
        sock.listen()
        assert refusal(folder / "s").kind == "not_qemu"


def test_hung(bare: Bare) -> None:
    with Qmp.connect(bare.qmp) as qmp:
        os.kill(bare.process.pid, signal.SIGSTOP)
        try:
            start = time.monotonic()
            with pytest.raises(QmpTimeout):
                qmp.execute("query-status", timeout=0.3)
            assert time.monotonic() - start < 3
            assert qmp.dead
            with pytest.raises(QmpDisconnected):
                qmp.execute("query-status")
        finally:
            os.kill(bare.process.pid, signal.SIGCONT)
    with Qmp.connect(bare.qmp) as qmp:
        qmp.execute("query-status")


def test_dies(bare: Bare) -> None:
    with Qmp.connect(bare.qmp) as qmp:
        bare.process.kill()
        bare.process.wait(10)
        with pytest.raises(QmpDisconnected):
            qmp.execute("query-status")
        assert qmp.events(wait=0.2) == []
