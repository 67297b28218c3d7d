# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard alone, with a real guest and its real agent: frozen and stopped, its owner fails."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._guard import read_report
from bracket_kit import make_guard
from lab import Guest

DEADLINE_MS = 3000


def _own(guest: Guest, helper: Path, report: Path, ready: int) -> None:
    """The owner's life, in a child of the test: up to the middle of the bracket, where it stays.

    `ready` gets a line when the guest is frozen and stopped: the guard's pid, and when the bracket
    began.
    """
    guard = make_guard(helper, guest, report)
    guard.start()
    begun = time.monotonic()
    guard.bracket(DEADLINE_MS)
    with guest.agent() as agent, guest.qmp() as qmp:
        assert agent.execute("guest-fsfreeze-freeze") > 0
        qmp.execute("stop")
        os.write(ready, f"{guard.pid} {begun}\n".encode())
        while True:
            time.sleep(60)


@contextmanager
def bracket(guest: Guest, helper: Path, report: Path) -> Iterator[tuple[int, int, float]]:
    """A guest that is frozen and stopped: pids of owner and guard, and when the bracket began."""
    reader, writer = os.pipe()
    owner = os.fork()
    if owner == 0:
        try:
            os.close(reader)
            _own(guest, helper, report, writer)
        finally:
            os._exit(1)
    os.close(writer)
    try:
        line = os.read(reader, 64)
        assert line, report.with_name("log").read_text()
        guard, begun = line.split()
        yield owner, int(guard), float(begun)
    finally:
        os.close(reader)
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)


def _report(path: Path, limit: float) -> dict[str, Any]:
    """The guard's report, when it is finished."""
    end = time.monotonic() + limit
    while True:
        report = read_report(str(path))
        if report and report["finished"]:
            return report
        assert time.monotonic() < end, path.with_name("log").read_text()
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_guest_runs_and_is_thawed_by_the_deadline(
    guest: Guest, helper: Path, tmp_path: Path, how: signal.Signals
) -> None:
    path = tmp_path / "guard.json"
    with bracket(guest, helper, path) as (owner, _guard, begun):
        with guest.look() as qmp:
            assert qmp.execute("query-status")["status"] == "paused"
        struck = time.monotonic()
        os.kill(owner, how)
        report = _report(path, 5.0)
        done = time.monotonic()
    assert (report["resumed"], report["thawed"], report["status"]) == (True, True, "running")
    assert report["reason"] == ("owner died" if how == signal.SIGKILL else "deadline")
    assert done - begun < DEADLINE_MS / 1000
    if how == signal.SIGKILL:
        assert done - struck < 1.5
    with guest.agent() as agent:
        assert agent.freeze_status() == "thawed"
    guest.counts()


def test_guest_is_freed_though_the_agent_hangs(guest: Guest, helper: Path, tmp_path: Path) -> None:
    """The agent is stopped while the guest is frozen: it runs on at once, and is thawed when the
    agent answers."""
    path = tmp_path / "guard.json"
    with bracket(guest, helper, path) as (owner, guard, _begun):
        with guest.look() as qmp:
            qmp.execute("cont")
            # The agent cannot be stopped through itself: it is done on the console.
            guest.command("agent hung")
            qmp.execute("stop")
        os.kill(owner, signal.SIGKILL)
        time.sleep(1.0)
        with guest.look() as qmp:
            assert qmp.execute("query-status")["status"] == "running"
        report = read_report(str(path))
        assert report is not None and not report["finished"] and report["guard"] == guard
        guest.command("agent run")
        report = _report(path, 10.0)
    assert (report["resumed"], report["reason"]) == (True, "owner died")
    with guest.agent() as agent:
        assert agent.freeze_status() == "thawed"
    guest.counts()
