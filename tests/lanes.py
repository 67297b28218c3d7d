# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which pieces the tests on real guests are cut into, and what each may find changed by another.

A piece is one pytest in a lane (tests/lane). Two run side by side: most of the time a test waits
for a guest, a deadline or a disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent
LANE = TESTS / "lane"
# They switch the whole machine's KSM on, or fill both cores on purpose.
ALONE = ("test_keeper_faults", "test_ram_vanishes", "test_side_by_side")
# The long ones first, so that both lanes end at about the same time.
FIRST = (
    "test_owner_faults",
    "test_bracket_faults",
    "test_helper_faults",
    "test_snapshot",
    "test_trixie",
)
# What a piece may find changed by another, in words of footprint; all is compared at the very end.
OF_OTHERS = {
    "guests": "loop devices,/dev/shm,KSM,/usr/local,/var/lib/livesnap",
    "integration": "loop devices,/dev/shm,KSM",
}


@dataclass(frozen=True)
class Piece:
    """One run of pytest."""

    tier: str
    path: Path

    @property
    def name(self) -> str:
        """What its log and its lines are called."""
        return self.tier if self.path.is_dir() else f"{self.tier}/{self.path.stem}"


def pieces(tiers: Sequence[str]) -> tuple[list[Piece], list[Piece]]:
    """What runs side by side, in the order in which it begins, and then what runs alone."""
    beside, alone = [], []
    if "integration" in tiers:
        # One piece: its files share a prepared hypervisor, and the machine has one /usr/local.
        beside.append(Piece("integration", TESTS / "integration"))
    if "guests" in tiers:
        files = {path.stem: path for path in sorted((TESTS / "guests").glob("test_*.py"))}
        order = [*FIRST, *(stem for stem in files if stem not in FIRST)]
        beside += [Piece("guests", files[stem]) for stem in order if stem not in ALONE]
        alone = [Piece("guests", files[stem]) for stem in ALONE]
    return beside, alone
