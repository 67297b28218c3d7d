# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`snapshot` in check mode: what can be known beforehand. Pure."""

from __future__ import annotations

from typing import Any, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.spec import SnapshotSpec
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.select import Selection
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store


def predicted(
    spec: SnapshotSpec,
    uuid: Optional[str],
    consistency: Mapping[str, Any],
    engine: Optional[str],
    memory_bytes: Optional[int],
    selection: Selection,
    estimates: Mapping[str, int],
    blockers: Sequence[str],
) -> dict[str, Any]:
    """The result of a run that is not made. `estimates`: node name -> bytes of its copy."""
    return {
        "id": None,
        "guest": spec.guest,
        "uuid": uuid,
        "name": spec.name,
        "created": None,
        "path": str(Store(spec.store).snapshot(spec.guest, spec.name)),
        "complete": False,
        "consistency": dict(consistency),
        "engine": engine,
        "timings": None,
        "memory": None if memory_bytes is None else {"bytes": memory_bytes},
        "disks": [
            {
                "match": disk.label,
                "node": disk.node,
                "scheme": scheme,
                "bytes": disk.virtual_bytes,
                "stored_bytes": estimates[disk.node],
                "file": None,
            }
            for disk, scheme in selection.chosen
        ],
        "restore_blockers": list(blockers),
        "schedule": spec.schedule,
        "slot": spec.slot,
        "labels": sorted(set(spec.labels or [])),
        "pinned": bool(spec.pinned),
    }
