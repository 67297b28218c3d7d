# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What many disks, all at one instant, add to the pause. A bound of our own."""

from __future__ import annotations

import statistics
from typing import Any

import report
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import remove_snapshot
from lab import DiskSpec, Guest
from taking import TestStore

COUNT = 8
#: What they may add to the median, by whichever scheme. Milliseconds.
MOST_MS = 15.0
#: Those that need nothing of the file system.
SCHEMES = ("backup", "internal", "overlay")


def disks(rounds: int) -> dict[str, Any]:
    """Snapshots of RAM alone, and with all disks by each scheme, in turns."""
    pauses: dict[str, list[float]] = {name: [] for name in ("none", *SCHEMES)}
    specs = tuple(DiskSpec(format="qcow2") for _disk in range(COUNT))
    store = TestStore()
    try:
        with Guest(name="disks", disks=specs) as guest:
            for number in range(rounds):
                for scheme, found in pauses.items():
                    name = f"{scheme}-{number}"
                    chosen = [{"match": "*", "scheme": scheme}]
                    taken = store.take(guest, name, disks=chosen)
                    found.append(taken["snapshot"]["timings"]["pause_ms"])
                    remove_snapshot(store.spec(guest, name))
    finally:
        store.remove()
    medians = {name: statistics.median(found) for name, found in pauses.items()}
    more = {scheme: medians[scheme] - medians["none"] for scheme in SCHEMES}
    return {
        "title": f"the pause with {COUNT} disks, ms",
        "figures": pauses,
        "bounds": [
            report.bound(f"{scheme}, more than with none", value, MOST_MS)
            for scheme, value in more.items()
        ],
    }
