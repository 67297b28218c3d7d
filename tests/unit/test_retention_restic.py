# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules keep what the real restic 0.18 keeps, and for the same reasons, of any times."""

from __future__ import annotations

import collections
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import debs
import pytest
import restic
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import RefusedError
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.decide import (
    BEYOND_RESTIC,
    decide,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.periods import Calendar
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.policy import Policy
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.snapshot import Snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

UTC = timezone.utc
# One hour of summer time, and half an hour of it in the other hemisphere.
ZONES = ("UTC", "Europe/Berlin", "Australia/Lord_Howe")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LAST = NOW - timedelta(seconds=1)
# Clocks put forward and back in both zones, leap days, ends of years with weeks 52, 53 and 1.
SPECIAL = [
    datetime(*each, tzinfo=UTC)
    for each in (
        (2024, 3, 31, 1),
        (2024, 10, 27, 1),
        (2025, 3, 30, 1),
        (2025, 10, 26, 1),
        (2024, 4, 6, 15),
        (2024, 10, 5, 15, 30),
        (2025, 4, 5, 15),
        (2025, 10, 4, 15, 30),
        (2024, 2, 29),
        (2024, 3, 1),
        (2025, 2, 28, 23),
        (2020, 2, 29, 12),
        (2025, 3, 31, 12),
        (2020, 12, 31, 23),
        (2021, 1, 3, 23),
        (2024, 12, 30),
        (2023, 12, 31, 23),
        (2025, 12, 31),
    )
]
Set = list[tuple[datetime, tuple[str, ...]]]


class Repositories:
    """Copies of an empty one, each in a zone and with sets of its own."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.folder = folder
        self.empty = restic.Repository(program, folder / "empty", "UTC")
        self.filled: dict[Any, tuple[restic.Repository, dict[str, Set]]] = {}

    def with_sets(self, zone: str, sets: dict[str, Set]) -> restic.Repository:
        made = self.empty.copy(self.folder / f"copy{len(list(self.folder.iterdir()))}", zone)
        made.fill(sets)
        return made

    def random(
        self, zone: str, labelled: bool, number: int
    ) -> tuple[restic.Repository, dict[str, Set]]:
        """Of twelve sets, which are others in each run of the tests."""
        key = (zone, labelled, number)
        if key not in self.filled:
            sets = {f"h{number}": random_set(random.Random(), labelled) for number in range(12)}
            self.filled[key] = self.with_sets(zone, sets), sets
        return self.filled[key]


@pytest.fixture(scope="module")
def repositories() -> Iterator[Repositories]:
    try:
        program = restic.program()
    except debs.Unavailable as reason:
        pytest.skip(str(reason))
    # A file for each snapshot: in memory where that can be had.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="livesnap-restic-", dir=memory) as name:
        yield Repositories(program, Path(name))


STEPS = [
    timedelta(minutes=20),
    timedelta(hours=1),
    timedelta(hours=7),
    timedelta(days=1),
    timedelta(days=6),
    timedelta(days=31),
    timedelta(days=200),
]


def moment(chance: random.Random) -> datetime:
    """Near one of the special ones, or anywhere in seven years."""
    if chance.random() < 0.5:
        return min(chance.choice(SPECIAL) + timedelta(minutes=10 * chance.randint(-20, 20)), LAST)
    return LAST - timedelta(seconds=chance.randint(0, 7 * 366 * 86400))


def random_set(chance: random.Random, labelled: bool) -> Set:
    """Of one host: single ones, and every so often from some moment on, with gaps.

    Which of equal times restic meets first is chance: sets with labels have none.
    """
    times = [moment(chance) for _number in range(chance.randint(0, 5))]
    for _run in range(chance.randint(0, 2)):
        start, step, length = moment(chance), chance.choice(STEPS), chance.randint(1, 60)
        full = chance.choice([0.3, 0.8, 1])
        times += [
            min(start + step * tick, LAST) for tick in range(length) if chance.random() < full
        ]
    if not labelled:
        return [(time, ()) for time in times + times[: chance.choice([0, 0, 3])]]
    return [
        (time, tuple(label for label in "abc" if chance.random() < 0.3))
        for time in dict.fromkeys(times)
    ]


def durations() -> st.SearchStrategy[str]:
    part = st.tuples(st.integers(0, 40), st.sampled_from("ymdh"))
    return st.lists(part, min_size=1, max_size=4).map(
        lambda parts: "".join(
            f"{number // (3 if unit == 'y' else 1)}{unit}" for number, unit in parts
        )
    )


@st.composite
def policies(draw: st.DrawFn, labelled: bool) -> dict[str, Any]:
    names = [f"keep_{name}" for name in ("last", "hourly", "daily", "weekly", "monthly", "yearly")]
    counts = st.sampled_from([-1, 1, 1, 2, 3, 5, 10, 30])
    given = draw(st.dictionaries(st.sampled_from(names), counts, max_size=3))
    within = ["keep_within", *(name.replace("keep", "keep_within") for name in names[1:])]
    given |= draw(st.dictionaries(st.sampled_from(within), durations(), max_size=2))
    if labelled:
        lists = st.sampled_from(["a", "b", "a,b", "c, a", "", "a,", ",b"])
        given["keep_labels"] = draw(st.lists(lists, min_size=1, max_size=2))
    return given


def options(policy: dict[str, Any]) -> list[str]:
    """The policy as restic's command line."""
    found = []
    for name, value in policy.items():
        if name == "keep_labels":
            found += [f"--keep-tag={labels}" for labels in value]
        else:
            found.append(f"--{name.replace('_', '-')}={'unlimited' if value == -1 else value}")
    return found


def ours(chosen: Set, policy: Policy, zone: str) -> collections.Counter[Any]:
    """What we keep for reasons that restic knows too."""
    snapshots = [
        Snapshot(key=str(number), guest="g", name=str(number), created=time, labels=labels)
        for number, (time, labels) in enumerate(chosen)
    ]
    found: collections.Counter[Any] = collections.Counter()
    for decision in decide(snapshots, policy, Calendar(ZoneInfo(zone)), NOW):
        texts = {
            each.text for each in decision.reasons if each.rule not in (*BEYOND_RESTIC, "none")
        }
        if texts:
            found[decision.snapshot.created, frozenset(texts)] += 1
    return found


@pytest.mark.parametrize("zone", ZONES)
def test_any_set_is_kept_as_restic_keeps_it(
    zone: str, repositories: Repositories, rounds: Callable[[int, int], int]
) -> None:
    """Each policy on twelve sets at once."""
    counted: collections.Counter[str] = collections.Counter()

    @settings(max_examples=rounds(80, 1700), deadline=None, database=None)
    @given(st.data(), st.booleans(), st.integers(1, rounds(4, 12)))
    def check(data: st.DataObject, labelled: bool, number: int) -> None:
        chosen = data.draw(policies(labelled))
        repository, sets = repositories.random(zone, labelled, number)
        theirs = repository.forget(*options(chosen))
        try:
            policy = Policy.of(chosen)
        except RefusedError:
            assert isinstance(theirs, str) and "no policy was specified" in theirs
            counted["empty policies"] += 1
            return
        expected = {host: ours(each, policy, zone) for host, each in sets.items() if each}
        if isinstance(theirs, str):
            assert restic.REFUSES_TO_EMPTY in theirs
            assert not all(expected.values())
            counted["emptied groups"] += 1
            return
        for host, kept in expected.items():
            assert theirs.get(host) == kept, sets[host]
        assert set(theirs) == set(expected)
        counted["compared"] += len(expected)

    # Chance may draw policies that keep nothing, most of the time.
    for _turn in range(5):
        if counted["compared"] < rounds(200, 5000):
            check()
    print(dict(counted))
    assert counted["compared"] >= rounds(200, 5000), counted


def test_a_long_history_is_kept_as_restic_keeps_it(repositories: Repositories) -> None:
    """Of half a year, by policies such as the documentation shows."""
    history: Set = [(NOW - timedelta(hours=7 * back + 1), ()) for back in range(600)]
    policies = (
        {"keep_hourly": 24, "keep_daily": 7, "keep_weekly": 5, "keep_monthly": 12},
        {"keep_last": 3, "keep_yearly": 10}, {"keep_weekly": -1}, {"keep_monthly": 500},
        {"keep_within": "2d", "keep_within_daily": "1m", "keep_within_monthly": "1y"},
    )  # fmt: skip
    for zone in ZONES:
        repository = repositories.with_sets(zone, {"h": history})
        for chosen in policies:
            theirs = repository.forget(*options(chosen))
            assert theirs == {"h": ours(history, Policy.of(chosen), zone)}, (zone, chosen)


@pytest.mark.parametrize("wrong", [
    {"keep_last": -2}, {"keep_within": "-1d"}, {"keep_within": "1w"}, {"keep_within_daily": "5"},
    {"keep_within": "d"}, {"keep_within": "1.5d"}, {"keep_last": 0}, {"keep_within": "0h"},
])  # fmt: skip
def test_what_restic_refuses_is_refused(repositories: Repositories, wrong: dict[str, Any]) -> None:
    assert isinstance(repositories.empty.forget(*options(wrong)), str)
    with pytest.raises(RefusedError) as refused:
        Policy.of(wrong)
    assert refused.value.reason == "policy"
