# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures our capture and QEMU's background-snapshot on the same guest, in turns.

usage: bench.py      environment: BENCH=a,b chooses cases; BENCH_ROUNDS=n, fewer or more rounds
Prints a table, writes build/bench.json. Decides over nothing: figures that are missed are shown.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
for entry in ("tests", "tests/guests", "tests/bench"):
    sys.path.insert(0, str(REPO / entry))

import layout  # noqa: E402

layout.link_collection()
sys.path[:0] = [str(REPO), str(layout.COLLECTIONS)]

import disks  # noqa: E402
import engines  # noqa: E402
import kindness  # noqa: E402
import report  # noqa: E402
import retention  # noqa: E402
from cases import CASES, GIB, MIB, Case  # noqa: E402
from lab import Guest  # noqa: E402
from lab.thp import collapse  # noqa: E402
from meter import Meter  # noqa: E402
from taking import TestStore  # noqa: E402

#: How much is written to know how fast the store is.
STORE_SAMPLE = 1 * GIB
#: name -> (what measures it, rounds)
OTHERS = {**kindness.KINDNESS, "disks": (disks.disks, 9), "retention": (retention.retention, 3)}


def store_rate(folder: Path) -> float:
    """Bytes a second of dd with O_DIRECT into the store."""
    path = folder / "rate"
    begun = time.monotonic()
    subprocess.run(
        [
            "dd",
            "if=/dev/zero",
            f"of={path}",
            "bs=2M",
            f"count={STORE_SAMPLE // (2 * MIB)}",
            "oflag=direct",
            "conv=fsync",
            "status=none",
        ],
        check=True,
        timeout=300,
    )
    seconds = time.monotonic() - begun
    path.unlink()
    return STORE_SAMPLE / seconds


def run_case(case: Case, rounds: int) -> dict[str, Any]:
    """All rounds of a case; the engines take turns."""
    print(f"{case.name}: {case.title}: booting and filling the guest", flush=True)
    store = TestStore()
    found: report.Rounds = {report.PEER: [], **{name: [] for name in case.variants}}
    try:
        with Guest(rest=0, **case.guest) as guest:
            meter = Meter(guest)
            rate = None if case.pause_only else store_rate(store.path)
            for number in range(rounds):
                for name in found:
                    collapse(guest)
                    take = functools.partial(engines.peer, guest, store, case.pause_only)
                    if name != report.PEER:
                        take = functools.partial(engines.ours, guest, store, **case.variants[name])
                    measure = engines.measure(guest, meter, take, case.warm(name), case.pause_only)
                    store.forget()
                    if rate is not None:
                        before, rate = rate, store_rate(store.path)
                        measure = replace(measure, store_rate=(before + rate) / 2)
                    found[name].append(measure)
                    print(
                        f"{case.name}: {number + 1} of {rounds}, {name}: {found[name][-1]}",
                        flush=True,
                    )
            meter.close()
    finally:
        store.remove()
    return report.judge(case, found)


def machine() -> dict[str, Any]:
    """Where it was measured."""
    version = subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    return {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "qemu": version,
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    }


def chosen(names: str) -> list[str]:
    """The cases of a list such as "a,b"; all for an empty one. ValueError names what is unknown."""
    known = [case.name for case in CASES] + list(OTHERS)
    wanted = [name for name in names.split(",") if name]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(
            f"BENCH={names}: there is no case {', '.join(unknown)}; there are {', '.join(known)}"
        )
    return wanted or known


def run_one(name: str, rounds: int) -> tuple[dict[str, Any], str]:
    """What was found, and a table of it; rounds 0: as many as the case has."""
    for case in CASES:
        if case.name == name:
            judged = run_case(case, rounds or case.rounds)
            return judged, report.table(name, judged)
    function, usual = OTHERS[name]
    print(f"{name}: measuring", flush=True)
    judged = function(rounds or usual)
    return judged, "\n".join([kindness.table(name, judged), *report.bounds(judged)])


def main() -> int:
    """Exit code 0 whatever the figures; 2 for bad arguments."""
    if sys.argv[1:2] == ["measure"]:
        # One round of `retention`, in a process that has done nothing else.
        print(json.dumps(retention.measure(sys.argv[2])))
        return 0
    try:
        names = chosen(os.environ.get("BENCH", ""))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    results: dict[str, Any] = {"machine": machine(), "cases": {}}
    tables = []
    for name in names:
        begun = time.monotonic()
        results["cases"][name], table = run_one(name, int(os.environ.get("BENCH_ROUNDS", "0")))
        tables.append(table)
        print(f"{name}: {time.monotonic() - begun:.0f} s in all", flush=True)
    out = REPO / "build" / "bench.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n")
    print("\n\n".join(["", *tables, f"{out} has every round."]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
