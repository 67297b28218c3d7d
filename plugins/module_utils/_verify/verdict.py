# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a check came to, as status.json keeps it (docs/manifest.md). Pure."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._retention.periods import (
    Duration,
    parse_time,
)

#: Each includes those before it.
LEVELS = ("checksum", "structure", "memory", "drill")
PASSED, FAILED = "passed", "failed"


def up_to(level: str) -> tuple[str, ...]:
    """The levels that a check of this level goes through, in order."""
    return LEVELS[: LEVELS.index(level) + 1]


def make(level: str, result: str, when: str, version: str, evidence: Any) -> dict[str, Any]:
    """A verdict. Of a check that failed `level` is the one at which it did."""
    return {
        "level": level,
        "result": result,
        "when": when,
        "version": version,
        "evidence": evidence,
    }


def with_verdict(verdicts: Sequence[Any], new: Mapping[str, Any]) -> list[Any]:
    """The list with a new one: it takes the place of all whose level it went through."""
    gone = up_to(new["level"])
    kept = [each for each in verdicts if not (isinstance(each, dict) and each.get("level") in gone)]
    return [*kept, dict(new)]


def standing(
    verdicts: Sequence[Any], level: str, max_age: Optional[Duration], now: datetime
) -> Optional[dict[str, Any]]:
    """The verdict that makes another check of this level needless, if there is one.

    It is good, of this level or a higher one, not older than max_age, and no verdict of any level
    is bad. status.json is not trusted: what is no verdict counts as a bad one.
    """
    found: Optional[dict[str, Any]] = None
    for each in verdicts:
        if not isinstance(each, dict) or each.get("result") != PASSED:
            return None
        if each.get("level") not in LEVELS or each["level"] in up_to(level)[:-1]:
            continue
        if max_age is None or _is_younger(each.get("when"), max_age, now):
            found = each
    return found


def _is_younger(when: Any, max_age: Duration, now: datetime) -> bool:
    try:
        then = parse_time(when)
    except (TypeError, ValueError):
        return False
    limit = max_age.before(now, timezone.utc) if max_age else now
    return limit is None or then > limit
