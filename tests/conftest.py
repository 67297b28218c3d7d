# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the checkout importable as ansible_collections.livesnap.qemu, and libvirt; loop sizes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Callable

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from layout import COLLECTIONS, REPO, link_collection, reach_libvirt

link_collection()
reach_libvirt()
for entry in (str(REPO / "tests" / "guests"), str(REPO), str(COLLECTIONS)):
    if entry not in sys.path:
        sys.path.insert(0, entry)


@pytest.fixture(scope="session")
def rounds() -> Callable[[int, int], int]:
    """rounds(short, full): how often a loop runs. ROUNDS=full is test-long; a number wins."""
    size = os.environ.get("ROUNDS", "short")

    def choose(short: int, full: int) -> int:
        if size.isdigit():
            return int(size)
        return full if size == "full" else short

    return choose
