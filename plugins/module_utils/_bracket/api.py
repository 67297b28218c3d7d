# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sequence that takes a snapshot, with its undo.

A result, of plan as well as of take and remove, is what module livesnap returns:
{changed: bool, snapshot: dict or None, actions: [str], recovered: [str], warnings: [str],
diff: {before, after}}. All raise LivesnapError.
"""

from __future__ import annotations

from typing import Any

from ansible_collections.livesnap.qemu.plugins.module_utils import _owner
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket import entry
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.spec import SnapshotSpec

__all__ = ["SnapshotSpec", "plan_removal", "plan_snapshot", "remove_snapshot", "take_snapshot"]


def plan_snapshot(spec: SnapshotSpec) -> dict[str, Any]:
    """What take_snapshot would do. QMP queries only; creates and attaches to nothing."""
    return entry.plan_take(spec)


def take_snapshot(spec: SnapshotSpec) -> dict[str, Any]:
    """Take it in a process of its own, or bring the status of an existing one up to date."""
    return _owner.follow(_owner.run_detached(spec))


def plan_removal(spec: SnapshotSpec) -> dict[str, Any]:
    """What remove_snapshot would do."""
    return entry.remove(spec, apply=False)


def remove_snapshot(spec: SnapshotSpec) -> dict[str, Any]:
    """Remove a snapshot, aborting one in progress. A complete one needs no QMP socket."""
    return entry.remove(spec, apply=True)
