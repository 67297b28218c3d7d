# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest feels when storage stalls, when a capture is aborted, and between QEMU's threads.

No peer here: these are bounds of our own. Captures are driven by hand, to know each moment.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import report
from capture_by_hand import Capture, CaptureFailed
from lab import Guest
from layout import REPO
from meter import Meter, Sampler
from taking import helper

GIB = 1 << 30
STAGING = 256 << 20
#: How long the store stands still. Seconds.
STALL = 30.0
#: What the helper may take besides its staging. Bytes.
BESIDES = 64 << 20
#: struct ls_progress: magic, version, size, heartbeat, faults_pending, state
_PROGRESS = struct.Struct("<QIIQQI")
_FREE = (4, 6)  # LS_PROGRESS_RELEASED, LS_PROGRESS_FAILED


def _begin(
    guest: Guest, image: Path, before_arm: Callable[[], None] = lambda: None, **options: Any
) -> Capture:
    """A capture past its instant; the guest runs."""
    capture = Capture(Path(helper()), guest, image, **options)
    capture.attached()
    with guest.qmp() as qmp:
        qmp.execute("stop")
        try:
            capture.protect()
            before_arm()
            if not capture.arm()["clean"]:
                raise RuntimeError("RAM was written while the guest stood still")
        finally:
            qmp.execute("cont")
    return capture


@contextlib.contextmanager
def _store_that_can_stall() -> Iterator[Path]:
    """An ext4 on a loop device."""
    with tempfile.TemporaryDirectory(prefix="livesnap-stall-", dir="/var/tmp") as folder:
        image, store = Path(folder) / "ext4", Path(folder) / "store"
        store.mkdir()
        subprocess.run(["truncate", "-s", "3G", str(image)], check=True)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(store)], check=True)
        try:
            yield store
        finally:
            subprocess.run(["umount", str(store)], check=True)


def _one_stall(guest: Guest, meter: Meter, store: Path, seconds: float) -> tuple[float, int]:
    """(longest loop of the witness, ms, helper's memory, bytes) while the store is deaf so long."""
    with Sampler(meter, helper()) as sampler:
        loop = _longest_loop(guest, meter, store, seconds)
    return loop, sampler.helper.hwm_bytes


def _longest_loop(guest: Guest, meter: Meter, store: Path, seconds: float) -> float:
    image = store / "ram.lsnap"
    freeze = ["fsfreeze", "-f", str(store)]
    time.sleep(1)
    since = meter.read().guest_ns
    capture = _begin(
        guest,
        image,
        lambda: seconds and subprocess.run(freeze, check=True),  # type: ignore[arg-type, return-value]
        compression="none",
        staging=STAGING,
    )
    if seconds:
        time.sleep(seconds)
        stalled = meter.longest_ms(since)[1]
        subprocess.run(["fsfreeze", "-u", str(store)], check=True)
    capture.expect("done")
    capture.wait()
    image.unlink()
    return stalled if seconds else meter.longest_ms(since)[1]


def stall(rounds: int) -> dict[str, Any]:
    """A guest that writes less than staging holds does not notice a store that stands still."""
    plain, stalled = [], []
    with (
        _store_that_can_stall() as store,
        Guest(memory=1024, buffer=16, rest=0, calm=640, mixed=True, disks=()) as guest,
    ):
        meter = Meter(guest)
        for _round in range(rounds):
            plain.append(_one_stall(guest, meter, store, 0))
            stalled.append(_one_stall(guest, meter, store, STALL))
        meter.close()
    without, with_it = (statistics.median(loop for loop, _hwm in each) for each in (plain, stalled))
    memory = max(hwm for _loop, hwm in plain + stalled)
    return {
        "title": f"a store that stands still for {STALL:g} s",
        "figures": {
            "longest_loop_ms_without": [loop for loop, _hwm in plain],
            "longest_loop_ms_with": [loop for loop, _hwm in stalled],
            "hwm_bytes": [hwm for _loop, hwm in plain + stalled],
        },
        "bounds": [
            report.bound("longest loop, ratio", with_it / without, 1.2),
            report.bound("helper's memory, bytes", memory, STAGING + BESIDES),
        ],
    }


def _one_abort(guest: Guest, meter: Meter, image: Path, after: float) -> tuple[float, float]:
    """(until RAM was released, longest step of the witness), ms."""
    capture = _begin(guest, image, compression="none", staging=STAGING)
    event = next(each for each in capture.events if each["event"] == "attached")
    with open(f"/proc/{event['keeper']}/fd/{event['progress']}", "rb") as file:
        progress = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ)
    time.sleep(after)
    since, begun = meter.read().guest_ns, time.monotonic()
    capture.say(request="abort")
    while _PROGRESS.unpack_from(progress)[5] not in _FREE:
        time.sleep(0.0005)
    released = (time.monotonic() - begun) * 1e3
    with contextlib.suppress(CaptureFailed):
        capture.expect("done")
    capture.wait()
    time.sleep(1)
    return released, meter.longest_ms(since)[0]


def abort(rounds: int) -> dict[str, Any]:
    """`abort` at several moments of the sweep of a guest that rewrites its RAM."""
    figures: dict[str, Any] = {}
    released, steps = [], []
    memory = 4096
    with (
        tempfile.TemporaryDirectory(prefix="livesnap-abort-", dir="/var/tmp") as folder,
        Guest(memory=memory, buffer=2861, rest=0, mixed=True, disks=(), thp=False) as guest,
    ):
        meter = Meter(guest)
        for after in (0.0, 0.2, 0.5):
            found = [
                _one_abort(guest, meter, Path(folder) / "ram.lsnap", after)
                for _round in range(rounds)
            ]
            figures[f"after {after:g} s"] = found
            released += [each[0] for each in found]
            steps += [each[1] for each in found]
        meter.close()
    return {
        "title": f"abort, {memory >> 10} GiB in 4 KiB pages",
        "figures": figures,
        "bounds": [
            report.bound("longest released_ms", max(released), 100 + 40 * (memory << 20) / GIB),
            report.bound("longest step_ms of the guest", max(steps), 100),
        ],
    }


def holds(rounds: int) -> dict[str, Any]:
    """How long a thread of the target waits in mmap() for our ioctls."""
    native = REPO / "native"
    tool = native / "build" / "plain" / "tests" / "tools" / "measure_holds"
    subprocess.run(["make", "-s", "-C", str(native), str(tool.relative_to(native))], check=True)
    figures: dict[str, Any] = {}
    longest = 0.0
    for kind in ("small", "huge"):
        figures[kind] = [
            json.loads(
                subprocess.run(
                    [str(tool), "2048", kind], check=True, capture_output=True, text=True
                ).stdout
            )
            for _round in range(rounds)
        ]
        for part in ("protect_ms", "arm_ms", "sweep_ms", "release_ms"):
            longest = max(longest, statistics.median(each[part] for each in figures[kind]))
    return {
        "title": "mmap() of another thread of the target",
        "figures": figures,
        "bounds": [report.bound("longest part, median, ms", longest, 5)],
    }


KINDNESS = {"stall": (stall, 2), "abort": (abort, 3), "holds": (holds, 5)}


def table(name: str, judged: dict[str, Any]) -> str:
    """For people."""
    lines = [f"== {name}: {judged['title']}"]
    lines += [f"  {key}: {value}" for key, value in judged["figures"].items()]
    return "\n".join(lines)
