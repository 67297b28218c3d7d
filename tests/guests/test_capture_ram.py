# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The helper's capture on a real guest whose witness never stops writing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import layout
import pytest
from bracket_kit import thread_states
from capture_by_hand import Capture, CaptureFailed
from lab import Guest, disk_state, judge, ram_state


@pytest.fixture(scope="module")
def faulty() -> Path:
    """The helper with fault points and sabotage."""
    layout.make_native("faults")
    return layout.NATIVE / "build" / "livesnap-helper-faults"


def snapshot(helper: Path, guest: Guest, folder: Path, **options: Any) -> dict[str, Any]:
    """The bare bracket: RAM in folder/ram.lsnap, copies of the disks beside it."""
    capture = Capture(helper, guest, folder / "ram.lsnap", **options)
    capture.attached()
    prearmed = capture.prearm()
    with guest.qmp() as qmp:
        qmp.execute("stop")
        try:
            # Before arm: the sweep starts with it, and the guest must feel it.
            for path in guest.disk_paths:
                shutil.copy(path, folder / path.name)
            protected = capture.protect()
            assert protected["pages"] > 0
            for _unused in range(3):
                qmp.execute("xen-save-devices-state",
                            {"filename": str(folder / "devices"), "live": False})
                armed = capture.arm()
                if armed["clean"]:
                    break
            assert armed["clean"]
        finally:
            qmp.execute("cont")
    done = capture.expect("done")
    assert capture.wait() == 0
    return done | {"protect_ms": protected["ms"], "arm_ms": armed["ms"], "prearmed": prearmed}


def verdict(helper: Path, guest: Guest, folder: Path) -> str:
    """What the oracle says of it."""
    pages = guest.witness()["pages"]
    with guest.still():
        subprocess.run([str(helper), "verify", str(folder / "ram.lsnap")], check=True, timeout=60,
                       stdout=subprocess.DEVNULL)
        subprocess.run([str(helper), "export", "--format", "raw", str(folder / "ram.lsnap"),
                        str(folder / "raw")], check=True, timeout=60, stdout=subprocess.DEVNULL)
        disks = [disk_state(folder / path.name) for path in guest.disk_paths]
        reason = judge(ram_state(folder / "raw", disks[0].boot), disks, pages)
    shutil.rmtree(folder)
    return reason


def test_all_streams_end_after_arm(helper: Path, guest: Guest, tmp_path: Path) -> None:
    """From the instant on nobody has to listen: it completes, and what it stored is right."""
    folder = tmp_path / "left"
    folder.mkdir()
    capture = Capture(helper, guest, folder / "ram.lsnap", stderr=subprocess.PIPE,
                      compression="none", bandwidth=64 << 20, staging=64 << 20)
    capture.attached()
    with guest.qmp() as qmp:
        qmp.execute("stop")
        for path in guest.disk_paths:
            shutil.copy(path, folder / path.name)
        capture.protect()
        assert capture.arm()["clean"]
        qmp.execute("cont")
    capture.leave()
    assert capture.process.poll() is None, "it was over too early for this test"
    assert capture.wait() == 0
    assert verdict(helper, guest, folder) == ""
    assert guest.counts()["intact"]


def test_rounds(helper: Path, make_guest: Callable[..., Guest], tmp_path: Path,
                rounds: Callable[[int, int], int]) -> None:
    """Snapshots in a row are of one instant each, and the guest never stops counting."""
    guest = make_guest(rest=0, memory=256, buffer=0, vga=True, net=True)
    for number in range(rounds(3, 20)):
        for attach in ("device", "inject"):
            folder = tmp_path / f"{number}-{attach}"
            folder.mkdir()
            done = snapshot(helper, guest, folder, attach=attach,
                            compression=("none", "lz4", "zstd")[number % 3])
            print(done)
            assert not done["prearmed"]
            assert done["bytes"] >= 256 << 20
            assert verdict(helper, guest, folder) == ""
            assert guest.counts()["intact"]


def test_small_pages_are_protected_before_the_pause(
        helper: Path, make_guest: Callable[..., Guest], tmp_path: Path,
        rounds: Callable[[int, int], int]) -> None:
    """What is written between prearm and the pause is protected again, and is of the instant."""
    guest = make_guest(rest=0, memory=1024, buffer=640, thp=False)
    for number in range(rounds(2, 20)):
        folder = tmp_path / str(number)
        folder.mkdir()
        done = snapshot(helper, guest, folder)
        print(done)
        assert done["prearmed"]
        assert verdict(helper, guest, folder) == ""
        assert guest.counts()["intact"]


@pytest.mark.parametrize("kind", ["skip-granule", "late-arm"])
def test_sabotage_is_caught(faulty: Path, make_guest: Callable[..., Guest], tmp_path: Path,
                            kind: str) -> None:
    """A capture that is wrong on purpose does not pass the oracle."""
    # A buffer that surely has the middle of RAM, where a granule is left out: the kernel, which
    # does not change, must not lie there by chance.
    guest = make_guest(rest=0, memory=256, buffer=176, kernel_arguments="nokaslr")
    reasons = []
    for number in range(12):  # 20 ms may pass without a step
        folder = tmp_path / str(number)
        folder.mkdir()
        print(snapshot(faulty, guest, folder, env={"LIVESNAP_SABOTAGE": kind}))
        reasons.append(verdict(faulty, guest, folder))
        if reasons[-1]:
            print(reasons[-1])
            break
    assert any(reasons)
    assert guest.counts()["intact"]


def test_abort_and_death(helper: Path, make_guest: Callable[..., Guest], tmp_path: Path) -> None:
    """However a capture ends, the guest goes on and no image is left."""
    guest = make_guest(buffer=64)
    for number, how in enumerate(("abort", "kill", "leave")):
        image = tmp_path / f"ram{number}"
        capture = Capture(helper, guest, image, compression="none", bandwidth=1 << 20,
                          staging=32 << 20)
        capture.attached()
        with guest.qmp() as qmp:
            qmp.execute("stop")
            capture.protect()
            if how != "leave":
                assert capture.arm()["clean"]
            qmp.execute("cont")
        if how == "abort":
            capture.say(request="abort")
            with pytest.raises(CaptureFailed):
                capture.expect("done")
            assert capture.wait() == 3
        elif how == "kill":
            capture.process.kill()
            capture.wait()
        else:
            assert capture.process.stdin is not None
            capture.process.stdin.close()
            assert capture.wait() == 3
        assert guest.counts()["intact"]
        for _unused in range(100):
            if not image.exists():
                break
            guest.witness()
        assert not image.exists()


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Path]:
    """A store on an ext4 of its own, on a loop device; thawed and removed at the end."""
    image, store = tmp_path / "ext4", tmp_path / "store"
    store.mkdir()
    subprocess.run(["truncate", "-s", "600M", str(image)], check=True)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(store)], check=True)
    yield store
    subprocess.run(["fsfreeze", "-u", str(store)], check=False, stderr=subprocess.DEVNULL)
    for last in (False,) * 50 + (True,):  # the killed writer ends only now, with its write
        if subprocess.run(["umount", str(store)], check=last).returncode == 0:
            break
        time.sleep(0.2)


def test_store_hangs(helper: Path, make_guest: Callable[..., Guest], frozen: Path) -> None:
    """The writer in D state: the guest is free as soon as keeper and writer are killed."""
    guest = make_guest(buffer=64)
    capture = Capture(helper, guest, frozen / "ram.lsnap", compression="none", staging=32 << 20)
    pids = capture.attached()
    with guest.qmp() as qmp:
        qmp.execute("stop")
        capture.protect()
        subprocess.run(["fsfreeze", "-f", str(frozen)], check=True)
        assert capture.arm()["clean"]
        qmp.execute("cont")
    deadline = time.monotonic() + 10
    while "D" not in thread_states(pids["writer"]):
        assert time.monotonic() < deadline, "the writer does not hang"
        time.sleep(0.05)
    os.kill(capture.process.pid, signal.SIGKILL)
    os.kill(pids["writer"], signal.SIGKILL)
    assert capture.wait(5) == -signal.SIGKILL
    assert guest.counts()["intact"]
