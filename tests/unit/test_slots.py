# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from ansible_collections.livesnap.qemu.plugins.plugin_utils import _slots
from hypothesis import given
from hypothesis import strategies as st

UTC = timezone.utc


@pytest.mark.parametrize(
    ("interval", "name"),
    [
        ("15m", "20261125T0145Z"),
        ("1h", "20261125T0100Z"),
        ("6h", "20261125T0000Z"),
        ("1d", "20261125T0000Z"),
        ("1w", "20261123T0000Z"),
        ("7d", "20261123T0000Z"),
    ],
)
def test_the_running_slot(interval: str, name: str) -> None:
    moment = datetime(2026, 11, 25, 1, 59, 59, tzinfo=UTC)
    assert _slots.slot(moment.timestamp(), interval)["name"] == name


@pytest.mark.parametrize("text", ["20261123T0100Z", "2026-11-23T01:00:00Z", "2026-11-23T01:00Z"])
def test_a_named_slot_is_taken_as_it_is(text: str) -> None:
    assert _slots.slot(text, "1d") == {"name": "20261123T0100Z", "start": "2026-11-23T01:00:00Z"}


@pytest.mark.parametrize("text", ["", "hourly", "1", "1y", "-1h", "0h", "90s", "30s"])
def test_bad_intervals_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="interval"):
        _slots.parse_interval(text)


@pytest.mark.parametrize("text", ["", "yesterday", "20261123", "2026-11-23T01:00:00+01:00"])
def test_bad_slots_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="slot"):
        _slots.parse_slot(text)


@given(st.integers(0, 4_000_000_000), st.sampled_from(["1m", "15m", "1h", "7h", "1d", "1w", "2w"]))
def test_a_moment_lies_in_its_slot_and_the_slot_in_itself(second: int, text: str) -> None:
    interval = _slots.parse_interval(text)
    moment = datetime.fromtimestamp(second, UTC)
    start = _slots.slot_of(moment, interval)
    assert start <= moment < start + interval
    assert _slots.slot_of(start, interval) == start
    assert _slots.slot_of(start - timedelta(microseconds=1), interval) == start - interval
