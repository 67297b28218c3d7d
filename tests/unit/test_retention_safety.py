# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No policy, order, crash or repetition removes what something that was kept stands on."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

from ansible_collections.livesnap.qemu.plugins.module_utils._retention.decide import (
    Decision,
    decide,
    needed_by,
    removal_order,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.periods import Calendar
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.policy import Policy
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.snapshot import Snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

UTC = timezone.utc
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
GUESTS = ("g", "h")


@st.composite
def stores(draw: st.DrawFn) -> list[Snapshot]:
    """Snapshots that may stand on any others of their guest: older or newer, or gone."""
    found = []
    for number in range(draw(st.integers(1, 12))):
        guest = draw(st.sampled_from(GUESTS))
        sound = draw(st.integers(0, 7)) > 0
        needs = draw(st.lists(st.integers(-2, number - 1), max_size=2))
        found.append(
            Snapshot(
                key=f"{guest}/{number}",
                guest=guest,
                name=str(number),
                created=NOW - timedelta(hours=draw(st.integers(-2, 400))) if sound else None,
                schedule=draw(st.sampled_from([None, "hourly"])),
                labels=tuple(draw(st.sampled_from([(), ("a",)]))),
                sound=sound,
                problem="" if sound else "was edited",
                pinned=draw(st.integers(0, 9)) == 0,
                verified=draw(st.integers(0, 4)) == 0,
                wanted=draw(st.booleans()),
                needs=tuple(f"{guest}/{each}" for each in needs),
            )
        )
    return found


def policies() -> st.SearchStrategy[Policy]:
    options = st.fixed_dictionaries(
        {},
        optional={
            **{
                f"keep_{name}": st.integers(-1, 3) for name in ("last", "hourly", "daily", "weekly")
            },
            "keep_within": st.sampled_from(["5h", "2d"]),
            "keep_labels": st.just(["a"]),
            "keep_within_daily": st.sampled_from(["30h", "9d"]),
            "keep_when": st.just("x"),
            "group_by": st.sampled_from(["guest", "schedule", "label"]),
            "allow_empty": st.booleans(),
        },
    )
    return options.filter(_not_empty).map(Policy.of)


def _not_empty(options: dict[str, Any]) -> bool:
    return any(options.get(name) for name in options if name.startswith("keep_"))


def judge(snapshots: list[Snapshot], policy: Policy, hours: int = 0) -> list[Decision]:
    return decide(snapshots, policy, Calendar(UTC), NOW + timedelta(hours=hours))


def broken(
    present: dict[str, Snapshot], original: dict[str, Snapshot], stay: set[str]
) -> list[str]:
    """Which of those that are to stay have lost something that they need and that was there."""
    return [
        key
        for key in stay
        for need in needed_by(key, original)
        if need in original and need not in present
    ]


@settings(max_examples=300, deadline=None)
@given(stores(), policies())
def test_decisions_are_complete_and_keep_what_must_stay(
    snapshots: list[Snapshot], policy: Policy
) -> None:
    decisions = judge(snapshots, policy)
    assert sorted(each.snapshot.key for each in decisions) == sorted(each.key for each in snapshots)
    by_key = {each.snapshot.key: each for each in decisions}
    for each in decisions:
        assert each.reasons
        if not each.snapshot.sound:
            assert each.decision == "leave"
        elif each.snapshot.pinned or each.snapshot.time > NOW:
            assert each.decision == "keep"
        if each.decision != "remove":
            for need in needed_by(each.snapshot.key, {one.key: one for one in snapshots}):
                assert need not in by_key or by_key[need].decision != "remove"
    if not policy.allow_empty:
        judged = [each for each in snapshots if each.sound and each.time <= NOW]
        for guest in {each.guest for each in judged}:
            mine = [each for each in judged if each.guest == guest]
            newest = max(each.time for each in mine)
            assert any(by_key[each.key].decision == "keep" for each in mine if each.time == newest)
            verified = [each for each in mine if each.verified]
            assert not verified or any(by_key[each.key].decision == "keep" for each in verified)


@settings(max_examples=300, deadline=None)
@given(stores(), policies(), st.data())
def test_whatever_fails_and_wherever_it_ends_nothing_that_stays_is_broken(
    snapshots: list[Snapshot], policy: Policy, data: st.DataObject
) -> None:
    """Some removals fail, a run ends anywhere, the next ones come later and end anywhere too."""
    original = {each.key: each for each in snapshots}
    present = dict(original)
    hours = 0
    for _run in range(data.draw(st.integers(1, 4))):
        decisions = judge(list(present.values()), policy, hours)
        stay = {each.snapshot.key for each in decisions if each.decision != "remove"}
        order = removal_order(decisions)
        assert {each.key for each in order} == set(present) - stay
        # What was lost in an earlier run is no longer this one's to break.
        at_hand = dict(present)
        end = data.draw(st.integers(0, len(order)))
        spared: set[str] = set()
        for each in order[:end]:
            if each.key in spared:
                continue
            if data.draw(st.integers(0, 4)) == 0:
                spared |= needed_by(each.key, at_hand) | {each.key}
                stay |= {each.key}
                continue
            del present[each.key]
            assert broken(present, at_hand, stay) == []
        hours += data.draw(st.integers(0, 100))


@settings(max_examples=300, deadline=None)
@given(stores(), policies(), st.data())
def test_a_run_that_was_cut_is_finished_as_it_began(
    snapshots: list[Snapshot], policy: Policy, data: st.DataObject
) -> None:
    """At the same moment, without what stands on one another: the same is left in the end."""
    alone = [replace(each, needs=()) for each in snapshots]
    decisions = judge(alone, policy)
    stay = {each.snapshot.key for each in decisions if each.decision != "remove"}
    order = removal_order(decisions)
    gone = {each.key for each in order[: data.draw(st.integers(0, len(order)))]}
    again = judge([each for each in alone if each.key not in gone], policy)
    assert {each.snapshot.key for each in again if each.decision != "remove"} == stay


@given(stores())
def test_what_stands_on_others_goes_before_them(snapshots: list[Snapshot]) -> None:
    policy = Policy.of({"keep_labels": ["z"], "allow_empty": True})
    decisions = judge(snapshots, policy)
    order = [each.key for each in removal_order(decisions)]
    for each in decisions:
        for need in each.snapshot.needs:
            if need in order and each.decision == "remove":
                assert order.index(each.snapshot.key) < order.index(need)
