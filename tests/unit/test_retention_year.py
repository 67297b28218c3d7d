# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A year of hourly snapshots, pruned each hour: what is left at every step, and golden files.

`python tests/unit/test_retention_year.py` prints what belongs into the golden file.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import layout

    sys.path.insert(0, str(layout.COLLECTIONS))

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.periods import (
    Calendar,
    Duration,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.policy import Policy
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.simulate import (
    Schedule,
    outcome,
    pruned_each_time,
    scheduled,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.snapshot import Snapshot

UTC = timezone.utc
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "retention-year.json"
HOURS = 8760
# Name -> (policy, zone, year). 2024 has a leap day, and the zones change their clocks. 30d, because
# 1m before 31 March is later than 1m before 1 April: what went in between does not come back.
CASES: dict[str, tuple[dict[str, Any], str, int]] = {
    "documented": (
        {
            "keep_hourly": 24,
            "keep_daily": 7,
            "keep_weekly": 5,
            "keep_monthly": 12,
            "keep_yearly": 3,
        },
        "Europe/Berlin",
        2025,
    ),
    "unlimited-weeks": ({"keep_last": 5, "keep_weekly": -1, "keep_monthly": 3}, "UTC", 2024),
    "within": (
        {
            "keep_within": "6h",
            "keep_within_hourly": "2d",
            "keep_within_daily": "30d",
            "keep_within_monthly": "1y",
        },
        "Australia/Lord_Howe",
        2024,
    ),
}
# How strftime names a period: another way than that of the code.
NAMES = {
    "hourly": "%Y%m%d%H",
    "daily": "%Y%m%d",
    "weekly": "%G%V",
    "monthly": "%Y%m",
    "yearly": "%Y",
    "last": "%s",
}


def taken(year: int) -> list[Snapshot]:
    first = datetime(year, 1, 1, tzinfo=UTC)
    hourly = Schedule("hourly", timedelta(hours=1), first)
    return scheduled([hourly], first + timedelta(hours=HOURS), "g")


class Expected:
    """What is to be left, of the whole history: of each rule the newest of its last periods."""

    def __init__(self, options: dict[str, Any], zone: str) -> None:
        self.zone = ZoneInfo(zone)
        self.options = options
        self.first: datetime | None = None
        self.newest: dict[str, list[datetime]] = {name: [] for name in options}
        self.last: dict[str, str] = {}

    def after(self, time: datetime) -> set[datetime]:
        self.first = self.first or time
        found = set()
        for option, value in self.options.items():
            kind = option.removeprefix("keep_").removeprefix("within_").replace("within", "last")
            period = time.astimezone(self.zone).strftime(NAMES[kind])
            newest = self.newest[option]
            if self.last.get(option) == period:
                newest.pop()
            newest.append(time)
            self.last[option] = period
            if isinstance(value, str):
                start = Duration.parse(value).before(time, self.zone)
                assert start is not None
                found |= {each for each in newest[-800:] if each > start}
                found |= {self.first} if self.first > start else set()
            else:
                found |= set(newest if value < 0 else newest[-value:])
                found |= {self.first} if value < 0 or len(newest) < value else set()
        return found


def run(name: str, check: Callable[[set[datetime], datetime], None]) -> dict[str, Any]:
    """What is left at the end of each month, the most that there ever was, and all steps' hash."""
    options, zone, year = CASES[name]
    steps = hashlib.sha256()
    months: dict[str, list[str]] = {}
    snapshots = taken(year)
    most = 0
    calendar = Calendar(ZoneInfo(zone))
    text = {each.key: f"{each.time:%Y-%m-%dT%HZ}" for each in snapshots}
    for new, decisions in zip(snapshots, pruned_each_time(snapshots, Policy.of(options), calendar)):
        left = [each.snapshot for each in decisions if each.decision == "keep"]
        check({each.time for each in left}, new.time)
        texts = [text[each.key] for each in left]
        steps.update((" ".join(texts) + "\n").encode())
        most = max(most, len(left))
        following = new.time + timedelta(hours=1)
        if (following.day, following.hour) == (1, 0):
            months[f"{following:%Y-%m-%d}"] = texts
    return {"most": most, "steps": steps.hexdigest(), "months": months}


@pytest.mark.parametrize("name", CASES)
def test_what_is_left_at_every_step_is_right(name: str) -> None:
    options, zone, year = CASES[name]
    expected = Expected(options, zone)

    def check(left: set[datetime], now: datetime) -> None:
        assert left == expected.after(now), now

    assert run(name, check) == json.loads(GOLDEN.read_text())[name]
    if name == "documented":
        whole = outcome(taken(year)[:2000], Policy.of(options), Calendar(ZoneInfo(zone)))
        assert (whole.taken, len(whole.kept) <= whole.most) == (2000, True)


def test_slots_begin_and_end_where_they_are_told() -> None:
    first = datetime(2025, 1, 1, tzinfo=UTC)
    hourly = Schedule("hourly", timedelta(hours=1), first)
    daily = Schedule("daily", timedelta(days=1), first, ("kept",))
    found = scheduled([hourly, daily], first + timedelta(hours=25), "g")
    assert len(found) == 25 + 2
    assert [each.name for each in found[:2]] == ["daily-20250101T0000Z", "hourly-20250101T0000Z"]
    assert [each.labels for each in found[:2]] == [("kept",), ()]
    assert scheduled([hourly], first, "g") == []


if __name__ == "__main__":
    print(json.dumps({name: run(name, lambda left, now: None) for name in CASES}, indent=1))
