# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Somebody dies or hangs at each step of the bracket: how long the guest was held, and by whom it
is let go. What the next run finds, and does, is in test_owner_faults.py."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _recover
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.steps import FAULT_POINTS
from ansible_collections.livesnap.qemu.plugins.module_utils._store.listing import list_snapshots
from bracket_kit import (
    Place,
    clean,
    helper,
    in_child,
    kill,
    living,
    read,
    run_dir,
    state,
    wait,
    well,
)
from lab import Guest

DEADLINE = 4
#: From freeze, where the guest is first touched, until it is thawed.
HELD = FAULT_POINTS[FAULT_POINTS.index("freeze") : FAULT_POINTS.index("thaw") + 1]
#: Without its module the owner undoes everything; it looks before each step, and last before cont.
BEFORE = FAULT_POINTS[: FAULT_POINTS.index("cont")]


@pytest.fixture
def place(tmp_path: Path, guest: Guest) -> Iterator[Place]:
    yield Place(tmp_path / "store", guest)
    # A test that failed leaves the guest usable for the next one.
    _recover.recover(str(tmp_path / "store"), None, helper())


class Struck:
    """A snapshot whose owner was struck at a step."""

    def __init__(self, guest: Guest, place: Place, step: str, action: str, **given: Any) -> None:
        os.environ.update(LIVESNAP_TESTING="1", LIVESNAP_FAULT_STEP=f"{step}:{action}")
        try:
            self.module = in_child(lambda: place.take("one", **given))
        finally:
            del os.environ["LIVESNAP_TESTING"], os.environ["LIVESNAP_FAULT_STEP"]
        self._reaped = False
        self.folder: Path = wait(lambda: run_dir(guest), 20)
        self.owner = int(wait(lambda: read(self.folder / "owner.json"), 20)["pid"])
        # Stopped, or gone.
        wait(lambda: state(self.owner) == "T" or not living(self.owner), 20, 0.005)
        self.at = time.time()

    def noted(self, step: str) -> float:
        """When the owner began a step, in seconds since 1970."""
        for line in (self.folder / "journal").read_text().splitlines():
            if f'"step": "{step}"' in line:
                text = line.partition('"at": "')[2].partition('"')[0]
                return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
        raise AssertionError(f"the owner never began '{step}'")

    def report(self, limit: float) -> dict[str, Any]:
        """The guard's, once it has done all that it does."""
        path = self.folder / "guard.json"
        wait(lambda: read(path).get("finished"), limit)
        return read(path)

    def module_ends(self) -> int:
        """The exit status of the module."""
        if not self._reaped:
            self._reaped = True
            self._status = os.waitpid(self.module, 0)[1]
        return self._status

    def end(self) -> None:
        """Nothing of it is left."""
        kill(self.owner)
        kill(self.module)
        self.module_ends()
        # Its sockets close before it is gone.
        wait(lambda: not living(self.owner), 20)


@contextlib.contextmanager
def struck(*given: Any, **more: Any) -> Iterator[Struck]:
    run = Struck(*given, **more)
    try:
        yield run
    finally:
        run.end()


@pytest.mark.parametrize("action", ["KILL", "STOP"])
@pytest.mark.parametrize("step", HELD)
def test_held_no_longer_than_the_deadline(
    step: str, action: str, guest: Guest, place: Place
) -> None:
    """From freeze to thaw, as owner, QEMU and guard date it."""
    with guest.look() as qmp:
        with struck(guest, place, step, action, deadline=DEADLINE, freeze_timeout=2) as run:
            report = run.report(2 * DEADLINE)
            free = time.time()
            held = free - run.noted("freeze")
            assert held <= DEADLINE, held
            if action == "KILL":
                assert free - run.at < 1.5, free - run.at
            assert report["reason"] == ("owner died" if action == "KILL" else "deadline")
            assert report["status"] == "running"
            assert report["released"]
            # What had been done when it struck has been undone, and nothing else.
            after = FAULT_POINTS.index(step)
            assert report["resumed"] == (
                FAULT_POINTS.index("stop") < after <= FAULT_POINTS.index("cont")
            )
            assert report["thawed"] == (after > FAULT_POINTS.index("freeze"))
            assert qmp.status() == "running"
            with guest.agent() as agent:
                assert agent.freeze_status() == "thawed"
            counted = guest.counts()
            assert counted["intact"]
            stamps = [
                (event["event"], _moment(event))
                for event in qmp.events()
                if event["event"] in ("STOP", "RESUME")
            ]
        if after > FAULT_POINTS.index("stop"):
            assert [name for name, _at in stamps] == ["STOP", "RESUME"]
            assert stamps[1][1] - stamps[0][1] <= DEADLINE
        else:
            assert stamps == []
    # The owner's module has ended, killed by us or with the error.
    assert run.module_ends() != 0
    assert _recover.recover(str(place.root), place.name, helper())
    clean(guest)


def _moment(event: dict[str, Any]) -> float:
    stamp = event["timestamp"]
    return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6


@pytest.mark.parametrize("step", FAULT_POINTS)
def test_module_is_killed(step: str, guest: Guest, place: Place) -> None:
    """Before the instant the owner undoes everything; after it, it carries on."""
    with struck(guest, place, step, "STOP", deadline=9) as run:
        kill(run.module)
        run.module_ends()
        kill(run.owner, signal.SIGCONT)
        wait(lambda: run_dir(guest) is None, 20)
        wait(lambda: not living(run.owner), 20)
    assert place.left() == ([] if step in BEFORE else ["one"])
    well(guest)
    clean(guest)
    if step not in BEFORE:
        assert list_snapshots(str(place.root), place.name)[0]["complete"]
    assert _recover.recover(str(place.root), place.name, helper()) == []


@pytest.mark.parametrize("step", FAULT_POINTS)
def test_module_hangs(step: str, guest: Guest, place: Place) -> None:
    """The owner does not need it; when it goes on, it returns what the owner made."""
    with struck(guest, place, step, "STOP", deadline=9) as run:
        kill(run.module, signal.SIGSTOP)
        kill(run.owner, signal.SIGCONT)
        wait(lambda: run_dir(guest) is None, 20)
        assert place.left() == ["one"]
        kill(run.module, signal.SIGCONT)
        assert run.module_ends() == 0
    well(guest)
    clean(guest)


def test_guard_hangs_as_well(guest: Guest, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run does its work, and ends it: awake later, it would thaw what is frozen then."""
    with struck(guest, place, "protect", "STOP", deadline=9) as run:
        guard = int(read(run.folder / "guard-process.json")["pid"])
        kill(guard, signal.SIGSTOP)
        run.end()
        monkeypatch.setattr(_recover, "_GUARD_LIMIT", 0.5)
        result = place.take("two")
    said = " ".join(result["recovered"])
    assert "resumed the guest" in said and "thawed the guest" in said, said
    wait(lambda: not living(guard), 20)
    assert result["snapshot"]["consistency"]["level"] == "filesystem"
    well(guest)
    clean(guest)


def test_owner_dies_in_a_long_sweep(guest: Guest, place: Place) -> None:
    """Nobody waits for a guard that only watches the keeper."""
    slow = {"bandwidth": 5 << 20, "compression": "none"}
    module = in_child(lambda: place.take("one", **slow))
    folder = wait(lambda: run_dir(guest), 20)
    wait(lambda: read(folder / "progress.json").get("phase") == "sweep", 20)
    owner = int(read(folder / "owner.json")["pid"])
    kill(owner)
    assert os.waitpid(module, 0)[1] != 0
    wait(lambda: not living(owner), 20)
    begun = time.monotonic()
    said = _recover.recover(str(place.root), place.name, helper())
    assert time.monotonic() - begun < 10, said
    assert any("ended the keeper" in line for line in said), said
    well(guest)
    clean(guest)
    assert place.left() == []
