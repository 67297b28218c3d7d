# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The keeper and the writer of a real guest's RAM stop, hang or die: the guest goes on."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._guard import UNDID, read_report
from bracket_kit import make_guard, start_time, state, thread_states
from ksm import Ksm
from lab import Guest

# So that the sweep lasts: as little staging as there may be, and a slow store.
SLOW = {"staging": 32 << 20, "bandwidth": 6 << 20, "compression": "none"}


def protected(pid: int) -> bool:
    """Whether any memory of the process is registered for write protection."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    return any(
        line.startswith("VmFlags:") and " uw" in line.rstrip() + " " for line in text.splitlines()
    )


def until(what: Any, limit: float, why: str) -> float:
    """Waits until what() is true; how long that took."""
    begun = time.monotonic()
    while not what():
        assert time.monotonic() - begun < limit, why
        time.sleep(0.01)
    return time.monotonic() - begun


class Capture:
    """`livesnap-helper capture` of a guest that is stopped for as long as arming takes."""

    def __init__(self, helper: Path, guest: Guest, image: Path, log: Path) -> None:
        self._guest = guest
        self._image = image
        self._buffer = b""
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [str(helper), "capture"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )

    def say(self, request: str, **fields: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"request": request, **fields}).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self, name: str, limit: float = 30.0) -> dict[str, Any]:
        """The next event of that name."""
        assert self.process.stdout is not None
        end = time.monotonic() + limit
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                event: dict[str, Any] = json.loads(line)
                assert name == "error" or event["event"] != "error", event
                if event["event"] == name:
                    return event
                continue
            ready = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))
            assert ready[0], f"no event '{name}'"
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"the helper ended before '{name}'"
            self._buffer += data

    def attach(self) -> dict[str, Any]:
        with self._guest.look() as qmp:
            ramblock = qmp.hmp("info ramblock")
        pid = self._guest.pid
        assert pid is not None
        self.say(
            "start",
            id=str(uuid.uuid4()),
            guest="witness",
            pid=pid,
            start_time=start_time(pid),
            ramblock=ramblock,
            gpa=[],
            image=str(self._image),
            attach="inject",
            ksm="pause",
            level=0,
            workers=0,
            **SLOW,
        )
        return self.hear("attached")

    def arm(self) -> None:
        """The guest runs again when this returns, and the sweep has begun."""
        with self._guest.look() as qmp:
            qmp.execute("stop")
            self.say("protect", ramblock=qmp.hmp("info ramblock"))
            self.hear("protected")
            self.say("arm")
            assert self.hear("armed")["clean"]
            qmp.execute("cont")

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(10)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@contextlib.contextmanager
def sweep(helper: Path, guest: Guest, store: Path, run: Path) -> Iterator[dict[str, Any]]:
    """In the middle of a sweep, with a guard that watches: pids, and the guard's handle."""
    assert guest.pid is not None
    capture = Capture(helper, guest, store / "ram.lsnap", run / "log")
    guard = None
    try:
        about = capture.attach()
        guard = make_guard(
            helper,
            guest,
            run / "guard.json",
            agent_socket=None,
            keeper=about["keeper"],
            keeper_start_time=start_time(about["keeper"]),
            keeper_uffd=about["uffd"],
            keeper_progress=about["progress"],
        )
        guard.start()
        guard.bracket(20000)
        capture.arm()
        guard.running()
        time.sleep(0.7)
        assert protected(guest.pid), "the sweep is over too early for this test"
        yield {**about, "guard": guard, "capture": capture}
    finally:
        # Keeper first: the guard would find nothing wrong with one that is told to end.
        capture.end()
        if guard is not None:
            guard.quit()


def expect_guest_unhurt(guest: Guest) -> None:
    """It counts on, and the witness finds its buffer as it wrote it."""
    assert guest.counts()["intact"]


def test_stopped_keeper(guest: Guest, helper: Path, tmp_path: Path) -> None:
    """Hung is not dead: only the guard frees the guest, within 3 s."""
    with sweep(helper, guest, tmp_path, tmp_path) as run:
        os.kill(run["keeper"], signal.SIGSTOP)
        took = until(lambda: not protected(guest.pid or 0), 5.0, "the guest is still protected")
        assert took < 3.0, took
        until(lambda: not run["guard"].alive(), 2.0, "the guard does not end")
        assert run["guard"].exit_code == UNDID
        report = read_report(str(tmp_path / "guard.json"))
        assert report is not None
        assert (report["reason"], report["released"], report["finished"]) == (
            "keeper hung",
            True,
            True,
        )
        assert (report["resumed"], report["thawed"]) == (False, False)
        until(lambda: state(run["keeper"]) in ("", "Z"), 2.0, "the keeper lives")
    expect_guest_unhurt(guest)


def test_killed_keeper(guest: Guest, helper: Path, tmp_path: Path) -> None:
    with sweep(helper, guest, tmp_path, tmp_path) as run:
        os.kill(run["keeper"], signal.SIGKILL)
        took = until(lambda: not protected(guest.pid or 0), 5.0, "the guest is still protected")
        assert took < 0.5, took
        until(lambda: not run["guard"].alive(), 2.0, "the guard does not end")
        assert run["guard"].exit_code == 0
    expect_guest_unhurt(guest)
    assert not (tmp_path / "ram.lsnap").exists()


def test_a_slow_store_is_no_hang(guest: Guest, helper: Path, tmp_path: Path) -> None:
    """The guest waits for staging, and progress is slow: that is no reason to end it."""
    with sweep(helper, guest, tmp_path, tmp_path) as run:
        time.sleep(5.0)
        assert protected(guest.pid or 0) and run["guard"].alive()
        assert run["capture"].process.poll() is None
        run["capture"].say("abort")
        run["capture"].hear("aborted")
        assert not protected(guest.pid or 0)
    expect_guest_unhurt(guest)


@pytest.fixture
def frozen_store(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own for the store; it is unfrozen and unmounted whatever happens."""
    store, image = tmp_path / "store", tmp_path / "image"
    store.mkdir()
    with image.open("wb") as file:
        file.truncate(512 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(store)], check=True)
    try:
        yield store
    finally:
        subprocess.run(["fsfreeze", "-u", str(store)], check=False, capture_output=True)
        for _try in range(100):
            if (
                subprocess.run(["umount", str(store)], check=False, capture_output=True).returncode
                == 0
            ):
                break
            time.sleep(0.1)


def test_writer_in_the_kernel(
    guest: Guest, helper: Path, tmp_path: Path, frozen_store: Path
) -> None:
    """The store hangs, so the writer cannot die; it holds nothing of the guest."""
    with sweep(helper, guest, frozen_store, tmp_path) as run:
        subprocess.run(["fsfreeze", "-f", str(frozen_store)], check=True)
        until(lambda: _hangs(run["writer"]), 10.0, "the writer does not hang")
        assert protected(guest.pid or 0)
        os.kill(run["writer"], signal.SIGKILL)
        os.kill(run["keeper"], signal.SIGKILL)
        took = until(lambda: not protected(guest.pid or 0), 5.0, "the guest is still protected")
        assert took < 0.5, took
        assert _hangs(run["writer"])
        expect_guest_unhurt(guest)
        subprocess.run(["fsfreeze", "-u", str(frozen_store)], check=True)
        until(lambda: state(run["writer"]) == "", 10.0, "the writer lives")


def _hangs(pid: int) -> bool:
    """Whether a thread of it is in uninterruptible sleep for half a second."""
    for _look in range(5):
        if "D" not in thread_states(pid):
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_ksm_is_put_back(
    guest: Guest, helper: Path, tmp_path: Path, how: signal.Signals, ksm: Ksm
) -> None:
    """The keeper had paused it, and cannot put it back any more."""
    ksm.switch_on()
    with sweep(helper, guest, tmp_path, tmp_path) as run:
        assert not ksm.runs()
        os.kill(run["keeper"], how)
        until(ksm.runs, 4.0, "KSM is still paused")
    expect_guest_unhurt(guest)
