# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Slots of a schedule: the periods of time in which one snapshot is wanted. Pure: the time is
always given.

Private to this collection.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
# 1970-01-01 was a Thursday; slots of whole weeks begin on Mondays.
MONDAY = datetime(1970, 1, 5, tzinfo=timezone.utc)
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
FORMATS = ("%Y%m%dT%H%MZ", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%MZ")


def parse_interval(text: str) -> timedelta:
    """`15m`, `1h`, `1d`, `1w`. ValueError for anything else and for less than a minute."""
    found = re.fullmatch(r"\s*([0-9]+)\s*([smhdw])\s*", str(text))
    if not found:
        raise ValueError(
            f"interval '{text}' is not a number with a unit, such as 15m, 1h, 1d or 1w"
        )
    seconds = int(found.group(1)) * UNITS[found.group(2)]
    if seconds < 60 or seconds % 60:
        raise ValueError(
            f"interval '{text}' is not one of whole minutes; the names of slots have no seconds"
        )
    return timedelta(seconds=seconds)


def slot_of(moment: datetime, interval: timedelta) -> datetime:
    """The start of the slot that runs at this moment, in UTC."""
    base = MONDAY if interval % timedelta(weeks=1) == timedelta(0) else EPOCH
    return base + (moment - base) // interval * interval


def parse_slot(text: str) -> datetime:
    """A slot as in names (20261123T0100Z) or as RFC 3339 in UTC."""
    for known in FORMATS:
        try:
            return datetime.strptime(str(text), known).replace(tzinfo=timezone.utc)
        except ValueError:
            continue
    raise ValueError(
        f"slot '{text}' is not a time in UTC such as 20261123T0100Z or 2026-11-23T01:00:00Z"
    )


def slot(given: float | int | str | datetime, interval: str) -> dict[str, str]:
    """From seconds since 1970, or from a slot that was named: {name, start}."""
    if isinstance(given, (int, float)):
        start = slot_of(datetime.fromtimestamp(given, timezone.utc), parse_interval(interval))
    elif isinstance(given, datetime):
        # YAML makes one of an unquoted time; without a zone it was written in UTC.
        start = (
            given.astimezone(timezone.utc) if given.tzinfo else given.replace(tzinfo=timezone.utc)
        )
    else:
        start = parse_slot(given)
    return {"name": start.strftime("%Y%m%dT%H%MZ"), "start": start.strftime("%Y-%m-%dT%H:%M:%SZ")}
