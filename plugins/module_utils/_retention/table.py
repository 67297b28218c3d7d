# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decisions as a table of text. Pure."""

from __future__ import annotations

from typing import Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._retention.decide import (
    REMOVE,
    Decision,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._units import format_size

_HEADINGS = ("SNAPSHOT", "CREATED", "DECISION", "FREED", "REASONS")


def row(decision: Decision, freed: Optional[int], note: str = "") -> tuple[str, ...]:
    """The line of one: `freed` in bytes where it is known, `note` what came of it."""
    each = decision.snapshot
    reasons = [reason.text for reason in decision.reasons] + ([note] if note else [])
    return (
        each.key,
        f"{each.created:%Y-%m-%dT%H:%M:%SZ}" if each.created is not None else "-",
        decision.decision,
        format_size(freed) if decision.decision == REMOVE and freed is not None else "-",
        "; ".join(reasons),
    )


def lines(rows: Sequence[Sequence[str]], headings: Sequence[str] = _HEADINGS) -> list[str]:
    """Headings and rows, in columns as wide as they have to be."""
    every = [headings, *rows]
    widths = [max(len(cells[at]) for cells in every) for at in range(len(headings))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip()
        for cells in every
    ]
