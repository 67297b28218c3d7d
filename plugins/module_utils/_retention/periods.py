# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lengths of time as restic writes them (1y5m7d2h), and the calendar periods of a time zone. Pure.

A zone is given as a tzinfo; nothing here knows where zones come from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone, tzinfo
from typing import Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import RefusedError

_PART = re.compile(r"(\d+)([ymdh])")
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z")
_UTC = timezone.utc

#: What identifies the hour, day, ISO week, month and year of a moment.
Period = tuple[int, ...]
HOURLY, DAILY, WEEKLY, MONTHLY, YEARLY = range(5)


def parse_time(text: str) -> datetime:
    """A moment as manifests have it (RFC 3339 in UTC); ValueError for anything else."""
    found = _TIME.fullmatch(text)
    if not found:
        raise ValueError(f"'{text}' is not a time in UTC such as 2026-11-23T01:00:07.123456Z")
    whole = datetime.fromisoformat(found.group(1)).replace(tzinfo=_UTC)
    return whole + timedelta(microseconds=int((found.group(2) or "")[:6].ljust(6, "0")))


@dataclass(frozen=True)
class Duration:
    """Years, months, days and hours, none of them negative. All zero: none is meant."""

    years: int = 0
    months: int = 0
    days: int = 0
    hours: int = 0

    @classmethod
    def parse(cls, text: str, what: str = "duration") -> Duration:
        """From '1y5m7d2h', in any order; a unit that is named again wins. '' is none."""
        rest = text.strip()
        amounts = {"y": 0, "m": 0, "d": 0, "h": 0}
        parts = _PART.findall(rest)
        if "".join(number + unit for number, unit in parts) != rest:
            raise RefusedError(
                f"{what} '{text}' is not a duration",
                "it is made of numbers of years, months, days and hours, such as 1y5m7d2h",
                "policy",
            )
        for number, unit in parts:
            amounts[unit] = int(number)
        return cls(amounts["y"], amounts["m"], amounts["d"], amounts["h"])

    def __bool__(self) -> bool:
        return bool(self.years or self.months or self.days or self.hours)

    def __str__(self) -> str:
        amounts = ((self.years, "y"), (self.months, "m"), (self.days, "d"), (self.hours, "h"))
        return "".join(f"{number}{unit}" for number, unit in amounts if number)

    def before(self, moment: datetime, zone: tzinfo) -> Optional[datetime]:
        """So long before a moment; None where that is before the year 1.

        Years, months and days are counted on the wall clock of the zone, as Go's time.AddDate does,
        which restic uses: a month that has no such day runs over into the next (a month before 31
        March is 3 March), and a time that the clocks skip or pass twice is settled by
        _wall_to_utc(). Hours are counted after that, as time that really passes.
        """
        local = moment.astimezone(zone)
        months = (local.year - self.years) * 12 + local.month - 1 - self.months
        if months < 12:
            return None
        day = date(months // 12, months % 12 + 1, 1).toordinal() + local.day - 1 - self.days
        if day < 2 or self.hours > 24 * (day - 2):
            return None
        wall = datetime.combine(date.fromordinal(day), local.time(), tzinfo=_UTC)
        return _wall_to_utc(wall, zone) - timedelta(hours=self.hours)


def _wall_to_utc(wall: datetime, zone: tzinfo) -> datetime:
    """The moment at which the clocks of a zone show this (given as if it were UTC).

    As Go's time.Date: the offset that would hold if the wall time were UTC is tried; the one that
    holds at the moment which follows from that is taken.
    """
    tried = wall - offset(wall, zone)
    return wall - offset(tried, zone)


def offset(moment: datetime, zone: tzinfo) -> timedelta:
    """How far the clocks of a zone are ahead of UTC at a moment."""
    return moment.astimezone(zone).utcoffset() or timedelta(0)


class Calendar:
    """Which hour, day, ISO week, month and year moments belong to in a zone; remembers them."""

    def __init__(self, zone: tzinfo) -> None:
        """Of a zone; moments are looked up as they are asked for."""
        self.zone = zone
        self._known: dict[datetime, tuple[Period, ...]] = {}

    def periods(self, moment: datetime) -> tuple[Period, ...]:
        """Indexed by HOURLY to YEARLY. An hour that the clocks pass twice is one hour."""
        found = self._known.get(moment)
        if found is None:
            local = moment.astimezone(self.zone)
            day = (local.year, local.month, local.day)
            week = local.isocalendar()
            found = ((*day, local.hour), day, (week[0], week[1]), day[:2], day[:1])
            self._known[moment] = found
        return found
