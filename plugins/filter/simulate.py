# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: simulate
short_description: What a policy keeps of the snapshots of schedules, in the course of time
version_added: 0.1.0
author:
  - The livesnap authors (@livesnap)
description:
  - Lets schedules take snapshots that do not exist, prunes after each of them as M(livesnap.qemu.livesnap_prune) would, and tells what
    is left at the end. Nothing is touched, on no host.
  - C(keep_when) of a policy is left out. It asks for what only real snapshots have.
positional: schedules, start, days, timezone
options:
  _input:
    description: The policy. Options of M(livesnap.qemu.livesnap_prune), those of C(keep_) and C(group_by).
    type: dict
    required: true
  schedules:
    description: Schedules, each with a C(name), an C(interval) such as V(1h) or V(1d), and C(labels) if its snapshots get any.
    type: list
    elements: dict
    required: true
  start:
    description: When they begin, as a slot in UTC, such as V(20260101T0000Z).
    type: str
    required: true
  days:
    description: How many days they run.
    type: int
    default: 365
  timezone:
    description: The time zone in which hours, days, weeks, months and years begin.
    type: str
    default: UTC
"""

EXAMPLES = r"""
- name: Show what a week of hourly snapshots comes to
  ansible.builtin.debug:
    msg: "{{ (policy | livesnap.qemu.simulate([{'name': 'hourly', 'interval': '1h'}], '20260101T0000Z', 7)).table }}"
  vars:
    policy: {keep_hourly: 6, keep_daily: 7}
"""

RETURN = r"""
_value:
  description: What is left at the end.
  type: dict
  contains:
    taken:
      description: How many snapshots were taken.
      type: int
      sample: 168
    most:
      description: How many there were at most at the same time, after pruning.
      type: int
      sample: 12
    kept:
      description: What is left, the newest first, each with its C(name), C(created) and C(reasons).
      type: list
      elements: dict
      sample: [{"name": "hourly-20260107T2300Z", "created": "2026-01-07T23:00:00Z", "reasons": ["keep_hourly", "keep_daily"]}]
    table:
      description: The same as lines of text.
      type: list
      elements: str
      sample: ["168 snapshots taken, 12 left at the end, 12 at most"]
    svg:
      description: The same as a picture, the snapshots that are left on axes of time.
      type: str
      sample: <svg xmlns="http://www.w3.org/2000/svg"></svg>
"""

from datetime import datetime, timedelta
from typing import Any, Callable, Mapping, Sequence

from ansible.errors import AnsibleFilterError

from ..module_utils._errors import LivesnapError
from ..module_utils._options import KEEP
from ..module_utils._retention.periods import Calendar
from ..module_utils._retention.policy import Policy
from ..module_utils._retention.simulate import Outcome, Schedule, outcome, scheduled
from ..module_utils._retention.svg import draw
from ..module_utils._retention.table import lines
from ..module_utils._zones import zone_of
from ..plugin_utils._slots import parse_interval, parse_slot, slot_of

#: More would take minutes.
MOST_SNAPSHOTS = 100000


def simulate(
    policy: Mapping[str, Any],
    schedules: Sequence[Mapping[str, Any]],
    start: str,
    days: int = 365,
    timezone: str = "UTC",
) -> dict[str, Any]:
    """See DOCUMENTATION."""
    try:
        zone = zone_of(timezone)
        rules = Policy.of(_typed(policy))
        begin = parse_slot(start)
        end = begin + timedelta(days=int(days))
        known = [_schedule(each, begin) for each in schedules]
        count = sum(each.slots(end) for each in known)
        if not 0 < count <= MOST_SNAPSHOTS:
            raise ValueError(f"{count} snapshots: from 1 to {MOST_SNAPSHOTS} can be simulated")
        found = outcome(scheduled(known, end, "guest"), rules, Calendar(zone))
    except (LivesnapError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise AnsibleFilterError(f"livesnap.qemu.simulate: {error}") from error
    title = _title(found)
    return {
        "taken": found.taken,
        "most": found.most,
        "kept": [
            {
                "name": each.snapshot.name,
                "created": f"{each.snapshot.time:%Y-%m-%dT%H:%M:%SZ}",
                "reasons": [reason.text for reason in each.reasons],
            }
            for each in found.kept
        ],
        "table": [title, *_table(found, end, Calendar(zone))],
        "svg": draw(found.kept, begin, end, zone, title),
    }


def _typed(policy: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers that came as text, as those of a command line do."""
    types = {each.name: each.type for each in KEEP if each.name.startswith("keep_")}
    unknown = [name for name in policy if name not in types and name != "group_by"]
    if unknown:
        raise ValueError(f"a policy has no option '{unknown[0]}' here")
    return {
        name: int(value) if types.get(name) == "int" else value
        for name, value in policy.items()
        if name != "keep_when"
    }


def _schedule(given: Mapping[str, Any], begin: datetime) -> Schedule:
    interval = parse_interval(given["interval"])
    first = slot_of(begin, interval)
    if first < begin:
        first += interval
    return Schedule(str(given["name"]), interval, first, tuple(given.get("labels") or ()))


def _title(found: Outcome) -> str:
    left = f"{found.taken} snapshots taken, {len(found.kept)} left at the end"
    return f"{left}, {found.most} at most"


def _table(found: Outcome, end: datetime, calendar: Calendar) -> list[str]:
    rows = []
    for each in found.kept:
        time = each.snapshot.time
        age = end - time
        local = time.astimezone(calendar.zone)
        reasons = "; ".join(reason.text for reason in each.reasons)
        old = f"{age.days} d {age.seconds // 3600} h"
        rows.append((each.snapshot.name, f"{local:%a %Y-%m-%d %H:%M}", old, reasons))
    return lines(rows, ("SNAPSHOT", "TAKEN", "AGE", "REASONS"))


class FilterModule:
    """What Ansible asks for filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {"simulate": simulate}
