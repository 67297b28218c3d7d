# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the checkout is, and the tree in which it is found as a collection."""

from __future__ import annotations

import os
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
COLLECTIONS = REPO / "build" / "collections"


def link_collection() -> None:
    """A tree with one symbolic link, in which Python and Ansible find the collection."""
    link = COLLECTIONS / "ansible_collections" / "livesnap" / "qemu"
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.resolve() == REPO:
        return
    fresh = link.with_name(f"qemu.{os.getpid()}")
    fresh.symlink_to(REPO)
    fresh.replace(link)
