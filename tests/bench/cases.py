# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is measured, and the figures to reach. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MIB = 1 << 20
GIB = 1 << 30
#: Little staging. Bytes.
SMALL = 256 * MIB


@dataclass(frozen=True)
class Bound:
    """`ours` of a variant divided by the peer's `theirs` is to be at most that."""

    variant: str
    ours: str
    theirs: str
    most: float

    @property
    def needs_equal_storage(self) -> bool:
        """Totals bind only where the store was as fast for one engine as for the other."""
        return self.ours == "total_s"


@dataclass(frozen=True)
class Case:
    """One guest; each variant is a set of options of module livesnap."""

    name: str
    title: str
    guest: dict[str, Any]
    variants: dict[str, dict[str, Any]]
    rounds: int
    bounds: tuple[Bound, ...] = ()
    #: ms a GiB that our pause may be longer than the peer's, besides PAUSE_MS; None: no bound
    pause_per_gib: float | None = None
    #: only the pause counts: what the peer writes goes to /dev/null, while the guest stands still
    pause_only: bool = False

    @property
    def memory(self) -> int:
        """Bytes of RAM that the guest has."""
        return int(self.guest["memory"]) * MIB

    def warm(self, variant: str) -> int:
        """Bytes of the host's memory that a capture takes: staging, or a file in the cache."""
        filled = (self.guest["buffer"] + self.guest.get("calm", 0)) * MIB
        if variant not in self.variants:
            return SMALL if self.pause_only else filled
        if self.variants[variant]["staging"] == "auto":
            return self.memory + SMALL
        return SMALL


#: What our pause may be longer than the peer's, whatever the size. Milliseconds.
PAUSE_MS = 10.0

_FULL = {"staging": "auto", "compression": "none"}
_FULL_LZ4 = {"staging": "auto", "compression": "lz4"}
_SMALL = {"staging": "256M", "compression": "none"}
_SMALL_LZ4 = {"staging": "256M", "compression": "lz4"}

_REWRITTEN = {"memory": 4096, "buffer": 2861, "mixed": True, "disks": ()}

CASES = (
    Case(
        "a",
        "4 GiB, 3 GB rewritten in a loop",
        _REWRITTEN,
        {"full none": _FULL, "full lz4": _FULL_LZ4},
        rounds=3,
        bounds=(
            # The peer does not compress.
            Bound("full none", "work_lost_s", "work_lost_s", 0.05),
            Bound("full none", "longest_stall_ms", "longest_stall_ms", 0.08),
            Bound("full none", "protected_s", "total_s", 0.05),
            Bound("full lz4", "work_lost_s", "work_lost_s", 0.05),
            Bound("full lz4", "longest_stall_ms", "longest_stall_ms", 0.08),
            Bound("full lz4", "protected_s", "total_s", 0.05),
        ),
    ),
    Case(
        "a256",
        "the same with little staging",
        _REWRITTEN,
        {"256 MiB none": _SMALL, "256 MiB lz4": _SMALL_LZ4},
        rounds=3,
        bounds=(
            Bound("256 MiB none", "work_lost_s", "work_lost_s", 0.25),
            Bound("256 MiB none", "longest_stall_ms", "longest_stall_ms", 0.25),
            Bound("256 MiB none", "total_s", "total_s", 0.35),
            Bound("256 MiB lz4", "total_s", "total_s", 0.6),
        ),
    ),
    Case(
        "b",
        "4 GiB, 3 GB filled and calm",
        {"memory": 4096, "buffer": 16, "calm": 2845, "mixed": True, "disks": ()},
        {"256 MiB none": _SMALL, "256 MiB lz4": _SMALL_LZ4},
        rounds=3,
        bounds=(
            Bound("256 MiB none", "total_s", "total_s", 0.5),
            Bound("256 MiB lz4", "total_s", "total_s", 0.5),
        ),
    ),
    Case(
        "c",
        "8 GiB, 6 GB filled: the pause",
        {"memory": 8192, "buffer": 16, "calm": 5706, "mixed": True, "disks": ()},
        {"none": {"staging": "256M", "compression": "none"}},
        rounds=9,
        pause_per_gib=0.2,
        pause_only=True,
    ),
    Case(
        "c4k",
        "the same in 4 KiB pages",
        {"memory": 8192, "buffer": 16, "calm": 5706, "mixed": True, "disks": (), "thp": False},
        {"none": {"staging": "256M", "compression": "none"}},
        rounds=9,
        pause_per_gib=1.5,
        pause_only=True,
    ),
)
