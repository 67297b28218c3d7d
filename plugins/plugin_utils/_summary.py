# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What came of a run, guest by guest, as an operator reads it. Pure.

Private to this collection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

#: In the order of the summary: what needs somebody comes last, where it is seen.
OUTCOMES = ("taken", "predicted", "unchanged", "skipped", "failed")
TIMED_OUT = (
    "it did not end within {limit} s, and was ended on the hypervisor; if its instant had passed, "
    "the snapshot completes on its own, and livesnap_info shows it"
)
OUTSIDE = "its turn came outside of the time window"


def outcome(result: Mapping[str, Any], guest: str) -> dict[str, Any]:
    """A module's result, of success or failure, as one line's worth of it."""
    found: dict[str, Any] = {"guest": str(guest), "outcome": "failed", "reason": ""}
    snapshot = result.get("snapshot")
    if result.get("skipped"):
        # Of a task that was skipped by its condition Ansible says that, and no more.
        said = None if "false_condition" in result else result.get("skip_reason")
        return {**found, "outcome": "skipped", "reason": said or OUTSIDE}
    if result.get("failed") or snapshot is None:
        found["reason"] = _reason(result)
        return found
    kind = "unchanged"
    if any(str(action).startswith("took ") for action in result.get("actions", [])):
        kind = "predicted" if snapshot.get("id") is None else "taken"
    timings = snapshot.get("timings") or {}
    memory = snapshot.get("memory") or {}
    parts = [memory, *(snapshot.get("disks") or [])]
    longest = (memory.get("fault_us") or {}).get("max")
    return {
        **found,
        "outcome": kind,
        "snapshot": snapshot.get("name"),
        "id": snapshot.get("id"),
        "level": (snapshot.get("consistency") or {}).get("level"),
        "freeze_ms": timings.get("freeze_ms"),
        "pause_ms": timings.get("pause_ms"),
        "stall_ms": None if longest is None else round(longest / 1000, 3),
        "total_s": timings.get("total_s"),
        "stored_bytes": sum(int(part.get("stored_bytes") or 0) for part in parts),
    }


def _reason(result: Mapping[str, Any]) -> str:
    limit = (result.get("timedout") or {}).get("period")
    if limit or result.get("msg") == "Timeout exceeded":
        return TIMED_OUT.format(limit=limit or "its limit of")
    return str(result.get("msg") or "no reason given")


def line(one: Mapping[str, Any]) -> str:
    """One guest's."""
    if one["outcome"] == "failed":
        return f"FAILED     {one['guest']}: {one['reason']}"
    if one["outcome"] == "skipped":
        return f"skipped    {one['guest']}: {one['reason']}"
    said = [f"{one['outcome']:<10} {one['guest']}: {one['snapshot']}, {one['level']}"]
    for key, what in (("freeze_ms", "frozen"), ("pause_ms", "paused"), ("stall_ms", "stalled")):
        if one[key] is not None:
            said.append(f"{what} {one[key]:.1f} ms")
    said.append(f"{one['stored_bytes'] / (1 << 20):.1f} MiB")
    if one["total_s"] is not None:
        said.append(f"{one['total_s']:.1f} s")
    return ", ".join(said)


def allowed(policy: str) -> float:
    """The share of guests that may fail, in percent. ValueError for what is no policy."""
    if policy == "any":
        return 0.0
    if policy == "none":
        return 100.0
    found = re.fullmatch(r"([0-9]{1,3})\s*%", policy)
    if not found or int(found.group(1)) > 100:
        raise ValueError(f"'{policy}' is not any, none or a percentage from 0% to 100%")
    return float(found.group(1))


def summary(outcomes: Sequence[Mapping[str, Any]], policy: str = "any") -> dict[str, Any]:
    """{lines, failures, failed, counts, counted, guests} of a run.

    `lines` has one a guest, failures last; `failed` tells whether the run as a whole is;
    `counted` is for metrics, `guests` for whoever looks one up.
    """
    share = allowed(str(policy))
    ordered = sorted(outcomes, key=lambda one: OUTCOMES.index(one["outcome"]))
    counts = {kind: sum(one["outcome"] == kind for one in ordered) for kind in OUTCOMES}
    broken = counts["failed"]
    return {
        "lines": [line(one) for one in ordered],
        "failures": [
            f"{one['guest']}: {one['reason']}" for one in ordered if one["outcome"] == "failed"
        ],
        "failed": broken > 0 and 100.0 * broken / len(ordered) > share,
        "counts": counts,
        "counted": [{key: one[key] for key in ("guest", "outcome")} for one in ordered],
        "guests": {one["guest"]: dict(one) for one in ordered},
    }
