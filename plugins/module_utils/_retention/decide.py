# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a policy keeps and removes, why, and in which order. Pure.

Beyond the rules of restic: what is pinned stays, and what is held; what a snapshot that stays
needs; the newest complete and the newest verified one of each group, unless the policy says
allow_empty; what is dated in the future. What is not sound is left alone and uses up no slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Iterable, Iterator, Mapping, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import RefusedError
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.periods import Calendar
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.policy import Policy
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.rules import (
    Reason,
    apply_rules,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.snapshot import Snapshot

KEEP, REMOVE, LEAVE = "keep", "remove", "leave"
#: Words of the reasons that restic does not know.
BEYOND_RESTIC = ("when", "future", "pinned", "held", "newest", "verified", "needed")

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_NO_RULE = Reason("none", "no rule keeps it")


@dataclass(frozen=True)
class Decision:
    """About one snapshot: KEEP, REMOVE, or LEAVE where it was not judged; at least one reason."""

    snapshot: Snapshot
    decision: str
    reasons: tuple[Reason, ...]


def decide(
    snapshots: Iterable[Snapshot], policy: Policy, calendar: Calendar, now: datetime
) -> list[Decision]:
    """A decision about each, newest first within a guest; RefusedError for an empty policy."""
    if policy.empty:
        raise RefusedError("the policy is empty: it would keep nothing", reason="policy")
    ordered = sorted(snapshots, key=_newest_first)
    reasons: dict[str, list[Reason]] = {each.key: [] for each in ordered}
    for group in _groups(ordered, policy.group_by, now):
        for each, found in zip(group, apply_rules(group, policy, calendar)):
            reasons[each.key] += found
        if not policy.allow_empty:
            _guard(group, reasons)
    for each in ordered:
        reasons[each.key] += _of_itself(each, now)
    _keep_what_is_needed(ordered, reasons)
    return [_decision(each, reasons[each.key]) for each in ordered]


def _newest_first(each: Snapshot) -> tuple[str, timedelta, str]:
    # What has no time is in the making, or not sound: it comes first.
    return each.guest, _EPOCH - each.created if each.created else timedelta.min, each.key


def _groups(ordered: Sequence[Snapshot], group_by: str, now: datetime) -> Iterator[list[Snapshot]]:
    """Those that rules are applied to, guest by guest, in the order given."""
    groups: dict[tuple[str, ...], list[Snapshot]] = {}
    for each in ordered:
        if not each.sound or each.created is None or each.created > now:
            continue
        within: tuple[str, ...] = ()
        if group_by == "schedule":
            within = (each.schedule or "",)
        elif group_by == "label":
            within = tuple(sorted(each.labels))
        groups.setdefault((each.guest, *within), []).append(each)
    yield from groups.values()


def _guard(group: Sequence[Snapshot], reasons: Mapping[str, list[Reason]]) -> None:
    reasons[group[0].key].append(Reason("newest", "the newest complete one"))
    verified = next((each for each in group if each.verified), None)
    if verified is not None:
        reasons[verified.key].append(Reason("verified", "the newest verified one"))


def _of_itself(each: Snapshot, now: datetime) -> Iterator[Reason]:
    if not each.sound:
        yield Reason("unsound", each.problem)
        return
    if each.created is None or each.created > now:
        when = each.created.isoformat() if each.created is not None else "an unknown time"
        yield Reason("future", f"dated in the future: {when}")
    if each.pinned:
        yield Reason("pinned", "pinned")
    if each.held:
        yield Reason("held", each.held)


def _keep_what_is_needed(ordered: Sequence[Snapshot], reasons: Mapping[str, list[Reason]]) -> None:
    """All that those which stay stand on, directly or by others, stays with them."""
    known = {each.key: each for each in ordered}
    staying = [each for each in ordered if reasons[each.key]]
    for each in staying:
        for key in each.needs:
            needed = known.get(key)
            if needed is None or needed is each:
                continue
            if not reasons[key]:
                staying.append(needed)
            reasons[key].append(Reason("needed", f"'{each.name}' needs it"))


def _decision(each: Snapshot, reasons: Sequence[Reason]) -> Decision:
    if not reasons:
        return Decision(each, REMOVE, (_NO_RULE,))
    return Decision(each, KEEP if each.sound else LEAVE, tuple(reasons))


def removal_order(decisions: Sequence[Decision]) -> list[Snapshot]:
    """Those to remove, each before all that it needs, otherwise the newest first.

    So a run that ends anywhere leaves nothing without what it needs, and the next one decides as
    this one did: what is gone is what rules passed over, never the oldest that they looked at.
    """
    gone = {each.snapshot.key: each.snapshot for each in decisions if each.decision == REMOVE}
    users: dict[str, list[str]] = {key: [] for key in gone}
    for key, each in gone.items():
        for needed in each.needs:
            if needed in gone:
                users[needed].append(key)
    order: dict[str, Snapshot] = {}
    entered: set[str] = set()
    for start in gone:
        path = [start]
        while path:
            key = path[-1]
            entered.add(key)
            waiting = [user for user in users[key] if user not in entered]
            if waiting:
                path.append(waiting[0])
            else:
                order.setdefault(path.pop(), gone[key])
    return list(order.values())


def needed_by(key: str, snapshots: Mapping[str, Snapshot]) -> set[str]:
    """Keys of all that one needs, directly or by others."""
    found: set[str] = set()
    waiting = [key]
    while waiting:
        each = snapshots.get(waiting.pop())
        for needed in each.needs if each is not None else ():
            if needed not in found:
                found.add(needed)
                waiting.append(needed)
    return found - {key}
