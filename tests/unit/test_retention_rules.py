# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What retention has beyond restic's rules, and the clocks that those go by."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import RefusedError
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.decide import (
    Decision,
    decide,
    removal_order,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.periods import (
    Calendar,
    Duration,
    parse_time,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.policy import Policy
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.snapshot import (
    Snapshot,
    is_verified,
    snapshot_of,
)

UTC = timezone.utc
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def made(name: str, hours: float, **changed: Any) -> Snapshot:
    """One of guest g, made so many hours ago."""
    options: dict[str, Any] = {"guest": "g", **changed}
    return Snapshot(
        key=f"{options['guest']}/{name}",
        name=name,
        **{"created": NOW - timedelta(hours=hours), **options},
    )


def judged(*snapshots: Snapshot, zone: Any = UTC, **policy: Any) -> dict[str, Decision]:
    found = decide(snapshots, Policy.of(policy), Calendar(zone), NOW)
    return {each.snapshot.name: each for each in found}


def kept(*snapshots: Snapshot, **policy: Any) -> list[str]:
    found = judged(*snapshots, **policy)
    return [name for name, each in found.items() if each.decision == "keep"]


def why(decision: Decision) -> list[str]:
    return [each.text for each in decision.reasons]


@pytest.mark.parametrize(
    "text",
    ["2026-11-23", "2026-11-23T01:00:07+01:00", "2026-11-23T01:00:07", "2026-13-01T00:00:00Z"],
)
def test_times_are_rfc_3339_in_utc(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time(text)
    assert parse_time("2026-11-23T01:00:07.123456789Z") == datetime(
        2026, 11, 23, 1, 0, 7, 123456, tzinfo=UTC
    )


@pytest.mark.parametrize(
    ("text", "moment", "zone", "expected"),
    [
        ("1m", "2025-03-31T12:00:00Z", "UTC", "2025-03-03T12:00:00Z"),
        ("1y", "2024-02-29T12:00:00Z", "UTC", "2023-03-01T12:00:00Z"),
        ("1y5m7d2h", "2026-11-23T01:00:00Z", "UTC", "2025-06-15T23:00:00Z"),
        # A day back over the change to winter time has 25 hours, and over that to summer time 23.
        ("1d", "2025-10-26T12:00:00Z", "Europe/Berlin", "2025-10-25T11:00:00Z"),
        ("1d", "2025-03-30T12:00:00Z", "Europe/Berlin", "2025-03-29T13:00:00Z"),
        ("24h", "2025-10-26T12:00:00Z", "Europe/Berlin", "2025-10-25T12:00:00Z"),
        # 02:30 of 30 March does not exist there.
        ("1d", "2025-03-31T00:30:00Z", "Europe/Berlin", "2025-03-30T01:30:00Z"),
    ],
)
def test_durations_go_by_the_clocks(text: str, moment: str, zone: str, expected: str) -> None:
    found = Duration.parse(text).before(parse_time(moment), ZoneInfo(zone))
    assert found == parse_time(expected)


def test_a_duration_that_reaches_before_all_time_keeps_all() -> None:
    for text in ("3000y", "40000m", "9999999d", "99999999h"):
        assert Duration.parse(text).before(NOW, UTC) is None
        assert kept(made("a", 0), made("b", 90000), keep_within=text) == ["a", "b"]


def test_an_hour_that_passes_twice_is_one_hour() -> None:
    twice = [
        Snapshot(key=name, guest="g", name=name, created=parse_time(f"2025-10-26T{hour}:30:00Z"))
        for name, hour in (("cest", "00"), ("cet", "01"))
    ]
    assert kept(*twice, keep_hourly=9, zone=ZoneInfo("Europe/Berlin")) == ["cet", "cest"]
    older = made("older", 24 * 500)
    assert kept(*twice, older, keep_hourly=9, zone=ZoneInfo("Europe/Berlin")) == ["cet", "older"]
    assert kept(*twice, older, keep_hourly=9) == ["cet", "cest", "older"]


def test_the_zone_decides_which_day_it_is() -> None:
    # 23:30 in Berlin, and half an hour after midnight.
    late = [
        Snapshot(key=text, guest="g", name=text, created=parse_time(text))
        for text in ("2026-11-22T22:30:00Z", "2026-11-22T23:30:00Z")
    ]
    older = made("older", 24 * 30)
    assert len(kept(*late, older, keep_daily=9)) == 2
    assert len(kept(*late, older, keep_daily=9, zone=ZoneInfo("Europe/Berlin"))) == 3


# Tuesday, 24 November 2026, noon.
HISTORY = (
    "2026-11-24T11:50",
    "2026-11-24T11:10",
    "2026-11-24T10:50",
    "2026-11-23T23:00",
    "2026-11-23T09:00",
    "2026-11-22T12:30",
    "2026-11-22T11:00",
    "2026-11-02T12:00",
    "2026-10-31T12:00",
    "2025-12-31T12:00",
    "2025-06-01T12:00",
)


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        ("keep_last", 3, [0, 1, 2]),
        ("keep_last", -1, [*range(11)]),
        ("keep_last", 99, [*range(11)]),
        ("keep_hourly", 3, [0, 2, 3]),
        ("keep_hourly", -1, [0, *range(2, 11)]),
        ("keep_daily", 3, [0, 3, 5]),
        ("keep_daily", 8, [0, 3, 5, 7, 8, 9, 10]),
        ("keep_weekly", 3, [0, 5, 7]),
        ("keep_weekly", 4, [0, 5, 7, 8]),
        ("keep_monthly", 2, [0, 8]),
        ("keep_monthly", 4, [0, 8, 9, 10]),
        ("keep_yearly", 1, [0]),
        ("keep_yearly", 3, [0, 9, 10]),
        ("keep_within", "1h", [0, 1]),
        ("keep_within", "2d", [0, 1, 2, 3, 4, 5]),
        ("keep_within_hourly", "1d", [0, 2, 3]),
        ("keep_within_daily", "2d", [0, 3, 5]),
        ("keep_within_weekly", "1m", [0, 5, 7, 8]),
        ("keep_within_monthly", "1y", [0, 8, 9]),
        ("keep_within_yearly", "2y", [0, 9, 10]),
    ],
)
def test_each_rule_by_itself(rule: str, value: Any, expected: list[int]) -> None:
    history = [
        Snapshot(
            key=f"{number:02}", guest="g", name=f"{number:02}", created=parse_time(f"{text}:00Z")
        )
        for number, text in enumerate(HISTORY)
    ]
    assert [int(name) for name in kept(*history, **{rule: value})] == expected
    found = judged(*history, **{rule: value})
    for number in expected:
        assert any(text.startswith(rule) for text in why(found[f"{number:02}"]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"keep_last": 0},
        {"keep_within": ""},
        {"keep_within": "0h"},
        {"keep_labels": []},
        {"allow_empty": True},
        {"group_by": "schedule"},
        {"keep_when": ""},
    ],
)
def test_an_empty_policy_is_an_error(options: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match="policy is empty"):
        Policy.of(options)
    with pytest.raises(RefusedError, match="policy is empty"):
        decide([made("a", 1)], Policy(), Calendar(UTC), NOW)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_daily": -2}, "keep_daily '-2'"),
        ({"keep_daily": True}, "keep_daily 'True'"),
        ({"keep_within_daily": "2 weeks"}, "keep_within_daily '2 weeks'"),
        ({"keep_last": 1, "group_by": "owner"}, "group_by 'owner'"),
    ],
)
def test_what_makes_no_sense_is_quoted(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        Policy.of(options)


def test_newest_and_newest_verified_stay_unless_allowed() -> None:
    snapshots = (made("a", 1), made("b", 2, verified=True), made("c", 3, verified=True))
    found = judged(*snapshots, keep_labels=["x"])
    assert why(found["a"]) == ["the newest complete one"]
    assert why(found["b"]) == ["the newest verified one"]
    assert found["c"].decision == "remove"
    assert why(found["c"]) == ["no rule keeps it"]
    assert kept(*snapshots, keep_labels=["x"], allow_empty=True) == []


def test_what_is_not_sound_is_left_and_takes_no_slot() -> None:
    broken = made("broken", 0.5, created=None, sound=False, problem="was edited", pinned=True)
    making = made("making", 0, created=None, sound=False, problem="in the making")
    found = judged(broken, making, made("a", 1), made("b", 2), made("c", 3), keep_last=2)
    assert [each.decision for each in found.values()] == [
        "leave",
        "leave",
        "keep",
        "keep",
        "remove",
    ]
    assert why(found["broken"]) == ["was edited"]


def test_what_is_dated_in_the_future_stays_and_takes_no_slot() -> None:
    found = judged(made("later", -1), made("a", 1), made("b", 2), keep_last=1, keep_within="1h")
    assert [each.decision for each in found.values()] == ["keep", "keep", "remove"]
    assert why(found["later"]) == ["dated in the future: 2026-11-24T13:00:00+00:00"]
    assert why(found["a"]) == ["keep_within 1h", "keep_last", "the newest complete one"]


def test_pinned_held_and_wanted_stay_and_take_their_slots() -> None:
    snapshots = (
        made("a", 1, pinned=True),
        made("b", 2, held="a clone stands on it"),
        made("c", 3, wanted=True),
        made("d", 4),
    )
    found = judged(*snapshots, keep_last=1)
    assert why(found["a"]) == ["keep_last", "the newest complete one", "pinned"]
    assert why(found["b"]) == ["a clone stands on it"]
    assert [each.decision for each in found.values()] == ["keep", "keep", "remove", "remove"]
    assert kept(*snapshots, keep_when="x") == ["a", "b", "c"]


def test_what_a_kept_one_needs_stays_and_says_for_which() -> None:
    base, middle = made("base", 9), made("middle", 8, needs=("g/base",))
    top = made("top", 7, needs=("g/middle", "g/nowhere"), pinned=True)
    found = judged(base, middle, top, made("new", 1), made("old", 20), keep_last=1)
    assert why(found["middle"]) == ["'top' needs it"]
    assert why(found["base"]) == ["'middle' needs it"]
    assert found["old"].decision == "remove"
    torn = made("torn", 7, needs=("g/middle",), sound=False, problem="x", created=None)
    assert why(judged(base, middle, torn, made("new", 1), keep_last=1)["base"]) == [
        "'middle' needs it"
    ]


def test_a_ring_ends() -> None:
    ring = [made(name, 1, needs=(f"g/{need}",)) for name, need in ("ab", "bc", "ca")]
    decisions = decide(
        ring, Policy.of({"keep_labels": ["x"], "allow_empty": True}), Calendar(UTC), NOW
    )
    assert {each.name for each in removal_order(decisions)} == set("abc")
    assert len(kept(*ring, keep_last=1)) == 3


def test_labels_as_restic_has_tags() -> None:
    snapshots = (
        made("none", 1),
        made("a", 2, labels=("a",)),
        made("ab", 3, labels=("a", "b")),
        made("c", 4, labels=("c",)),
    )
    assert kept(*snapshots, keep_labels=["a"], allow_empty=True) == ["a", "ab"]
    assert kept(*snapshots, keep_labels=["a, b", "c"], allow_empty=True) == ["ab", "c"]
    assert kept(*snapshots, keep_labels=[""], allow_empty=True) == ["none"]


def test_groups_never_mix_guests() -> None:
    snapshots = [
        made(
            f"{guest}-{schedule}-{number}",
            number + 1,
            guest=guest,
            schedule=schedule,
            labels=(schedule,),
        )
        for guest in ("g", "h")
        for schedule in ("daily", "hourly")
        for number in range(3)
    ]
    assert len(kept(*snapshots, keep_last=1)) == 2
    for group_by in ("schedule", "label"):
        assert kept(*snapshots, keep_last=1, group_by=group_by) == [
            "g-daily-0",
            "g-hourly-0",
            "h-daily-0",
            "h-hourly-0",
        ]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], False),
        ([{"level": "structure", "result": "passed"}], True),
        (["structure"], False),
        (
            [
                {"level": "structure", "result": "failed"},
                {"level": "structure", "result": "passed"},
            ],
            True,
        ),
        (
            [
                {"level": "drill", "result": "failed"},
                {"level": "structure", "result": "passed"},
            ],
            False,
        ),
        ([{"level": "structure", "result": True}], False),
    ],
)
def test_verified_is_the_newest_verdict_of_each_level(verdicts: list[Any], expected: bool) -> None:
    assert is_verified(verdicts) is expected


def test_facts_come_from_what_info_returns() -> None:
    info: dict[str, Any] = {
        "guest": "g",
        "name": "n",
        "created": "2026-11-23T01:00:07.5Z",
        "schedule": "hourly",
        "labels": ["a"],
        "pinned": False,
        "verdicts": [],
        "complete": True,
        "problem": None,
        "in_progress": None,
    }
    found = snapshot_of(info)
    assert (found.sound, found.key, found.labels) == (True, "g/n", ("a",))
    torn = {**info, "complete": False, "created": None, "problem": "was cut"}
    assert snapshot_of(torn).problem == "was cut"
    making = {**torn, "problem": None, "in_progress": {"percent": 1}}
    assert (snapshot_of(making).sound, snapshot_of(making).problem) == (False, "in the making")
