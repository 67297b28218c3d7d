# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of the snapshots of many guests, as data and as one HTML file. Pure, private."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from html import escape
from typing import Any

from ..module_utils._retention.periods import parse_time
from ..module_utils._retention.snapshot import is_verified
from ..module_utils._store.names import PARTIAL

#: What is worst comes first.
FAILED, UNVERIFIED, GOOD = "failed", "unverified", "verified"
_ORDER = (FAILED, UNVERIFIED, GOOD)
_MARKS = {FAILED: "✗ failed", UNVERIFIED: "– unverified", GOOD: "✓ verified"}
#: How far the timeline reaches back, and how many of the newest snapshots it shows.
_SPAN, _MOST = timedelta(days=31), 200

Snapshot = Mapping[str, Any]


def rows(hosts: Mapping[str, Sequence[Snapshot]]) -> list[dict[str, Any]]:
    """One a guest, failures first: {host, guest, state, problems, newest, last_good, ...}."""
    found = []
    for host, snapshots in hosts.items():
        guests = dict.fromkeys(each["guest"] for each in snapshots)
        found += [
            _row(host, guest, [each for each in snapshots if each["guest"] == guest])
            for guest in guests
        ]
    return sorted(
        found, key=lambda each: (_ORDER.index(each["state"]), each["host"], each["guest"])
    )


def state_of(snapshot: Snapshot) -> str:
    """failed, verified or unverified."""
    if snapshot["problem"] or any(_failed(each) for each in snapshot["verdicts"]):
        return FAILED
    return GOOD if is_verified(snapshot["verdicts"]) else UNVERIFIED


def _failed(verdict: Any) -> bool:
    return not isinstance(verdict, dict) or verdict.get("result") != "passed"


def _row(host: str, guest: str, snapshots: Sequence[Snapshot]) -> dict[str, Any]:
    there = [
        each
        for each in snapshots
        if not each["in_progress"] and not str(each["path"]).endswith(PARTIAL)
    ]
    whole = sorted(
        (each for each in there if each["complete"]),
        key=lambda each: str(each["created"]),
        reverse=True,
    )
    good = [each for each in whole if state_of(each) == GOOD]
    bad = [each for each in there if state_of(each) == FAILED]
    newest = whole[0] if whole else None
    state = FAILED if bad or newest is None else state_of(newest)
    return {
        "host": host,
        "guest": guest,
        "state": state,
        "problems": [f"{each['name']}: {_why(each)}" for each in bad]
        or ([] if whole else ["there is no complete snapshot"]),
        "newest": None if newest is None else _told(newest),
        "last_good": _told(good[0]) if good else None,
        "count": len(whole),
        "snapshots": [
            {"name": each["name"], "created": each["created"], "state": state_of(each)}
            for each in whole[:_MOST]
        ],
    }


def _why(snapshot: Snapshot) -> str:
    if snapshot["problem"]:
        return str(snapshot["problem"])
    verdict = next(each for each in snapshot["verdicts"] if _failed(each))
    if not isinstance(verdict, dict):
        return "its status.json has what is no verdict"
    evidence = verdict.get("evidence")
    why = evidence.get("problem") if isinstance(evidence, dict) else None
    return f"{verdict.get('level')}: {why or 'failed'}"


def _told(snapshot: Snapshot) -> dict[str, Any]:
    freeze = snapshot["consistency"]["freeze"]
    return {
        "name": snapshot["name"],
        "created": snapshot["created"],
        "freeze_ms": snapshot["timings"]["freeze_ms"],
        "not_frozen": None if freeze["achieved"] else freeze["reason"],
        "pause_ms": snapshot["timings"]["pause_ms"],
        "verdicts": [
            {key: each.get(key) for key in ("level", "result", "when")}
            for each in snapshot["verdicts"]
            if isinstance(each, dict)
        ],
    }


def page(found: Sequence[Mapping[str, Any]], now: datetime, title: str) -> str:
    """The whole file; `found` is what rows() gave."""
    counts = {state: sum(each["state"] == state for each in found) for state in reversed(_ORDER)}
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    body = "".join(_table_row(each, now) for each in found)
    none = "" if found else '<p class="none">There is no snapshot of any guest.</p>'
    heads = "".join(
        f"<th>{each}</th>"
        for each in ("Guest", "State", "Newest", "Last verified", "Freeze", "Pause", "Timeline")
    )
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>" if body else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><p>{now:%Y-%m-%d %H:%M} UTC · {len(found)} guests: {summary}</p>"
        f"{none}{table}</body></html>\n"
    )


def _table_row(row: Mapping[str, Any], now: datetime) -> str:
    newest, good = row["newest"], row["last_good"]
    problems = "".join(f"<li>{escape(each)}</li>" for each in row["problems"])
    cells = (
        ("Guest", f"<b>{escape(row['guest'])}</b><br><small>{escape(row['host'])}</small>"),
        ("State", f'<span class="mark">{_MARKS[row["state"]]}</span>' + _list(problems)),
        ("Newest", _when(newest, now) + _verdicts(newest)),
        ("Last verified", _when(good, now)),
        ("Freeze", _freeze(newest)),
        ("Pause", _ms(newest["pause_ms"]) if newest else "–"),
        ("Timeline", "".join(_timeline(row["snapshots"], now))),
    )
    inner = "".join(f'<td data-head="{head}"><div>{text}</div></td>' for head, text in cells)
    return f'<tr class="{row["state"]}">{inner}</tr>'


def _list(items: str) -> str:
    return f"<ul>{items}</ul>" if items else ""


def _when(snapshot: Mapping[str, Any] | None, now: datetime) -> str:
    if snapshot is None:
        return "never"
    age = now - parse_time(snapshot["created"])
    hours = int(age.total_seconds() // 3600)
    said = f"{hours // 24} d ago" if hours >= 48 else f"{hours} h ago"
    return (
        f"{escape(snapshot['name'])}<br><small>{escape(snapshot['created'][:16])}, {said}</small>"
    )


def _verdicts(snapshot: Mapping[str, Any] | None) -> str:
    if snapshot is None:
        return ""
    return "".join(
        f"<br><small>{escape(str(each['level']))} {escape(str(each['result']))}"
        f" {escape(str(each['when'])[:16])}</small>"
        for each in snapshot["verdicts"]
    )


def _freeze(snapshot: Mapping[str, Any] | None) -> str:
    if snapshot is None:
        return "–"
    if snapshot["not_frozen"] is None:
        return _ms(snapshot["freeze_ms"])
    return f"not frozen<br><small>{escape(snapshot['not_frozen'])}</small>"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} ms"


def _timeline(snapshots: Sequence[Mapping[str, Any]], now: datetime) -> Iterator[str]:
    """The last month, from left to right; failures are taller and lie above the others."""
    yield '<svg viewBox="0 0 310 24" preserveAspectRatio="none" role="img"'
    yield ' aria-label="snapshots of the last 31 days">'
    yield '<line x1="0" y1="20.5" x2="310" y2="20.5" class="axis"/>'
    for week in range(1, 5):
        at = 310 - 70 * week
        yield f'<line x1="{at}" y1="17" x2="{at}" y2="23" class="axis"/>'
    for each in sorted(snapshots, key=lambda one: -_ORDER.index(one["state"])):
        age = now - parse_time(each["created"])
        if timedelta(0) <= age <= _SPAN:
            place = round(310 * (1 - age / _SPAN), 1)
            top = 2 if each["state"] == FAILED else 8
            shown = f"{each['name']}, {each['created'][:16]}: {each['state']}"
            yield (
                f'<line x1="{place}" y1="{top}" x2="{place}" y2="20" class="{each["state"]}">'
                f"<title>{escape(shown)}</title></line>"
            )
    yield "</svg>"


_STYLE = """
:root{color-scheme:light;--failed:#b3261e;--unverified:#8a6d00;--verified:#1b6e3c}
*{box-sizing:border-box}
body{font:14px/1.45 system-ui,sans-serif;margin:1.5rem;color:#1c2126;background:#fff}
h1{font-size:1.35rem;margin:0 0 .25rem}
table{border-collapse:collapse;width:100%;table-layout:fixed}
th{text-align:left;border-bottom:2px solid #1c2126;padding:.4rem .5rem}
th:nth-child(1){width:12.5%}th:nth-child(2){width:20%}th:nth-child(3){width:20%}
th:nth-child(4){width:15.5%}th:nth-child(5){width:9.5%}th:nth-child(6){width:7%}
td{vertical-align:top;border-bottom:1px solid #d8dde3;padding:.4rem .5rem;overflow-wrap:anywhere}
small{color:#545d66}ul{margin:.2rem 0 0;padding-left:1.1rem}
.mark{font-weight:600}
.failed .mark{color:var(--failed)}.unverified .mark{color:var(--unverified)}
.verified .mark{color:var(--verified)}
tr.failed td:first-child{box-shadow:inset 4px 0 var(--failed)}
svg{width:100%;max-width:420px;height:2em;display:block}
svg line{stroke-width:2.5}svg line.axis{stroke:#aab2ba;stroke-width:1}
svg line.failed{stroke:var(--failed)}svg line.unverified{stroke:var(--unverified)}
svg line.verified{stroke:var(--verified)}
tr{break-inside:avoid}thead{display:table-header-group}
@media screen and (max-width:800px){
body{margin:.75rem}table,tbody,tr,td{display:block}thead{display:none}
tr{border:1px solid #d8dde3;border-radius:6px;margin:0 0 .75rem;padding:.25rem 0}
tr.failed{border-left:4px solid var(--failed)}tr.failed td:first-child{box-shadow:none}
td{border:0;display:grid;grid-template-columns:7rem minmax(0,1fr);padding:.2rem .6rem}
td::before{content:attr(data-head);color:#545d66}}
@media print{body{margin:0;font-size:10px}@page{margin:12mm}}
"""
