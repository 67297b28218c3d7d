# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The owner of a bracket dies, hangs or fails at each of its steps; or everything dies at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _recover
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import (
    plan_removal,
    remove_snapshot,
    take_snapshot,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.steps import FAULT_POINTS
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._store.listing import list_snapshots
from bracket_kit import (
    Place,
    clean,
    fault,
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

DEADLINE = 3
#: From here on the snapshot is there, whatever happens.
PUBLISHED = ("release",)
QUICK = {"deadline": DEADLINE, "freeze_timeout": 2}
#: The engine that has something to do in step `copy`.
HELD = {"engine": "pause", "allow_pause": True}


@pytest.fixture
def place(tmp_path: Path, guest: Guest) -> Iterator[Place]:
    yield Place(tmp_path / "store", guest)
    # A test that failed leaves the guest usable for the next one.
    _recover.recover(str(tmp_path / "store"), None, helper())


@pytest.mark.parametrize("action", ["RAISE", "KILL", "STOP"])
@pytest.mark.parametrize("step", FAULT_POINTS)
def test_owner_fails_at(step: str, action: str, guest: Guest, place: Place) -> None:
    begun = time.monotonic()
    options = {**QUICK, **(HELD if step == "copy" else {})}
    with fault(step, action):
        if step in PUBLISHED and action == "RAISE":
            assert place.take("one", **options)["snapshot"]["complete"]
        else:
            with pytest.raises(LivesnapError):
                place.take("one", **options)
    # The guard within the deadline; an owner that hangs elsewhere holds nobody up.
    assert time.monotonic() - begun < 2 * DEADLINE + 10
    well(guest)
    if step in PUBLISHED:
        assert "one" in place.left()
    else:
        assert "one" not in place.left()
    if action == "RAISE":
        clean(guest)
        assert [name for name in place.left() if name.endswith(".partial")] == []
    result = place.take("two", **QUICK)
    assert bool(result["recovered"]) == (action != "RAISE"), result["recovered"]
    assert result["snapshot"]["complete"]
    assert result["snapshot"]["consistency"]["level"] == "filesystem"
    assert place.left() == (["one", "two"] if step in PUBLISHED else ["two"])
    well(guest)
    clean(guest)


@pytest.mark.parametrize("step", ["protect", "thaw", "sweep"])
def test_everything_dies_at_once(step: str, guest: Guest, place: Place) -> None:
    with fault(step, "STOP"):
        module = in_child(lambda: place.take("one", deadline=9))
    folder = wait(lambda: run_dir(guest), 20)
    owner = wait(lambda: read(folder / "owner.json"), 20)["pid"]
    wait(lambda: state(owner) == "T", 20)
    helpers = read(folder / "helper.json")
    doomed = [module, owner, helpers["keeper"]["pid"], helpers["writer"]["pid"]]
    guard = read(folder / "guard-process.json").get("pid")
    # The guard first: it must not get to do anything.
    for pid in [guard, *doomed]:
        kill(pid)
    os.waitpid(module, 0)
    wait(lambda: not any(living(pid) for pid in [guard, *doomed]), 10)
    planned = _recover.plan_recovery(str(place.root), place.name)
    assert planned
    said = _recover.recover(str(place.root), place.name, helper())
    assert said
    if step == "protect":
        assert any("resumed the guest" in line for line in said)
        assert any("thawed the guest" in line for line in said)
    well(guest)
    clean(guest)
    assert place.left() == []
    assert _recover.plan_recovery(str(place.root), place.name) == []
    assert _recover.recover(str(place.root), place.name, helper()) == []


def test_module_killed_after_the_instant(guest: Guest, place: Place) -> None:
    module = in_child(lambda: place.take("one", bandwidth=10 << 20, compression="none"))
    folder = wait(lambda: run_dir(guest), 20)
    wait(lambda: read(folder / "progress.json").get("phase") == "sweep", 20)
    kill(module)
    os.waitpid(module, 0)
    found = list_snapshots(str(place.root), place.name)
    assert [entry["name"] for entry in found] == ["one"]
    assert found[0]["complete"] is False
    assert found[0]["in_progress"]["owner"]["pid"] == read(folder / "owner.json")["pid"]
    # The next run of that name waits, and returns what it finds.
    result = place.take("one", lock_timeout=60)
    assert result["changed"] is False
    assert result["snapshot"]["complete"] is True
    well(guest)
    clean(guest)


def test_module_killed_before_the_instant(guest: Guest, place: Place) -> None:
    with fault("stop", "STOP"):
        module = in_child(lambda: place.take("one", deadline=8))
    folder = wait(lambda: run_dir(guest), 20)
    owner = wait(lambda: read(folder / "owner.json"), 20)["pid"]
    wait(lambda: state(owner) == "T", 20)
    kill(module)
    os.waitpid(module, 0)
    kill(owner, signal.SIGCONT)
    wait(lambda: run_dir(guest) is None, 10)
    assert place.left() == []
    well(guest)
    clean(guest)


def test_lock_says_who_holds_it(guest: Guest, place: Place) -> None:
    module = in_child(lambda: place.take("one", bandwidth=5 << 20))
    folder = wait(lambda: run_dir(guest), 20)
    wait(lambda: read(folder / "progress.json").get("phase") == "sweep", 20)
    with pytest.raises(LivesnapError, match=r"locked by process \d+.*snapshot 'one'.*waited 1 s"):
        place.take("two", lock_timeout=1)
    os.waitpid(module, 0)
    assert place.left() == ["one"]


def test_absent_aborts_one_in_progress(guest: Guest, place: Place) -> None:
    def work() -> None:
        take_snapshot(place.spec("one", bandwidth=5 << 20))

    module = in_child(work)
    folder = wait(lambda: run_dir(guest), 20)
    wait(lambda: read(folder / "progress.json").get("phase") == "sweep", 20)
    spec = place.spec("one", state="absent")
    assert plan_removal(spec)["changed"] is True
    result = remove_snapshot(spec)
    assert result["changed"] is True
    assert "in progress" in result["actions"][0]
    assert os.waitpid(module, 0)[1] != 0
    assert place.left() == []
    well(guest)
    clean(guest)
    assert remove_snapshot(spec)["changed"] is False
