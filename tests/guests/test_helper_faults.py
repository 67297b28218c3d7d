# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The helper's processes die or hang while a whole snapshot is taken: the guest goes on, the owner
throws the snapshot away by itself, and the next run is as good as the first."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from bracket_kit import Place, clean, helper, in_child, kill, read, run_dir, wait, well
from lab import Guest
from taking import helper as built

#: The helper with fault points, built when the tests are collected: they are made from its list.
FAULTY = built(faults=True)


@pytest.fixture
def place(tmp_path: Path, guest: Guest) -> Place:
    return Place(tmp_path / "store", guest)


def sweeping(place: Place, **given: Any) -> tuple[int, Path]:
    """(pid of a module whose snapshot is in its sweep, its run folder)."""
    given = {"bandwidth": 30 << 20, "compression": "none", **given}
    module = in_child(lambda: place.take("one", **given))
    folder = wait(lambda: run_dir(place.guest), 20)
    wait(lambda: read(folder / "progress.json").get("phase") == "sweep", 20)
    return module, folder


def thrown_away(place: Place, module: int) -> None:
    """The module failed, nothing is left, the guest is well, and another run succeeds."""
    assert os.waitpid(module, 0)[1] != 0
    assert place.left() == []
    well(place.guest)
    clean(place.guest)
    assert place.take("one")["snapshot"]["complete"]
    well(place.guest)


@pytest.mark.parametrize("who", ["keeper", "writer", "both"])
def test_killed_at_random_moments_of_the_sweep(
    who: str, place: Place, rounds: Callable[[int, int], int]
) -> None:
    generator = random.Random(3)
    for _round in range(rounds(5 if who == "keeper" else 1, 50 if who == "keeper" else 10)):
        module, folder = sweeping(place)
        time.sleep(generator.random())
        about = read(folder / "helper.json")
        for name in ("keeper", "writer") if who == "both" else (who,):
            kill(about[name]["pid"])
        thrown_away(place, module)
        place.clear()


def test_keeper_hangs_in_the_sweep(place: Place) -> None:
    """Within three seconds the guest is free; the owner learns that the keeper is gone."""
    # Little staging: most of RAM is still protected, and the guest waits for the store.
    module, folder = sweeping(place, bandwidth=5 << 20, staging="16M", freeze="never")
    before = place.guest.witness()["counter"]
    kill(read(folder / "helper.json")["keeper"]["pid"], signal.SIGSTOP)
    time.sleep(3.0)
    begun = place.guest.witness()["counter"]
    assert wait(lambda: place.guest.witness()["counter"] > begun, 5)
    assert begun >= before
    thrown_away(place, module)


def test_writer_hangs_in_the_sweep(place: Place) -> None:
    """It never holds the userfaultfd, with as many workers as it was given: the guest goes on."""
    # Other than without it, whatever the machine has.
    workers = (os.cpu_count() or 1) + 2
    module, folder = sweeping(place, bandwidth=10 << 20, workers=workers)
    writer = read(folder / "helper.json")["writer"]["pid"]
    kill(writer, signal.SIGSTOP)
    # All of them, and its main thread.
    assert len(list(Path(f"/proc/{writer}/task").iterdir())) == workers + 1
    place.guest.counts()
    thrown_away(place, module)


def points() -> list[str]:
    """The fault points of a capture, as the helper lists them; attach.* have tests of their own."""
    done = subprocess.run([FAULTY, "faults"], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.split() if line.startswith("capture.")]


def test_a_sweep_takes_no_longer_than_its_timeout(place: Place) -> None:
    with pytest.raises(LivesnapError, match="the sweep of guest 'web1' took longer than 2 s"):
        place.take("one", bandwidth=5 << 20, compression="none", timeout=2)
    assert place.left() == []
    well(place.guest)
    clean(place.guest)


@pytest.mark.parametrize("point", points())
@pytest.mark.parametrize("action", ["kill", "error"])
def test_fault_point(
    point: str, action: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("LIVESNAP_FAULT", f"{point}:{action}")
        patch.setenv("LIVESNAP_TEST_HELPER", FAULTY)
        with pytest.raises(LivesnapError):
            place.take("one", deadline=4, freeze_timeout=2)
    assert helper() != FAULTY
    assert place.left() == []
    well(place.guest)
    clean(place.guest)
    assert place.take("one")["snapshot"]["complete"]
    well(place.guest)


def test_the_qmp_socket_is_free_during_the_sweep(place: Place) -> None:
    """Another client is served while RAM is stored, and does no harm."""
    module, folder = sweeping(place, bandwidth=20 << 20)
    time.sleep(1.0)
    with place.guest.qmp() as qmp:
        assert qmp.execute("query-status")["running"] is True
        assert qmp.execute("query-jobs") == []
        assert folder.exists(), "the sweep was over too early for this test"
    assert os.waitpid(module, 0)[1] == 0
    assert place.left() == ["one"]
    clean(place.guest)
