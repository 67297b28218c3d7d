# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The arithmetic of `make bench`: what is lost, medians, ratios, and which figures bind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import bench
import cases
import report
from engines import Measure
from meter import Reading, rate, recovered_at, work_lost


def readings(*rates: tuple[float, float]) -> list[Reading]:
    """Readings ten times a second; each pair is seconds and pages a second."""
    found, at, written = [Reading(0.0, 0, 0)], 0.0, 0.0
    for seconds, speed in rates:
        for _tenth in range(round(seconds * 10)):
            at, written = at + 0.1, written + speed / 10
            found.append(Reading(round(at, 6), round(written), 0))
    return found


def test_nothing_is_lost_at_the_normal_rate() -> None:
    even = readings((10, 1000))
    assert rate(even) == pytest.approx(1000)
    assert work_lost(even, 1000, 2.0, 8.0) == pytest.approx(0, abs=1e-6)


def test_a_standstill_and_a_slow_time_are_lost() -> None:
    slow = readings((2, 1000), (1, 0), (2, 500), (5, 1000))
    assert work_lost(slow, 1000, 1.0, 9.0) == pytest.approx(2.0, abs=0.01)
    assert recovered_at(slow, 1000, 2.0, 1.0) == pytest.approx(4.9, abs=0.11)


def test_one_that_never_comes_back() -> None:
    assert recovered_at(readings((2, 1000), (3, 100)), 1000, 2.0, 1.0) == pytest.approx(5.0)


def measure(**given: float) -> Measure:
    values: dict[str, float] = dict.fromkeys(
        ("pause_ms", "work_lost_s", "longest_stall_ms", "longest_step_ms", "protected_s", "total_s",
         "stored_bytes", "hwm_bytes", "cpu_s", "store_rate"), 1.0)
    return Measure(**{**values, **given})  # type: ignore[arg-type]


def case(**given: object) -> cases.Case:
    return cases.Case("x", "a case", {"memory": 2048}, {"v": {}}, 3, **given)  # type: ignore[arg-type]


def test_medians_and_bounds() -> None:
    bound = cases.Bound("v", "work_lost_s", "work_lost_s", 0.25)
    judged = report.judge(case(bounds=(bound,)), {
        "peer": [measure(work_lost_s=value) for value in (8.0, 100.0, 10.0)],
        "v": [measure(work_lost_s=value) for value in (2.0, 0.1, 50.0)],
    })
    assert judged["ratios"]["v"]["work_lost_s"] == 0.2
    assert judged["bounds"][0]["reached"] and judged["bounds"][0]["binding"]
    assert "reached" in report.table("x", judged)


@pytest.mark.parametrize(("store", "binding"), [(100.0, True), (119.0, True), (121.0, False)])
def test_totals_bind_only_where_stores_are_alike(store: float, binding: bool) -> None:
    bound = cases.Bound("v", "total_s", "total_s", 0.5)
    judged = report.judge(case(bounds=(bound,)), {
        "peer": [measure(total_s=1.0, store_rate=100.0)],
        "v": [measure(total_s=0.9, store_rate=store)],
    })
    assert judged["bounds"][0]["binding"] is binding
    assert not judged["bounds"][0]["reached"]
    assert ("MISSED" in report.table("x", judged)) is binding


def test_the_pause_may_grow_with_ram() -> None:
    rounds = {"peer": [measure(pause_ms=5.0)], "v": [measure(pause_ms=15.5)]}
    assert not report.judge(case(pause_per_gib=0.2), rounds)["bounds"][0]["reached"]
    assert report.judge(case(pause_per_gib=0.3), rounds)["bounds"][0]["reached"]


def test_a_case_that_is_not_there_is_named() -> None:
    assert bench.chosen("b,a") == ["b", "a"]
    every = ["a", "a256", "b", "c", "c4k", "stall", "abort", "holds", "disks", "retention"]
    assert bench.chosen("") == every
    with pytest.raises(ValueError, match="there is no case z"):
        bench.chosen("a,z")
