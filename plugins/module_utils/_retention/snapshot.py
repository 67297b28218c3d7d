# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What deciding about a snapshot needs to know of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._retention.periods import parse_time


@dataclass(frozen=True)
class Snapshot:
    """One of a store. What is not `sound` is never judged, and never removed."""

    #: Unique among those that are decided about together.
    key: str
    guest: str
    name: str
    #: In UTC; None where it is not known, as of one that is not sound.
    created: Optional[datetime]
    schedule: Optional[str] = None
    labels: tuple[str, ...] = ()
    pinned: bool = False
    #: Whether it passed the latest check of each level that it went through, at least one.
    verified: bool = False
    #: Complete, with a manifest that holds.
    sound: bool = True
    #: Why it is not.
    problem: str = ""
    #: What keep_when says of it.
    wanted: bool = False
    #: Keys of those that it cannot be restored without.
    needs: tuple[str, ...] = ()
    #: Why it may not be removed whatever the policy says; '' where it may.
    held: str = ""

    @property
    def time(self) -> datetime:
        """When it was created, of one that is known to be."""
        if self.created is None:
            raise ValueError(f"snapshot '{self.key}' has no time")
        return self.created


def snapshot_of(
    info: Mapping[str, Any], needs: Sequence[str] = (), wanted: bool = False, held: str = ""
) -> Snapshot:
    """From what livesnap_info returns of one. What it stands on is told by who knows."""
    sound = bool(info["complete"]) and not info["problem"] and not info["in_progress"]
    return Snapshot(
        key=f"{info['guest']}/{info['name']}",
        guest=info["guest"],
        name=info["name"],
        created=parse_time(info["created"]) if info["created"] else None,
        schedule=info["schedule"],
        labels=tuple(info["labels"]),
        pinned=bool(info["pinned"]),
        verified=is_verified(info["verdicts"]),
        sound=sound,
        problem="" if sound else _problem(info),
        wanted=wanted,
        needs=tuple(needs),
        held=held,
    )


def _problem(info: Mapping[str, Any]) -> str:
    if info["in_progress"]:
        return "in the making"
    return str(info["problem"] or "not complete")


def is_verified(verdicts: Sequence[Any]) -> bool:
    """Whether the newest verdict of each level is good, of at least one (docs/manifest.md).

    status.json is not trusted: what is no verdict counts as a bad one.
    """
    newest: dict[str, bool] = {}
    for verdict in verdicts:
        if not isinstance(verdict, dict):
            return False
        newest[str(verdict.get("level"))] = verdict.get("result") == "passed"
    return bool(newest) and all(newest.values())
