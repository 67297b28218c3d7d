# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a policy makes of a schedule in the course of time. Pure: nothing is there but times."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Iterable, Iterator, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._retention.decide import (
    REMOVE,
    Decision,
    decide,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.periods import Calendar
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.policy import Policy
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.snapshot import Snapshot


def pruned_each_time(
    taken: Iterable[Snapshot], policy: Policy, calendar: Calendar
) -> Iterator[list[Decision]]:
    """The decisions after each snapshot, of those that were kept so far and the new one.

    In the order in which they are taken, each pruned at the moment that it is of.
    """
    kept: list[Snapshot] = []
    for new in taken:
        decisions = decide([new, *kept], policy, calendar, new.time)
        kept = [each.snapshot for each in decisions if each.decision != REMOVE]
        yield decisions


@dataclass(frozen=True)
class Schedule:
    """Takes a snapshot at the start of each slot: `first`, and every `interval` after it."""

    name: str
    interval: timedelta
    first: datetime
    labels: tuple[str, ...] = ()

    def slots(self, end: datetime) -> int:
        """How many slots begin before an end."""
        return max(0, -(-(end - self.first) // self.interval))


def scheduled(schedules: Sequence[Schedule], end: datetime, guest: str) -> list[Snapshot]:
    """One snapshot a slot of each schedule up to an end, in the order in which they are taken."""
    found = []
    for each in schedules:
        for number in range(each.slots(end)):
            start = each.first + number * each.interval
            name = f"{each.name}-{start:%Y%m%dT%H%MZ}"
            key = f"{guest}/{name}"
            found.append(Snapshot(key, guest, name, start, each.name, each.labels))
    return sorted(found, key=lambda each: (each.time, each.key))


@dataclass
class Outcome:
    """What was taken, what was left of it at the end, and how many there were at most."""

    taken: int = 0
    most: int = 0
    kept: list[Decision] = field(default_factory=list)


def outcome(taken: Iterable[Snapshot], policy: Policy, calendar: Calendar) -> Outcome:
    """Of a schedule that was pruned after each snapshot."""
    found = Outcome()
    for decisions in pruned_each_time(taken, policy, calendar):
        found.taken += 1
        found.kept = [each for each in decisions if each.decision != REMOVE]
        found.most = max(found.most, len(found.kept))
    return found
