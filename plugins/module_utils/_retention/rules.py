# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of `restic forget` 0.18, applied to one group of snapshots. Pure.

Documentation: https://restic.readthedocs.io/en/v0.18.0/060_forget.html. A rule goes through the
group from the newest to the oldest and keeps the first that it meets of each period. While a rule
has some left to keep, or has no limit, it also keeps the oldest of all, so that the history reaches
back as far as it can.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Iterator, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._retention.periods import (
    Calendar,
    Duration,
    Period,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.policy import (
    COUNTS,
    WITHIN,
    Policy,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.snapshot import Snapshot


@dataclass(frozen=True)
class Reason:
    """Why a snapshot stays: `rule` is a word for programs, `text` is for people."""

    rule: str
    text: str


def apply_rules(
    group: Sequence[Snapshot], policy: Policy, calendar: Calendar
) -> list[list[Reason]]:
    """Reasons to keep each of a group, whose newest is first and none of which is in the future."""
    reasons: list[list[Reason]] = [[] for _snapshot in group]
    if not group:
        return reasons
    for at, snapshot in enumerate(group):
        reasons[at] += _own_reasons(snapshot, policy)
    times = [snapshot.time for snapshot in group]
    if policy.within:
        reason = Reason("within", f"keep_within {policy.within}")
        for at in range(_reach(times, policy.within, calendar)):
            reasons[at].append(reason)
    periods = [calendar.periods(time) for time in times]
    for place, (name, count) in enumerate(zip(COUNTS, policy.counts)):
        if count:
            keys: list[Period] = (
                # Each is a period of its own.
                [(at,) for at in range(len(group))]
                if name == "last"
                else [each[place - 1] for each in periods]
            )
            of_rule = _reasons(name, f"keep_{name}")
            for at, oldest in _first_of_each(keys, count, len(group)):
                reasons[at].append(of_rule[oldest])
    for place, (name, length) in enumerate(zip(WITHIN, policy.within_periods)):
        if length:
            keys = [each[place] for each in periods]
            of_rule = _reasons(f"within_{name}", f"keep_within_{name} {length}")
            for at, oldest in _first_of_each(keys, -1, _reach(times, length, calendar)):
                reasons[at].append(of_rule[oldest])
    return reasons


def _own_reasons(snapshot: Snapshot, policy: Policy) -> Iterator[Reason]:
    for labels in policy.labels:
        if has_labels(snapshot, labels):
            yield Reason("labels", f"keep_labels {','.join(labels) or 'none'}")
    if policy.when and snapshot.wanted:
        yield Reason("when", "keep_when")


def has_labels(snapshot: Snapshot, labels: Sequence[str]) -> bool:
    """Whether it has them all; '' is right for one that has none, and ends the look."""
    for label in labels:
        if not label and not snapshot.labels:
            return True
        if label not in snapshot.labels:
            return False
    return True


def _first_of_each(keys: Sequence[Period], count: int, reach: int) -> Iterator[tuple[int, bool]]:
    """(place, whether only because it is the oldest) of those that are kept of the first `reach`.

    `count` is how many at most, -1 without a limit.
    """
    seen: Optional[Period] = None
    for at in range(reach):
        if count == 0:
            return
        first, oldest = keys[at] != seen, at == len(keys) - 1
        if first or oldest:
            yield at, not first
            seen = keys[at]
            count -= count > 0


def _reach(times: Sequence[datetime], length: Duration, calendar: Calendar) -> int:
    """How many of a group are less than so long before its newest."""
    start = length.before(times[0], calendar.zone)
    if start is None:
        return len(times)
    return next((at for at, time in enumerate(times) if time <= start), len(times))


def _reasons(rule: str, text: str) -> tuple[Reason, Reason]:
    """What a rule says of one that it keeps, and of one that it keeps as the oldest."""
    return Reason(rule, text), Reason(rule, f"{text} (the oldest)")
