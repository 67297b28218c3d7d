# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Four guests captured at the same time: each is right, and each helper stays in its bounds."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from capture_by_hand import Capture
from lab import Guest, disk_state, judge, ram_state

MIB = 1 << 20
GUESTS = 4
MEMORY = 128
# Less than the witness' buffer, and storage that is slower than the copy: the sweep has to wait.
STAGING = 32
BANDWIDTH = 12
# What a helper may take besides its staging memory.
BESIDES = 64


class Bounds(threading.Thread):
    """Looks at a helper's two processes ten times a second."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__(daemon=True)
        self.pids = pids
        self.high = dict.fromkeys(pids, 0)  # VmHWM
        self.together = 0  # private memory of both and what they share, at most
        self.looks = 0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.1):
            found = [self.look(pid) for pid in self.pids]
            shared = max(each["RssShmem"] for each in found)
            own = sum(each["RssAnon"] + each["RssFile"] for each in found)
            self.together = max(self.together, own + shared)
            self.looks += all(each["VmRSS"] for each in found)

    def look(self, pid: int) -> dict[str, int]:
        """Its memory in bytes; zeros when it has ended."""
        text = ""
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/status").read_text()
        found = {key: int(kib) * 1024 for key, kib in re.findall(r"^(\w+):\s*(\d+) kB", text, re.M)}
        self.high[pid] = max(self.high[pid], found.get("VmHWM", 0))
        return {key: found.get(key, 0) for key in ("VmRSS", "RssAnon", "RssFile", "RssShmem")}


class Run:
    """One guest's capture, from attach to done."""

    def __init__(self, helper: Path, guest: Guest, folder: Path) -> None:
        self.guest = guest
        self.folder = folder
        self.pages = guest.witness()["pages"]
        folder.mkdir()
        self.capture = Capture(helper, guest, folder / "ram.lsnap", staging=STAGING * MIB,
                               bandwidth=BANDWIDTH * MIB, compression="lz4", workers=1)
        event = self.capture.attached()
        assert event["staging_bytes"] == STAGING * MIB
        self.bounds = Bounds([event["keeper"], event["writer"]])
        self.bounds.start()
        self.armed = self.done = 0.0

    def go(self, together: threading.Barrier) -> None:
        """Stop, copy the disk, arm, continue; then the sweep."""
        together.wait(timeout=60)
        with self.guest.qmp() as qmp:
            qmp.execute("stop")
            try:
                for path in self.guest.disk_paths:
                    shutil.copy(path, self.folder / path.name)
                self.capture.protect()
                assert self.capture.arm()["clean"]
                self.armed = time.monotonic()
            finally:
                qmp.execute("cont")
        self.capture.expect("done")
        self.done = time.monotonic()
        self.bounds.ended.set()
        assert self.capture.wait() == 0

    def verdict(self, helper: Path) -> str:
        """What the oracle says."""
        subprocess.run([str(helper), "export", "--format", "raw", str(self.folder / "ram.lsnap"),
                        str(self.folder / "raw")], check=True, timeout=60,
                       stdout=subprocess.DEVNULL)
        disks = [disk_state(self.folder / path.name) for path in self.guest.disk_paths]
        return judge(ram_state(self.folder / "raw", disks[0].boot), disks, self.pages)


@pytest.fixture
def guests() -> Iterator[list[Guest]]:
    """Four of them, booted side by side."""
    with contextlib.ExitStack() as stack:
        made = [Guest(name=f"side{number}", memory=MEMORY, rest=0, buffer=0)
                for number in range(GUESTS)]
        for guest in made:
            stack.callback(guest.stop)
            guest.start(wait=False)
        for guest in made:
            guest.wait_counting()
        yield made


def test_four_at_a_time(helper: Path, guests: list[Guest], tmp_path: Path) -> None:
    runs = [Run(helper, guest, tmp_path / guest.options.name) for guest in guests]
    together = threading.Barrier(GUESTS)
    with ThreadPoolExecutor(GUESTS) as pool:
        for each in [pool.submit(run.go, together) for run in runs]:
            each.result()
    assert max(run.armed for run in runs) < min(run.done for run in runs), "not at the same time"
    for run in runs:
        assert run.verdict(helper) == ""
        run.guest.counts()
        bounds = run.bounds
        print(run.guest.options.name, f"together {bounds.together / MIB:.1f} MiB, high",
              [f"{high / MIB:.1f}" for high in bounds.high.values()], f"{bounds.looks} looks")
        assert bounds.looks >= 5
        # That the staging memory counts is shown by its being there.
        assert STAGING * MIB <= bounds.together <= (STAGING + BESIDES) * MIB
        assert max(bounds.high.values()) <= (STAGING + BESIDES) * MIB
