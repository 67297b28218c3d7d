# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Room for drills: all that run on a host together stay within limits, the others wait."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    StoreError,
    TimedOutError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files, rundir
from ansible_collections.livesnap.qemu.plugins.module_utils._store.locks import GuestLock
from ansible_collections.livesnap.qemu.plugins.module_utils._units import format_size
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.request import Check

#: What a QEMU takes besides the guest's RAM, bytes.
OVERHEAD = 192 << 20
_LOCK, _NOTE, _POLL = "drills", "drill.json", 0.5


def take(about: Check, need: int, cpus: int) -> None:
    """Note that a drill may take so many bytes and processors, when there is room; TimedOutError.

    The note ends with the check's folder, or with this process.
    """
    request = about.request
    deadline = time.monotonic() + request.lock_timeout
    most_cpus = request.drill_cpus or os.cpu_count() or 1
    while True:
        with GuestLock.acquire(_LOCK, {"guest": request.guest}, request.lock_timeout):
            others = _others()
            taken = sum(each["bytes"] for each in others)
            busy = sum(each["cpus"] for each in others)
            limit = request.drill_memory or taken + available() // 2
            if taken + need <= limit and (not busy or busy + cpus <= most_cpus):
                about.run.write(_NOTE, {**rundir.myself(), "bytes": need, "cpus": cpus})
                return
        # One that is too large for the limit need not wait.
        if need > limit or time.monotonic() > deadline:
            raise TimedOutError(
                f"there is no room for a drill of {request.subject}: it may take"
                f" {format_size(need)} and {cpus} processors, other drills {format_size(taken)} of"
                f" {format_size(limit)}, and {busy} of {most_cpus} processors",
                "raise drill_memory or drill_cpus, or try again when other drills are over",
            )
        time.sleep(_POLL)


def give_back(about: Check) -> None:
    """The drill is over."""
    about.run.write(_NOTE, {})


def _others() -> list[dict[str, Any]]:
    """What drills that run may take."""
    found = []
    for path in (rundir.root() / "verify").glob(f"*/*/{_NOTE}"):
        with contextlib.suppress(StoreError):
            note: dict[str, Any] = files.read_object(path)
            sound = all(isinstance(note.get(key), int) for key in ("bytes", "cpus"))
            if rundir.is_process(note) and sound:
                found.append(note)
    return found


def available() -> int:
    """MemAvailable of this host, bytes."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0
