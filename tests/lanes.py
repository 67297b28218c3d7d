# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which pieces the tests on real guests are cut into, and what each may find changed by another.

A piece is one pytest in a lane (tests/lane). Three run side by side: part of its time a test waits
for a guest, a deadline or a disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent
LANE = TESTS / "lane"
WIDTH = 3
# They switch the whole machine's KSM on, which no capture of another lane may meet: it would pause
# KSM, and at its end put back what it found. Of the native programs those with the prefix do.
MERGING = ("test_keeper_faults", "test_ram_vanishes")
MERGING_PREFIX = "test_ksm_"
# It fills both cores on purpose.
ALONE = ("test_side_by_side",)
# The long ones first, so that all lanes end at about the same time.
FIRST = (
    "test_owner_faults",
    "test_capture_ram",
    "test_bracket_faults",
    "test_helper_faults",
    "test_snapshot",
    "test_trixie",
)
# Files that share a prepared hypervisor. The rest are a piece, too.
SHARES = (
    ("test_each_option", "test_host", "test_prune", "test_restore"),
    (
        *("test_fleet", "test_awx", "test_execution_environment", "test_killed", "test_libvirt"),
        *("test_half_a_day", "test_workflow"),
    ),
)
# What a piece may find changed by another, in words of footprint; all is compared at the very end.
OF_OTHERS = "loop devices,/dev/shm,KSM,/var/lib/livesnap"


@dataclass(frozen=True)
class Piece:
    """One run of pytest. Its name is what its log and its lines are called."""

    tier: str
    name: str
    paths: tuple[Path, ...]


def _integration() -> list[Piece]:
    folder = TESTS / "integration"
    files = {path.stem: path for path in sorted(folder.glob("test_*.py"))}
    rest = tuple(stem for stem in files if not any(stem in share for share in SHARES))
    return [
        Piece("integration", f"integration/{number}", tuple(files[stem] for stem in share))
        for number, share in enumerate((rest, *SHARES), 1)
    ]


def _guests(stems: Sequence[str]) -> list[Piece]:
    folder = TESTS / "guests"
    return [Piece("guests", f"guests/{stem}", (folder / f"{stem}.py",)) for stem in stems]


@dataclass(frozen=True)
class Order:
    """Pieces that run one after the other beside no capture; side by side, in the order in which
    they begin; and one after the other, alone."""

    merging: list[Piece]
    beside: list[Piece]
    alone: list[Piece]


def order(tiers: Sequence[str]) -> Order:
    """All pieces of tiers."""
    beside = _integration() if "integration" in tiers else []
    if "guests" not in tiers:
        return Order([], beside, [])
    rest = (path.stem for path in sorted((TESTS / "guests").glob("test_*.py")))
    stems = dict.fromkeys([*FIRST, *rest])
    beside += _guests([stem for stem in stems if stem not in (*MERGING, *ALONE)])
    return Order(_guests(MERGING), beside, _guests(ALONE))
