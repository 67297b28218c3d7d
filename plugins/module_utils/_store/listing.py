# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in a store."""

from __future__ import annotations

from typing import Any, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError


def list_snapshots(store: str, guest: Optional[str] = None) -> list[dict[str, Any]]:
    """All snapshots of a store, or of one guest, newest first (docs/manifest.md).

    One that is in the making has `in_progress`; one whose manifest fails its check has `problem`.
    """
    raise LivesnapError("not implemented yet")
