# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one tracker that `changed`, `diff` and `actions` come from, so that they can't disagree.

Private to this collection.
"""

from __future__ import annotations

from typing import Any, Iterable


class Changes:
    """What a module did, or in check mode would do, in order."""

    def __init__(self) -> None:
        self.actions: list[str] = []
        self.recovered: list[str] = []
        self._before: dict[str, Any] = {}
        self._after: dict[str, Any] = {}

    def add(self, action: str, subject: str, before: Any, after: Any) -> None:
        """One change: `subject` was `before` and is `after`."""
        self.actions.append(action)
        # A subject that changes twice began with what it was the first time.
        self._before.setdefault(subject, before)
        self._after[subject] = after

    def recover(self, lines: Iterable[str]) -> None:
        """What an earlier run left behind and this one put right."""
        self.recovered.extend(lines)

    @property
    def changed(self) -> bool:
        """True when anything was done."""
        return bool(self.actions or self.recovered)

    def result(self) -> dict[str, Any]:
        """The part of a module's result that says what changed."""
        before: dict[str, Any] = dict(self._before)
        after: dict[str, Any] = dict(self._after)
        if self.recovered:
            before["left behind"] = list(self.recovered)
            after["left behind"] = []
        return {
            "changed": self.changed,
            "diff": {"before": before, "after": after},
            "actions": list(self.actions),
            "recovered": list(self.recovered),
        }
