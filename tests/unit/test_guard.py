# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The owner's handle of the guard, against helpers that answer, hang, babble and die."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Callable

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    HelperError,
    LivesnapError,
    TimedOutError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guard import (
    UNDID,
    Guard,
    GuardConfig,
    read_report,
)

GOOD = """
for line in sys.stdin:
    request = json.loads(line)
    record(request)
    if request["request"] == "quit":
        sys.exit(0)
    say({"event": {"start": "ready"}.get(request["request"], request["request"])})
"""

MakeGuard = Callable[..., Guard]


@pytest.fixture
def make_guard(tmp_path: Path) -> MakeGuard:
    def make(body: str, **changes: object) -> Guard:
        helper = tmp_path / "helper"
        helper.write_text(
            "#!/usr/bin/python3\nimport json, os, sys, time\n"
            "def say(event):\n    print(json.dumps(event), flush=True)\n"
            "def record(request):\n"
            f"    open({str(tmp_path / 'requests')!r}, 'a').write(json.dumps(request) + '\\n')\n"
            + body
        )
        helper.chmod(0o755)
        values: dict[str, object] = {
            "qmp_socket": "/run/web1.qmp",
            "agent_socket": None,
            "pid": 10,
            "start_time": 11,
            "guest": "web1",
            "id": "6f1c",
            "owner": os.getpid(),
            "owner_start_time": 12,
            "was_running": True,
            "report": str(tmp_path / "guard.json"),
        }
        values.update(changes)
        return Guard(str(helper), GuardConfig(**values), log=str(tmp_path / "log"))  # type: ignore[arg-type]

    return make


def test_a_life(make_guard: MakeGuard, tmp_path: Path) -> None:
    guard = make_guard(GOOD, keeper=20, keeper_start_time=21, keeper_uffd=5, keeper_progress=6)
    guard.start()
    assert guard.alive() and guard.pid is not None
    assert os.getsid(guard.pid) == guard.pid
    guard.bracket(9000)
    guard.running()
    assert guard.quit() == 0
    assert not guard.alive() and guard.report() is None
    start, bracket, running, end = [
        json.loads(line) for line in (tmp_path / "requests").read_text().splitlines()
    ]
    assert start == {
        "request": "start",
        "qmp_socket": "/run/web1.qmp",
        "agent_socket": None,
        "pid": 10,
        "start_time": 11,
        "guest": "web1",
        "id": "6f1c",
        "owner": os.getpid(),
        "owner_start_time": 12,
        "was_running": True,
        "report": str(tmp_path / "guard.json"),
        "keeper": 20,
        "keeper_start_time": 21,
        "keeper_uffd": 5,
        "keeper_progress": 6,
    }
    assert (bracket, running["request"], end["request"]) == (
        {"request": "bracket", "deadline_ms": 9000},
        "running",
        "quit",
    )


def test_it_inherits_nothing(make_guard: MakeGuard) -> None:
    """A descriptor of the QMP socket in the guard would keep QEMU's one place for a client."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    guard = make_guard(GOOD)
    guard.start()
    os.close(writer)
    assert os.read(reader, 1) == b""  # nobody else holds it
    os.close(reader)
    guard.quit()


def test_without_a_keeper_nothing_is_said_of_one(make_guard: MakeGuard) -> None:
    guard = make_guard(GOOD, agent_socket="/run/agent")
    assert "keeper_uffd" not in guard._config.request()
    assert guard._config.request()["agent_socket"] == "/run/agent"


def test_a_guest_of_libvirts_is_reached_through_it_alone(make_guard: MakeGuard) -> None:
    libvirt = {
        "uri": "qemu:///system",
        "domain": "1b4e28ba-2fa1-11d2-883f-0016d3cca427",
        "virsh": "/usr/bin/virsh",
        "freeze": True,
    }
    request = make_guard(GOOD, qmp_socket=None, libvirt=libvirt)._config.request()
    assert request["libvirt"] == libvirt
    assert "qmp_socket" not in request and "agent_socket" not in request
    assert "libvirt" not in make_guard(GOOD)._config.request()


def test_both_ways_to_the_guest_are_left_to_the_guard_to_refuse(make_guard: MakeGuard) -> None:
    request = make_guard(GOOD, libvirt={})._config.request()
    assert (request["qmp_socket"], request["libvirt"]) == ("/run/web1.qmp", {})


def test_a_refusal_is_told_and_it_is_ended(make_guard: MakeGuard) -> None:
    guard = make_guard(
        "sys.stdin.readline()\n"
        "say({'event': 'error', 'class': 'gone', 'reason': 'gone',"
        " 'message': 'process 10 has ended'})\n"
        "time.sleep(60)"
    )
    with pytest.raises(HelperError, match="process 10 has ended") as caught:
        guard.start()
    assert (caught.value.word, caught.value.reason) == ("gone", "gone")
    assert not guard.alive()


def test_one_that_hangs_costs_its_limit_only(make_guard: MakeGuard) -> None:
    began = time.monotonic()
    guard = make_guard("time.sleep(60)")
    with pytest.raises(TimedOutError):
        guard.start(timeout=0.5)
    assert not guard.alive()
    guard = make_guard("sys.stdin.readline()\nsay({'event': 'ready'})\ntime.sleep(60)")
    guard.start()
    with pytest.raises(TimedOutError):
        guard.bracket(9000, timeout=0.3)
    assert guard.quit(timeout=0.3) == -signal.SIGKILL
    assert time.monotonic() - began < 10


def test_events_in_pieces_and_beside(make_guard: MakeGuard) -> None:
    guard = make_guard(
        "sys.stdin.readline()\nsay({'event': 'released'})\n"
        "sys.stdout.write('{\"eve'); sys.stdout.flush()\n"
        'time.sleep(0.1)\nprint(\'nt": "ready"}\', flush=True)\n'
        "sys.stdin.readline()\nprint('what?', flush=True)\ntime.sleep(60)"
    )
    guard.start()
    with pytest.raises(HelperError, match="no event"):
        guard.bracket(9000)
    guard.quit(timeout=0.1)


def test_one_that_undid_the_bracket(make_guard: MakeGuard, tmp_path: Path) -> None:
    guard = make_guard(
        "sys.stdin.readline()\nsay({'event': 'ready'})\n"
        f"open({str(tmp_path / 'guard.json')!r}, 'w').write("
        "json.dumps({'reason': 'deadline', 'resumed': True}))\n"
        f"sys.exit({UNDID})"
    )
    guard.start()
    with pytest.raises(HelperError, match=r"undone the bracket \(deadline\)") as caught:
        guard.running()
    assert caught.value.reason == "undone"
    assert guard.exit_code == UNDID
    assert guard.report() == {"reason": "deadline", "resumed": True}


@pytest.mark.parametrize(("code", "reason"), [(4, "gone"), (7, "guard")])
def test_one_that_died(make_guard: MakeGuard, code: int, reason: str) -> None:
    guard = make_guard(f"sys.stdin.readline()\nsay({{'event': 'ready'}})\nsys.exit({code})")
    guard.start()
    with pytest.raises(HelperError) as caught:
        guard.bracket(9000)
    assert caught.value.reason == reason


def test_a_helper_that_is_missing() -> None:
    config = GuardConfig("q", None, 10, 1, "web1", "id", 1, 1, True, "/nowhere/report")
    guard = Guard("/nowhere/helper", config)
    with pytest.raises(HelperError, match="/nowhere/helper"):
        guard.start()
    assert not guard.alive() and guard.quit() == 0
    with pytest.raises(LivesnapError):
        guard.bracket(1)


def test_reports_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "report"
    assert read_report(str(path)) is None
    for text in ("", "[1]", "{"):
        path.write_text(text)
        assert read_report(str(path)) is None
