# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The snapshots that a policy has kept, drawn on time axes: SVG 1.1 as text. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo
from typing import Iterator, Sequence
from xml.sax.saxutils import escape

from ansible_collections.livesnap.qemu.plugins.module_utils._retention.decide import Decision

_LEFT, _WIDTH, _ROW, _RIGHT = 190, 960, 22, 30
#: What one picture of a long time can't show: it has one of its last days beside it.
_CLOSE = timedelta(days=31)
_COLOURS = ("#1b6ca8", "#2e8b57", "#b8651b", "#8a3ffc", "#b02a4c", "#5b6770")


def draw(kept: Sequence[Decision], start: datetime, end: datetime, zone: tzinfo, title: str) -> str:
    """A row a reason, a point a snapshot; the whole time, and if that is long its last month."""
    spans = [(start, end)]
    if end - start > 2 * _CLOSE:
        spans.append((end - _CLOSE, end))
    body: list[str] = []
    top = 50
    for first, last in spans:
        panel = list(_panel(kept, first, last, zone, top))
        body += panel
        top += (len(_rows(kept)) + 3) * _ROW
    size = (_LEFT + _WIDTH + _RIGHT, top)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}"'
        f' viewBox="0 0 {size[0]} {size[1]}" font-family="sans-serif" font-size="12">',
        f'<rect width="{size[0]}" height="{size[1]}" fill="white"/>',
        f'<text x="10" y="24" font-size="15">{escape(title)}</text>',
        *body,
        "</svg>",
        "",
    ])  # fmt: skip


def _rows(kept: Sequence[Decision]) -> dict[str, str]:
    """rule -> text of every rule that keeps something, in the order in which they are met."""
    found: dict[str, str] = {}
    for each in kept:
        for reason in each.reasons:
            found.setdefault(reason.rule, reason.text.replace(" (the oldest)", ""))
    return found


def _panel(
    kept: Sequence[Decision], start: datetime, end: datetime, zone: tzinfo, top: int
) -> Iterator[str]:
    rows = _rows(kept)
    bottom = top + len(rows) * _ROW
    for moment, text in _marks(start, end, zone):
        x = _place(moment, start, end)
        yield f'<line x1="{x}" y1="{top}" x2="{x}" y2="{bottom}" stroke="#d8dde3"/>'
        yield f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{text}</text>'
    for number, (rule, text) in enumerate(rows.items()):
        y = top + number * _ROW + _ROW // 2
        yield f'<text x="{_LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(text)}</text>'
        colour = _COLOURS[number % len(_COLOURS)]
        for each in kept:
            time = each.snapshot.time
            if start <= time <= end and any(reason.rule == rule for reason in each.reasons):
                shown = f"{each.snapshot.name}: {'; '.join(found.text for found in each.reasons)}"
                yield (
                    f'<circle cx="{_place(time, start, end)}" cy="{y}" r="4" fill="{colour}"'
                    f' fill-opacity="0.7"><title>{escape(shown)}</title></circle>'
                )


def _place(moment: datetime, start: datetime, end: datetime) -> float:
    return round(_LEFT + _WIDTH * ((moment - start) / (end - start)), 1)


def _marks(start: datetime, end: datetime, zone: tzinfo) -> Iterator[tuple[datetime, str]]:
    """Where months begin, or in a shorter time days, so many that they can be read."""
    every = max(1, (end - start).days // 12)
    day = start.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0)
    number = 0
    while day <= end:
        by_month = every > 5
        if start <= day and (day.day == 1 if by_month else number % every == 0):
            yield day, f"{day:%b %Y}" if by_month else f"{day:%d %b}"
        number += 1
        # On the wall clock: a day may have 23 or 25 hours.
        day = (day.replace(tzinfo=None) + timedelta(days=1)).replace(tzinfo=zone)
