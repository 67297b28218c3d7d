# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Medians, ratios, and whether the figures were reached. Pure."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from cases import GIB, PAUSE_MS, Case
from engines import Measure

#: How far apart store rates may be for totals to say something of the engines.
STORE_TOLERANCE = 0.2

Rounds = dict[str, list[Measure]]
PEER = "peer"


def medians(rounds: list[Measure]) -> dict[str, float | None]:
    """The median of each field; None where an engine has no such thing."""
    found: dict[str, float | None] = {}
    for field in dataclasses.fields(Measure):
        values = [value for each in rounds if (value := getattr(each, field.name)) is not None]
        found[field.name] = round(statistics.median(values), 4) if values else None
    return found


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or not theirs else round(ours / theirs, 4)


def _even(one: dict[str, Any], other: dict[str, Any]) -> bool:
    rates = sorted((one["store_rate"], other["store_rate"]))
    return bool(rates[1] <= rates[0] * (1 + STORE_TOLERANCE))


def _bounds(case: Case, middle: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for bound in case.bounds:
        even = _even(middle[bound.variant], middle[PEER])
        value = _ratio(middle[bound.variant][bound.ours], middle[PEER][bound.theirs])
        rows.append(
            {
                "what": f"{bound.variant}: {bound.ours} / peer's {bound.theirs}",
                "most": bound.most,
                "value": value,
                "binding": even or not bound.needs_equal_storage,
                "reached": value is not None and value <= bound.most,
            }
        )
    if case.pause_per_gib is not None:
        for variant in case.variants:
            most = middle[PEER]["pause_ms"] + PAUSE_MS + case.pause_per_gib * case.memory / GIB
            value = middle[variant]["pause_ms"]
            rows.append(
                {
                    "what": f"{variant}: pause_ms",
                    "most": round(most, 2),
                    "value": value,
                    "binding": True,
                    "reached": value <= most,
                }
            )
    return rows


def judge(case: Case, rounds: Rounds) -> dict[str, Any]:
    """Everything that is known of a case, as it goes into the JSON."""
    middle = {name: medians(each) for name, each in rounds.items()}
    return {
        "title": case.title,
        "rounds": {
            name: [dataclasses.asdict(each) for each in all_] for name, all_ in rounds.items()
        },
        "medians": middle,
        "ratios": {
            name: {key: _ratio(value, middle[PEER][key]) for key, value in middle[name].items()}
            for name in case.variants
        },
        "bounds": _bounds(case, middle),
    }


def table(name: str, judged: dict[str, Any]) -> str:
    """The same for people."""
    columns = list(judged["medians"])
    lines = [
        f"== {name}: {judged['title']}",
        f"{'median':22}" + "".join(f"{c:>15}" for c in columns),
    ]
    scale = {
        "stored_bytes": ("stored MiB", 1 << 20),
        "hwm_bytes": ("memory MiB", 1 << 20),
        "store_rate": ("store MB/s", 10**6),
    }
    for key in (field.name for field in dataclasses.fields(Measure)):
        label, divisor = scale.get(key, (key, 1))
        cells = []
        for column in columns:
            value = judged["medians"][column][key]
            cells.append(f"{'-' if value is None else format(value / divisor, '.2f'):>15}")
        lines.append(f"{label:22}" + "".join(cells))
    return "\n".join(lines + bounds(judged))


def bound(what: str, value: float, most: float) -> dict[str, Any]:
    """A figure that is to be reached, as bounds() prints it."""
    return {
        "what": what,
        "value": round(value, 3),
        "most": most,
        "binding": True,
        "reached": value <= most,
    }


def bounds(judged: dict[str, Any]) -> list[str]:
    """A line for each figure that is to be reached."""
    lines = []
    for row in judged["bounds"]:
        word = "reached"
        if not row["reached"]:
            word = "MISSED" if row["binding"] else "missed; stores differ, not binding"
        lines.append(f"  {row['what']}: {row['value']} of at most {row['most']}: {word}")
    return lines
