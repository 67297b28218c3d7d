# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter simulate: what it counts, shows and draws, and what it refuses."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.livesnap.qemu.plugins.filter.simulate import simulate

HOURLY = [{"name": "hourly", "interval": "1h"}]
START = "20260101T0000Z"


def test_a_week_of_hourly_snapshots() -> None:
    found = simulate({"keep_hourly": "6", "keep_daily": 7}, HOURLY, START, 7)
    assert (found["taken"], found["most"], len(found["kept"])) == (168, 12, 12)
    assert found["kept"][0] == {
        "name": "hourly-20260107T2300Z",
        "created": "2026-01-07T23:00:00Z",
        "reasons": ["keep_hourly", "keep_daily", "the newest complete one"],
    }
    assert found["table"][0] == "168 snapshots taken, 12 left at the end, 12 at most"
    assert len(found["table"]) == 2 + 12
    assert "Wed 2026-01-07 23:00" in found["table"][2]


def test_the_picture_has_a_point_for_each_reason_of_what_is_left() -> None:
    found = simulate({"keep_last": 2, "keep_monthly": 12}, HOURLY, START, 365, "Europe/Berlin")
    root = ET.fromstring(found["svg"])
    name = "{http://www.w3.org/2000/svg}"
    points = root.findall(f"{name}circle")
    shown = [point.findtext(f"{name}title") or "" for point in points]
    for each in found["kept"]:
        # Those of the last month are in both panels.
        times = sum(text.startswith(each["name"] + ":") for text in shown)
        late = each["created"] >= "2026-12-01"
        assert times == len(each["reasons"]) * (2 if late else 1), each
    width = float(root.get("width") or 0)
    assert all(0 < float(point.get("cx") or 0) < width for point in points)
    texts = [text.text for text in root.findall(f"{name}text")]
    assert {"keep_last", "keep_monthly", "Feb 2026", "Dec 2026"} <= set(texts)


def test_labels_and_groups_of_schedules() -> None:
    schedules = [*HOURLY, {"name": "daily", "interval": "1d", "labels": ["audit"]}]
    found = simulate({"keep_last": 1, "keep_labels": ["audit"]}, schedules, START, 5)
    assert [each["name"][:5] for each in found["kept"]] == ["hourl", *["daily"] * 5]
    grouped = simulate({"keep_last": 1, "group_by": "schedule"}, schedules, START, 5)
    assert len(grouped["kept"]) == 2
    # The first slot of a week that begins in the middle of one is the next Monday's.
    weekly = simulate({"keep_last": 1}, [{"name": "weekly", "interval": "1w"}], START, 6)
    assert weekly["kept"][0]["created"] == "2026-01-05T00:00:00Z"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (({}, HOURLY, START), "policy is empty"),
        (({"keep_when": "x"}, HOURLY, START), "policy is empty"),
        (({"keep_last": "many"}, HOURLY, START), "many"),
        (({"keep_last": 1, "keep_lats": 1}, HOURLY, START), None),
        (({"keep_last": 1, "store": "/x"}, HOURLY, START), "'store'"),
        (({"keep_last": 1}, [], START), "0 snapshots"),
        (({"keep_last": 1}, [{"name": "x", "interval": "1m"}], START, 365), "525600 snapshots"),
        (({"keep_last": 1}, [{"name": "x", "interval": "often"}], START), "'often'"),
        (({"keep_last": 1}, [{"interval": "1h"}], START), "name"),
        (({"keep_last": 1}, HOURLY, "today"), "slot 'today'"),
        (({"keep_last": 1}, HOURLY, START, 1, "Mars"), "timezone 'Mars'"),
    ],
)
def test_what_makes_no_sense_is_quoted(given: Any, message: str | None) -> None:
    with pytest.raises(AnsibleFilterError, match=message or "keep_lats"):
        simulate(*given)
