# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's client against agents that are slow, silent, stale or mad."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    AgentAbsent,
    AgentCommandError,
    AgentError,
    AgentHung,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.agent import Agent

Handler = Callable[[dict[str, Any]], bytes]


class FakeAgent:
    """One channel: what it says, and what it was asked."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.asked: list[str] = []
        self.stale = b""
        self.answers: dict[str, bytes] = {"guest-ping": b'{"return": {}}\n'}
        self.mute: set[str] = set()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(1)
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        while True:
            try:
                client, _unused = self.listener.accept()
            except OSError:
                return
            with client:
                if self.stale:
                    client.sendall(self.stale)
                for line in client.makefile("rb"):
                    client.sendall(self.answer(line))

    def answer(self, line: bytes) -> bytes:
        request = json.loads(line.lstrip(b"\xff"))
        name = request["execute"]
        self.asked.append(name)
        if name in self.mute:
            return b""
        if name == "guest-sync-delimited":
            assert line.startswith(b"\xff")
            return b'\xff{"return": %d}\n' % request["arguments"]["id"]
        return self.answers[name]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeAgent]:
    agent = FakeAgent(tmp_path / "agent")
    yield agent
    agent.listener.close()


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(AgentAbsent) as caught:
        Agent.connect(str(tmp_path / "none"))
    assert "agent socket" in caught.value.msg and str(tmp_path / "none") in caught.value.msg


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "dead"))
    with pytest.raises(AgentAbsent):
        Agent.connect(str(tmp_path / "dead"))


def test_hung(fake: FakeAgent) -> None:
    fake.mute.add("guest-sync-delimited")
    start = time.monotonic()
    with pytest.raises(AgentHung):
        Agent.connect(fake.path, timeout=0.3)
    assert time.monotonic() - start < 1


def test_commands(fake: FakeAgent) -> None:
    fake.answers["guest-fsfreeze-freeze"] = b'{"return": 2}\n'
    fake.answers["guest-fsfreeze-status"] = b'{"return": "frozen"}\n'
    fake.answers["guest-fsfreeze-thaw"] = b'{"return": 2}\n'
    fake.answers["guest-set-time"] = b'{"return": {}}\n'
    with Agent.connect(fake.path) as agent:
        agent.ping()
        assert agent.freeze() == 2
        assert agent.status() == "frozen"
        assert agent.thaw() == 2
        agent.set_time()
    assert fake.asked[0] == "guest-sync-delimited"
    assert fake.asked.count("guest-sync-delimited") == 1


def test_stale_answers_are_dropped(fake: FakeAgent) -> None:
    fake.stale = (
        b'{"return": "frozen"}\n\xff{"return": 7}\n{"return": {}}\n{"error": {"class": "x"}}'
    )
    with Agent.connect(fake.path) as agent:
        agent.ping()


def test_synchronises_again_after_a_limit(fake: FakeAgent) -> None:
    fake.mute.add("guest-fsfreeze-freeze")
    with Agent.connect(fake.path) as agent:
        with pytest.raises(AgentHung):
            agent.freeze(timeout=0.2)
        agent.ping()
    sync = "guest-sync-delimited"
    assert fake.asked == [sync, "guest-fsfreeze-freeze", sync, "guest-ping"]


def test_error(fake: FakeAgent) -> None:
    fake.answers["guest-fsfreeze-freeze"] = (
        b'{"error": {"class": "GenericError", "desc": "busy"}}\n'
    )
    with Agent.connect(fake.path) as agent:
        with pytest.raises(AgentCommandError) as caught:
            agent.freeze()
        assert caught.value.desc == "busy"
        agent.ping()
    assert fake.asked.count("guest-sync-delimited") == 1


@pytest.mark.parametrize("rubbish", [b"[]\n", b"{}\n", b"\x00\xfe\n", b'{"error": 3}\n', b"\n"])
def test_rubbish(fake: FakeAgent, rubbish: bytes) -> None:
    fake.answers["guest-fsfreeze-status"] = rubbish
    with Agent.connect(fake.path) as agent, pytest.raises(AgentError):
        agent.status()


def test_run(fake: FakeAgent) -> None:
    fake.answers["guest-exec"] = b'{"return": {"pid": 9}}\n'
    fake.answers["guest-exec-status"] = (
        b'{"return": {"exited": true, "exitcode": 3, "out-data": "aGk="}}\n'
    )
    with Agent.connect(fake.path) as agent:
        assert agent.run("/bin/x", ("a",)) == (3, b"hi", b"")


def test_half_an_answer(fake: FakeAgent) -> None:
    with Agent.connect(fake.path) as agent:
        fake.answers["guest-ping"] = b'{"return"'
        with pytest.raises(AgentHung):
            agent.ping(timeout=0.2)
