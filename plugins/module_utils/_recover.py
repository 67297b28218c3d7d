# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What earlier runs left behind: lists it, finishes or removes it."""

from __future__ import annotations

from typing import Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError


def plan_recovery(store: str, guest: Optional[str] = None) -> list[str]:
    """What recover() would do, one sentence each. Touches nothing."""
    raise LivesnapError("not implemented yet")


def recover(store: str, guest: Optional[str] = None) -> list[str]:
    """Finish or remove what a crash or reboot left, of one guest or of all; one sentence each.

    What is still being made by a living run is left alone.
    """
    raise LivesnapError("not implemented yet")
