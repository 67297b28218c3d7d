# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a store holds and how the last run went, as metrics in Prometheus' text format.

Moments are seconds since 1970, not ages: how old they are is for who reads them to say, because a
file that nobody writes any more would show an age that stands still.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._changes import Changes
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    RefusedError,
    StoreError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files, listing
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.verdict import PASSED

#: Read by the node exporter, which runs as a user of its own.
_MODE = 0o644
_LIMIT = 16 << 20
OUTCOMES = ("taken", "unchanged", "skipped", "failed")
#: Name -> (kind, help). In this order in the file.
METRICS: dict[str, tuple[str, str]] = {
    "livesnap_last_run_timestamp_seconds": ("gauge", "When a run that takes snapshots last ended."),
    "livesnap_runs_total": ("counter", "What runs came to for a guest, by outcome."),
    "livesnap_last_run_failed": ("gauge", "1 if the guest got no snapshot in its last run."),
    "livesnap_snapshots": ("gauge", "Complete snapshots of a guest."),
    "livesnap_damaged_snapshots": ("gauge", "Snapshots whose files are not what they should be."),
    "livesnap_last_snapshot_timestamp_seconds": (
        "gauge",
        "The instant of the newest complete snapshot.",
    ),
    "livesnap_last_snapshot_freeze_seconds": ("gauge", "How long file systems were frozen."),
    "livesnap_last_snapshot_pause_seconds": ("gauge", "How long the guest stood still."),
    "livesnap_last_snapshot_stall_seconds": ("gauge", "The longest wait of one of its writes."),
    "livesnap_last_snapshot_duration_seconds": ("gauge", "How long the whole of it took."),
    "livesnap_last_snapshot_stored_bytes": ("gauge", "What it takes in the store."),
    "livesnap_last_verdict_timestamp_seconds": ("gauge", "The last check of a snapshot."),
    "livesnap_last_verdict_ok": ("gauge", "1 if that check found it sound."),
}
_COUNTED = re.compile(
    r'livesnap_runs_total\{guest="((?:[^"\\\n]|\\.){1,512})",outcome="([a-z]+)"\} ([0-9]{1,15})'
)
_LAST = re.compile(r"livesnap_last_run_timestamp_seconds ([0-9]{1,15})")
_FAILED = re.compile(r'livesnap_last_run_failed\{guest="((?:[^"\\\n]|\\.){1,512})"\} ([01])')


@dataclass
class Runs:
    """What is known of runs, beyond what a store tells: it is carried on from file to file."""

    counted: dict[tuple[str, str], int] = field(default_factory=dict)
    failed: dict[str, bool] = field(default_factory=dict)
    #: When the last one ended, seconds since 1970.
    last: Optional[int] = None

    @classmethod
    def of_text(cls, text: str) -> Runs:
        """Of an earlier file; lines of anybody else's are passed over. Pure."""
        found = cls()
        for line in text.splitlines():
            counted, failed = _COUNTED.fullmatch(line), _FAILED.fullmatch(line)
            last = _LAST.fullmatch(line)
            if counted and counted.group(2) in OUTCOMES:
                found.counted[_plain(counted.group(1)), counted.group(2)] = int(counted.group(3))
            elif failed:
                found.failed[_plain(failed.group(1))] = failed.group(2) == "1"
            elif last:
                found.last = int(last.group(1))
        return found

    def add(self, outcomes: Sequence[Mapping[str, str]], now: int) -> None:
        """Count a run that ended now. A guest that was skipped did not fail."""
        self.last = now
        for each in outcomes:
            key = (each["guest"], each["outcome"])
            self.counted[key] = self.counted.get(key, 0) + 1
            self.failed[each["guest"]] = each["outcome"] == "failed"


def _plain(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else str(found[1]), text)


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _seconds(moment: Any) -> Optional[float]:
    """Of RFC 3339 in UTC, None for anything else."""
    try:
        return datetime.fromisoformat(str(moment).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def _thousandth(value: Any) -> Optional[float]:
    return value / 1000 if isinstance(value, (int, float)) else None


def stored_bytes(snapshot: Mapping[str, Any]) -> int:
    """What RAM and disks of a snapshot take in the store. Pure."""
    parts = [snapshot.get("memory") or {}, *(snapshot.get("disks") or [])]
    return sum(int(part.get("stored_bytes") or 0) for part in parts)


def of_snapshot(snapshot: Mapping[str, Any]) -> dict[str, Optional[float]]:
    """The metrics of a guest's newest complete one. Pure."""
    timings = snapshot.get("timings") or {}
    stall = ((snapshot.get("memory") or {}).get("fault_us") or {}).get("max")
    prefix = "livesnap_last_snapshot_"
    return {
        prefix + "timestamp_seconds": _seconds(snapshot.get("created")),
        prefix + "freeze_seconds": _thousandth(timings.get("freeze_ms")),
        prefix + "pause_seconds": _thousandth(timings.get("pause_ms")),
        prefix + "stall_seconds": _thousandth(_thousandth(stall)),
        prefix + "duration_seconds": timings.get("total_s"),
        prefix + "stored_bytes": stored_bytes(snapshot),
    }


def of_verdicts(snapshots: Sequence[Mapping[str, Any]]) -> dict[str, Optional[float]]:
    """The metrics of the newest verdict of a guest's snapshots, whichever it is about. Pure."""
    found: list[tuple[float, bool]] = []
    for snapshot in snapshots:
        for verdict in snapshot.get("verdicts") or []:
            at = _seconds(verdict.get("when")) if isinstance(verdict, dict) else None
            if at is not None:
                found.append((at, verdict.get("result") == PASSED))
    if not found:
        return {}
    at, sound = max(found)
    return {
        "livesnap_last_verdict_timestamp_seconds": at,
        "livesnap_last_verdict_ok": float(sound),
    }


def render(snapshots: Sequence[Mapping[str, Any]], runs: Runs) -> str:
    """The whole file, of what a store lists, newest first. Pure."""
    samples: dict[str, list[tuple[str, float]]] = {name: [] for name in METRICS}
    if runs.last is not None:
        samples["livesnap_last_run_timestamp_seconds"] = [("", runs.last)]
    for (guest, outcome), count in sorted(runs.counted.items()):
        labels = f'{{guest="{_label(guest)}",outcome="{outcome}"}}'
        samples["livesnap_runs_total"].append((labels, count))
    for guest, failed in sorted(runs.failed.items()):
        labels = f'{{guest="{_label(guest)}"}}'
        samples["livesnap_last_run_failed"].append((labels, float(failed)))
    for guest in sorted({str(each["guest"]) for each in snapshots}):
        own = [each for each in snapshots if each["guest"] == guest]
        good = [each for each in own if each["complete"]]
        uuid = next((each["uuid"] for each in good if each.get("uuid")), "")
        labels = f'{{guest="{_label(guest)}",uuid="{_label(str(uuid))}"}}'
        values: dict[str, Optional[float]] = {
            "livesnap_snapshots": len(good),
            "livesnap_damaged_snapshots": sum(
                bool(each.get("problem")) and not each["path"].endswith(".partial") for each in own
            ),
            **(of_snapshot(good[0]) if good else {}),
            **of_verdicts(good),
        }
        for name, value in values.items():
            if value is not None:
                samples[name].append((labels, value))
    lines: list[str] = []
    for name, (kind, words) in METRICS.items():
        if samples[name]:
            lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{labels} {_number(value)}" for labels, value in samples[name]]
    return "".join(f"{line}\n" for line in lines)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.6f}"


def write(
    store: str, path: str, outcomes: Optional[Sequence[Mapping[str, str]]], apply: bool
) -> dict[str, Any]:
    """Bring the file up to date, replaced by rename; what module livesnap_metrics returns.

    `outcomes` are those of a run that takes snapshots; None: it was none.
    """
    place = Path(path)
    Store(store).check()
    if not path.startswith("/") or place.suffix != ".prom":
        raise RefusedError(
            f"path '{path}' is not an absolute one that ends in .prom",
            "the node exporter reads no other files",
            "path",
        )
    if not place.parent.is_dir():
        raise RefusedError(
            f"folder '{place.parent}' does not exist on this machine",
            "give the folder that the node exporter has in --collector.textfile.directory",
            "path",
        )
    before = ""
    if place.is_symlink() or place.exists():
        before = files.read_regular(place, _LIMIT).decode("utf-8", "replace")
        if before and not before.startswith("# HELP livesnap_"):
            raise StoreError(f"'{path}' exists, and was not written by livesnap")
    runs = Runs.of_text(before)
    if outcomes is not None:
        runs.add(outcomes, round(time.time()))
    after = render(listing.list_snapshots(store), runs)
    changes = Changes()
    if after == before and place.exists():
        return {**changes.result(), "metrics": after}
    changes.add(f"wrote metrics to '{path}'", path, before, after)
    if apply:
        with files.as_store_error(f"'{path}' cannot be written"):
            files.write_whole(place, after.encode(), _MODE, durable=False)
    return {**changes.result(), "metrics": after}
