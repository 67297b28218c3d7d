# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One capture of a guest's RAM: by us, and by QEMU's own background-snapshot, the peer."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from capture_by_hand import give_fd
from lab import Guest
from lab.qmp import QmpClient
from meter import Meter, Reading, Sampler, rate, recovered_at, work_lost
from taking import TestStore, helper
from warm import warm as hold_warm

#: How long the witness is watched before a capture to know its normal rate. Seconds.
BEFORE = 3.0
#: It must work at nine tenths of that rate for so long to count as back. Seconds.
WINDOW = 1.0
PEER_LIMIT = 240.0
#: Bytes a second; the default of 128 MiB/s would measure the limit.
PEER_BANDWIDTH = 1 << 40


@dataclass(frozen=True)
class Taken:
    """What one engine says of one capture, before the witness is asked."""

    pause_ms: float
    protected_s: float | None
    total_s: float
    stored_bytes: int


@dataclass(frozen=True)
class Measure:
    """One capture, as guest and host saw it; None: not looked at where only the pause counts."""

    pause_ms: float
    work_lost_s: float | None
    longest_stall_ms: float | None  # the longest time that the witness' loop took, once through
    longest_step_ms: float | None  # the longest time that 64 pages of it took
    protected_s: float | None
    total_s: float
    stored_bytes: int
    hwm_bytes: int
    cpu_s: float
    #: bytes a second of dd with O_DIRECT, just before and after
    store_rate: float | None = None


def ours(guest: Guest, store: TestStore, **options: Any) -> Taken:
    """Module livesnap's own code, with RAM and device state, without disks."""
    result = store.take(guest, "bench", agent_socket=None, freeze="never", **options)["snapshot"]
    timings, memory = result["timings"], result["memory"]
    return Taken(
        timings["pause_ms"], timings["protected_s"], timings["total_s"], memory["stored_bytes"]
    )


def _moment(event: dict[str, Any]) -> float:
    stamp = event["timestamp"]
    return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6


def _stand_still(qmp: QmpClient) -> None:
    """Once it has its instant, it is sooner done with a guest that does nothing."""
    qmp.wait_event("RESUME", PEER_LIMIT)
    qmp.execute("stop")


def _wait_for_end(qmp: QmpClient) -> None:
    """Until the migration is done; QEMU 7.2 cannot cancel one of this kind and live."""
    deadline = time.monotonic() + PEER_LIMIT
    while True:
        status = qmp.execute("query-migrate", timeout=PEER_LIMIT).get("status")
        if status == "completed":
            return
        if status not in ("setup", "active", "device"):
            raise RuntimeError(f"background-snapshot ended as '{status}'")
        if time.monotonic() > deadline:
            raise RuntimeError(f"background-snapshot is not done after {PEER_LIMIT:g} s")
        time.sleep(0.05)


def peer(guest: Guest, store: TestStore, pause_only: bool = False) -> Taken:
    """QEMU's background-snapshot into a file of the same store; its total is without fsync."""
    path = Path("/dev/null")
    if not pause_only:
        path = store.path / "peer" / "stream"
        path.parent.mkdir()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        give_fd(guest, "bench-peer", fd)
        with guest.look(timeout=PEER_LIMIT) as qmp:
            capability = {"capability": "background-snapshot", "state": True}
            qmp.execute("migrate-set-capabilities", {"capabilities": [capability]})
            qmp.execute("migrate-set-parameters", {"max-bandwidth": PEER_BANDWIDTH})
            begun = time.monotonic()
            qmp.execute("migrate", {"uri": "fd:bench-peer"})
            if pause_only:
                _stand_still(qmp)
            _wait_for_end(qmp)
            total = time.monotonic() - begun
            if pause_only:
                qmp.execute("cont")
            moments: dict[str, float] = {}
            for event in qmp.events():
                moments.setdefault(event["event"], _moment(event))
        stored = os.fstat(fd).st_size
    finally:
        os.close(fd)
    return Taken((moments["RESUME"] - moments["STOP"]) * 1e3, None, total, stored)


def measure(
    guest: Guest, meter: Meter, take: Callable[[], Taken], warm: int, pause_only: bool = False
) -> Measure:
    """One capture while the witness is watched from before its start until it is back at work.

    `warm`: so many bytes of the memory that it will take were touched just before. `pause_only`:
    the witness is not watched.
    """
    with hold_warm(warm) as give, Sampler(meter, helper()) as sampler:
        time.sleep(0 if pause_only else BEFORE)
        give()
        before = list(sampler.readings)
        cpu = _cpu_of_engine(guest)
        start: Reading = meter.read()
        taken = take()
        cpu = _cpu_of_engine(guest) - cpu
        lost = step = loop = None
        if not pause_only:
            lost = _work_lost(sampler, rate(before), start)
            step, loop = meter.longest_ms(start.guest_ns)
    used = sampler.helper
    return Measure(
        pause_ms=taken.pause_ms,
        work_lost_s=lost,
        longest_stall_ms=loop,
        longest_step_ms=step,
        protected_s=taken.protected_s,
        total_s=taken.total_s,
        stored_bytes=taken.stored_bytes,
        hwm_bytes=used.hwm_bytes,
        cpu_s=used.cpu_s if used.cpu else cpu,
    )


def _work_lost(sampler: Sampler, normal: float, start: Reading) -> float:
    """Until the witness is back at its normal rate, or for 30 s after the capture."""
    end = time.monotonic()
    while (back := recovered_at(sampler.readings, normal, end, WINDOW)) >= sampler.readings[-1].at:
        if time.monotonic() > end + 30:
            break
        time.sleep(0.2)
    return work_lost(sampler.readings, normal, start.at, back)


def _cpu_of_engine(guest: Guest) -> float:
    """CPU seconds of QEMU's threads other than its vCPUs: there the peer does its work."""
    total = _ticks(Path(f"/proc/{guest.pid}/stat"))
    for task in Path(f"/proc/{guest.pid}/task").iterdir():
        if (task / "comm").read_text().startswith("CPU "):
            total -= _ticks(task / "stat")
    return total / os.sysconf("SC_CLK_TCK")


def _ticks(stat: Path) -> int:
    words = stat.read_text().rpartition(")")[2].split()
    return int(words[11]) + int(words[12])
