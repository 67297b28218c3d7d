# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turns of a host or a store, by real processes; and time windows."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import TimedOutError
from ansible_collections.livesnap.qemu.plugins.module_utils._store import rundir, turns
from ansible_collections.livesnap.qemu.plugins.plugin_utils._window import within
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(autouse=True)
def own_run_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rundir, "_ROOT", tmp_path / "run")
    return tmp_path / "run"


def test_no_more_than_so_many(tmp_path: Path) -> None:
    for folder in (turns.of_host(), turns.of_store(str(tmp_path))):
        first = turns.take(folder, 2, 0, "host")
        second = turns.take(folder, 2, 0, "host")
        begun = time.monotonic()
        with pytest.raises(TimedOutError, match="all 2 turns of the host were taken"):
            turns.take(folder, 2, 0.5, "host")
        assert 0.5 <= time.monotonic() - begun < 3
        first.close()
        with turns.take(folder, 2, 0, "host") as third:
            assert third.path == first.path
        second.close()
        second.close()
        assert not folder.exists()
    assert not rundir.root().exists()


def test_the_wait_ends_when_it_is_asked_to(tmp_path: Path) -> None:
    folder = turns.of_host()
    with turns.take(folder, 1, 0, "host"), pytest.raises(TimedOutError, match="cancelled"):
        turns.take(folder, 1, 60, "host", lambda: True)


def hold(folder: Path, count: int, log: Path, seconds: float) -> None:
    with turns.take(folder, count, 60, "host"):
        with log.open("a") as file:
            file.write("+")
        time.sleep(seconds)
        with log.open("a") as file:
            file.write("-")


def test_many_processes_and_folders_that_come_and_go(tmp_path: Path) -> None:
    log = tmp_path / "log"
    fork = multiprocessing.get_context("fork")
    everyone = [
        fork.Process(target=hold, args=(turns.of_host(), 3, log, 0.05)) for _number in range(12)
    ]
    for one in everyone:
        one.start()
    for one in everyone:
        one.join(60)
    held = most = 0
    for mark in log.read_text():
        held += 1 if mark == "+" else -1
        most = max(most, held)
    assert log.read_text().count("+") == 12 and held == 0
    assert 2 <= most <= 3
    assert not rundir.root().exists()


def test_a_turn_dies_with_its_holder(tmp_path: Path) -> None:
    log = tmp_path / "log"
    holder = multiprocessing.get_context("fork").Process(
        target=hold, args=(turns.of_host(), 1, log, 600.0)
    )
    holder.start()
    while not log.exists():
        time.sleep(0.01)
    with pytest.raises(TimedOutError):
        turns.take(turns.of_host(), 1, 0, "host")
    assert holder.pid
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    turns.take(turns.of_host(), 1, 0, "host").close()


def at(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%d %H:%M").replace(tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize(
    ("clock", "window", "zone", "inside"),
    [
        ("2026-11-23 21:59", "22:00-06:00", "UTC", False),
        ("2026-11-23 22:00", "22:00-06:00", "UTC", True),
        ("2026-11-23 05:59", "22:00-06:00", "UTC", True),
        ("2026-11-23 06:00", "22:00-06:00", "UTC", False),
        ("2026-11-23 21:00", "22:00-06:00", "Europe/Berlin", True),
        ("2026-07-23 20:00", "22:00-06:00", "Europe/Berlin", True),
        ("2026-11-23 12:00", "9:00-17:00", "UTC", True),
        ("2026-11-23 23:59", "00:00-24:00", "UTC", True),
    ],
)
def test_windows(clock: str, window: str, zone: str, inside: bool) -> None:
    assert within(at(clock), window, zone) is inside


@pytest.mark.parametrize(
    ("window", "zone"),
    [("", "UTC"), ("22:00", "UTC"), ("24:00-06:00", "UTC"), ("1:00-24:30", "UTC"),
     ("7:00-7:00", "UTC"), ("22:60-6:00", "UTC"), ("1:00-2:00", "Nowhere/At_all")],
)  # fmt: skip
def test_what_is_no_window_is_an_error(window: str, zone: str) -> None:
    with pytest.raises(ValueError, match=r"window|timezone"):
        within(0.0, window, zone)


@given(st.integers(0, 1439), st.integers(0, 1439), st.integers(0, 1439))
def test_a_window_and_its_opposite_share_the_day(begin: int, end: int, now: int) -> None:
    if begin == end:
        return
    first, second = (f"{each // 60:02}:{each % 60:02}" for each in (begin, end))
    moment = now * 60.0
    assert within(moment, f"{first}-{second}") != within(moment, f"{second}-{first}")
