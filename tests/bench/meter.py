# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much the witness of a guest works, read out of the guest's memory from outside.

Reading does not disturb: no agent, no interrupt, and write protection does not hold up readers.
"""

from __future__ import annotations

import bisect
import os
import re
import struct
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from lab import Guest, LabError

_PAGE = 4096
_MAGIC = 0x4C5357524D303154
_HEAD = struct.Struct("<QQQQ")  # magic, boot, written, last_ns
_SECOND = struct.Struct("<QQQ")  # second, step_ns, loop_ns
_SECONDS = 150


@dataclass(frozen=True)
class Reading:
    """The meter at one moment; `at` is the host's clock in seconds, `guest_ns` the guest's."""

    at: float
    written: int
    guest_ns: int


class Meter:
    """The page of the witness that tests/images/witness.c calls its meter."""

    def __init__(self, guest: Guest) -> None:
        state = guest.witness()
        with guest.look() as qmp:
            text = qmp.hmp(f"gpa2hva {state['meter_gpa']:#x}")
        found = re.search(r" is (0x[0-9a-f]+)", text)
        if not state["meter_gpa"] or not found:
            raise LabError(f"the witness' meter cannot be found: {text}")
        self._address = int(found.group(1), 16)
        self._memory = os.open(f"/proc/{guest.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        magic, boot, _written, _last = _HEAD.unpack_from(self._page())
        if magic != _MAGIC or boot != int(state["boot"], 16):
            raise LabError("there is no meter where the witness says it is")

    def _page(self) -> bytes:
        return os.pread(self._memory, _PAGE, self._address)

    def read(self) -> Reading:
        """How many pages it has written so far."""
        data = os.pread(self._memory, _HEAD.size, self._address)
        _magic, _boot, written, last = _HEAD.unpack(data)
        return Reading(time.monotonic(), written, last)

    def longest_ms(self, since_ns: int) -> tuple[float, float]:
        """The longest step and the longest loop that ended since then, by the guest's clock.

        A step is 64 pages, a loop the whole buffer once. That clock stands still with the guest:
        the pause of a snapshot is not in it.
        """
        page = self._page()
        _magic, _boot, _written, last = _HEAD.unpack_from(page)
        longest_step = longest_loop = 0
        for number in range(_SECONDS):
            second, step, loop = _SECOND.unpack_from(page, _HEAD.size + number * _SECOND.size)
            if since_ns // 10**9 <= second <= last // 10**9:
                longest_step, longest_loop = max(longest_step, step), max(longest_loop, loop)
        return longest_step / 1e6, longest_loop / 1e6

    def close(self) -> None:
        """Ends it."""
        os.close(self._memory)


@dataclass
class Helper:
    """What a helper used; bytes and seconds."""

    hwm_bytes: int = 0  # keeper's VmHWM, staging included, and the writer's own memory
    cpu: dict[int, float] = field(default_factory=dict)

    @property
    def cpu_s(self) -> float:
        """Seconds of CPU of all its processes."""
        return sum(self.cpu.values())


def _status(pid: int, *names: str) -> list[int]:
    text = Path(f"/proc/{pid}/status").read_text()
    return [
        int(re.search(rf"^{name}:\s*(\d+) kB", text, re.M).group(1)) << 10  # type: ignore[union-attr]
        for name in names
    ]


class Sampler:
    """Reads the meter fifty times a second and the helpers' memory ten times, until stopped."""

    def __init__(self, meter: Meter, helper: str) -> None:
        self.readings: list[Reading] = []
        self.helper = Helper()
        self._program = os.path.realpath(helper)
        self._meter = meter
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        count = 0
        while not self._stop.wait(0.02):
            self.readings.append(self._meter.read())
            if count % 5 == 0:
                self._look_at_helpers()
            count += 1

    def _look_at_helpers(self) -> None:
        """The keeper and its child, the writer, which maps the same staging memory."""
        total = 0
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                argv = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                if (
                    b"capture" not in argv[1:2]
                    or os.readlink(f"/proc/{entry}/exe") != self._program
                ):
                    continue
                pid = int(entry)
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                if name == "livesnap-writer":
                    total += _status(pid, "RssAnon")[0]
                else:
                    total += _status(pid, "VmHWM")[0]
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks = int(stat[11]) + int(stat[12])
                self.helper.cpu[pid] = ticks / os.sysconf("SC_CLK_TCK")
            except (OSError, AttributeError):
                continue  # it has just ended
        self.helper.hwm_bytes = max(self.helper.hwm_bytes, total)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_unused: object) -> None:
        self._stop.set()
        self._thread.join()


def rate(readings: list[Reading]) -> float:
    """Pages a second from the first reading to the last."""
    first, last = readings[0], readings[-1]
    return (last.written - first.written) / (last.at - first.at)


def recovered_at(readings: list[Reading], normal: float, since: float, window: float) -> float:
    """When it was back at nine tenths of the normal rate, for a whole window after `since`.

    The time of the last reading if it never was.
    """
    readings = list(readings)  # it grows meanwhile
    times = [reading.at for reading in readings]
    for start in range(bisect.bisect_left(times, since), len(readings)):
        end = bisect.bisect_left(times, times[start] + window)
        if end >= len(readings):
            break
        if rate(readings[start : end + 1]) >= 0.9 * normal:
            return times[start]
    return times[-1]


def work_lost(readings: list[Reading], normal: float, start: float, end: float) -> float:
    """Seconds of normal work that were not done between two times of the host's clock."""
    times = [reading.at for reading in readings]
    first = readings[max(0, bisect.bisect_right(times, start) - 1)]
    last = readings[min(len(readings) - 1, bisect.bisect_left(times, end))]
    done = last.written - first.written
    return max(0.0, (last.at - first.at) - done / normal)
