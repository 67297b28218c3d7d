# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`retention`: how long a store of 10,000 snapshots takes to be read and decided about."""

from __future__ import annotations

import collections
import json
import statistics
import subprocess
import sys
import time
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import report
from ansible_collections.livesnap.qemu.plugins.module_utils import _prune
from ansible_collections.livesnap.qemu.plugins.module_utils._options import argument_spec
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.decide import decide
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.periods import Calendar
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files, manifest, status
from lab import Guest
from taking import TestStore, folder_of

COUNT = 10_000
GUESTS = 10
POLICY = {"keep_hourly": 48, "keep_daily": 30, "keep_weekly": 26, "keep_monthly": 24}
MOST_S, MOST_BYTES = 2.0, 200 << 20


def _multiply(folder: Path, count: int) -> None:
    """As many snapshots as that one, an hour apart, of several guests. Images have sizes alone."""
    fields = manifest.read(folder)
    now = datetime.now(timezone.utc)
    for number in range(count):
        guest, name = f"guest{number % GUESTS}", f"hourly-{number:05}"
        place = folder.parent.parent / guest / name
        (place / "disks").mkdir(parents=True)
        for file, size in manifest.sizes(fields):
            with (place / file).open("wb") as image:
                image.truncate(size)
        created = f"{now - timedelta(hours=number // GUESTS):%Y-%m-%dT%H:%M:%S.%fZ}"
        about = {"guest": guest, "name": name, "id": str(uuid.uuid4()), "created": created}
        (place / manifest.NAME).write_bytes(manifest.encode({**fields, **about}))
        (place / status.NAME).write_text(json.dumps(status.default()))


def measure(store: str) -> dict[str, float]:
    """What it takes this process, once. RuntimeError where a file was read twice."""
    read: collections.Counter[str] = collections.Counter()
    real = files.read_regular

    def counting(path: Path, limit: int) -> bytes:
        read[str(path)] += 1
        return real(path, limit)

    params = {name: about.get("default") for name, about in argument_spec("livesnap_prune").items()}
    request = _prune.PruneRequest.of({**params, "store": store, **POLICY})
    files.read_regular = counting  # type: ignore[assignment]
    begun = time.monotonic()
    found = _prune.read(request, _prune.Store(store), None)
    seen = time.monotonic()
    now = datetime.now(timezone.utc)
    decisions = decide(found.facts.values(), request.policy, Calendar(request.zone), now)
    decided = time.monotonic()
    within = {path: count for path, count in read.items() if path.startswith(store)}
    if set(within.values()) != {1} or len(within) != 2 * len(decisions):
        raise RuntimeError("a file of the store was read twice, or not at all")
    with open("/proc/self/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return {
        "snapshots": len(decisions),
        "read_s": seen - begun,
        "decide_s": decided - seen,
        "cpu_s": time.process_time(),
        "memory_bytes": int(fields["VmHWM"].split()[0]) << 10,
    }


def retention(rounds: int, count: int = COUNT) -> dict[str, Any]:
    """A real snapshot's manifest, many times over; each round in a process of its own."""
    store = TestStore()
    try:
        with Guest(name="model", memory=128, buffer=0) as guest:
            folder = folder_of(store.take(guest, "one", freeze="never"))
        _multiply(folder, count)
        size = (folder / manifest.NAME).stat().st_size
        bench = str(Path(__file__).with_name("bench.py"))
        call = [sys.executable, bench, "measure", str(store.path)]
        figures = [
            json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
            for _round in range(rounds)
        ]
    finally:
        store.remove()
    spent = statistics.median(each["read_s"] + each["decide_s"] for each in figures)
    return {
        "title": f"{count} snapshots of {GUESTS} guests read and decided about; a manifest has"
        f" {size} bytes",
        "figures": {f"round {number + 1}": each for number, each in enumerate(figures)},
        "bounds": [
            report.bound("read and decide, median, s", spent, MOST_S),
            report.bound(
                "memory, bytes", max(each["memory_bytes"] for each in figures), MOST_BYTES
            ),
        ],
    }
