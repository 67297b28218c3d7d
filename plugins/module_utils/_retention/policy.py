# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A policy: what is to be kept, checked when it is made. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import RefusedError
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.periods import Duration

#: keep_<name>: so many of the newest ones, each of a period of its own; -1 is all of them.
COUNTS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
#: keep_within_<name>: of each period one, for so long.
WITHIN = ("hourly", "daily", "weekly", "monthly", "yearly")
_NONE = Duration()
GROUPS = ("guest", "schedule", "label")


@dataclass(frozen=True)
class Policy:
    """Rules of which any keeps a snapshot, and what they are applied to."""

    #: By COUNTS; 0: the rule is not used.
    counts: tuple[int, ...] = (0,) * len(COUNTS)
    within: Duration = _NONE
    #: By WITHIN.
    within_periods: tuple[Duration, ...] = (_NONE,) * len(WITHIN)
    #: A snapshot that has all labels of one of them is kept; '' stands for having none.
    labels: tuple[tuple[str, ...], ...] = ()
    #: Whether snapshots may say themselves that they are to be kept (Snapshot.wanted).
    when: bool = False
    group_by: str = "guest"
    #: Whether a group may lose its newest complete and newest verified snapshot.
    allow_empty: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Policy:
        """Of keep_last, keep_within, ... as modules have them; RefusedError quotes what is wrong.

        A policy without a rule is refused: it would keep nothing.
        """
        policy = cls(
            counts=tuple(_count(options, f"keep_{name}") for name in COUNTS),
            within=_duration(options, "keep_within"),
            within_periods=tuple(_duration(options, f"keep_within_{name}") for name in WITHIN),
            labels=_labels(options.get("keep_labels") or ()),
            when=bool(options.get("keep_when")),
            group_by=options.get("group_by") or "guest",
            allow_empty=bool(options.get("allow_empty")),
        )
        if policy.group_by not in GROUPS:
            raise RefusedError(
                f"group_by '{policy.group_by}' is none of {', '.join(GROUPS)}", reason="policy"
            )
        if policy.empty:
            raise RefusedError(
                "the policy is empty: no keep_... option is set, so it would keep nothing",
                "say what to keep, such as keep_daily: 7",
                "policy",
            )
        return policy

    @property
    def empty(self) -> bool:
        """Whether there is no rule that could keep anything."""
        rules = (*self.counts, self.within, *self.within_periods, self.labels, self.when)
        return not any(rules)


def _count(options: Mapping[str, Any], name: str) -> int:
    value = options.get(name) or 0
    if isinstance(value, bool) or not isinstance(value, int) or value < -1:
        raise RefusedError(
            f"{name} '{value}' is not a number of snapshots",
            "0 is none, -1 is all of them",
            "policy",
        )
    return value


def _duration(options: Mapping[str, Any], name: str) -> Duration:
    return Duration.parse(str(options.get(name) or ""), name)


def _labels(given: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(label.strip() for label in str(each).split(",")) for each in given)
