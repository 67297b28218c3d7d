# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks that stand on more snapshots than max_chain: the oldest go, once a new one is complete."""

from __future__ import annotations

from typing import Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils import _remove
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.spec import SnapshotSpec
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.overlay import MERGE
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._store import chain, status
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store


def merge_oldest(
    spec: SnapshotSpec, store: Store, covered: Sequence[str], apply: bool
) -> tuple[list[str], list[str]]:
    """As option when_chain_full says: what was removed, or (not `apply`) would be, and warnings.

    covered: the images that the new snapshot is made of, or would be.
    """
    if spec.when_chain_full != MERGE or not spec.max_chain:
        return [], []
    done: list[str] = []
    gone: list[str] = []
    try:
        for image in covered:
            below = chain.below(store, spec.guest, image)
            left = [name for name in below if name not in gone]
            spared = [name for name in left if _is_pinned(store, spec.guest, name)]
            for name in [each for each in reversed(left) if each not in spared]:
                if 1 + len(left) <= spec.max_chain:
                    break
                done.append(_remove.remove_complete(store, spec.guest, name, apply, gone))
                gone.append(name)
                left.remove(name)
            if 1 + len(left) > spec.max_chain:
                return done, [_said(spec, len(left), "the older ones are pinned")]
    except LivesnapError as err:
        return done, [_said(spec, len(left), str(err))]
    return done, []


def _is_pinned(store: Store, guest: str, name: str) -> bool:
    return bool(status.read(store.snapshot(guest, name))["pinned"])


def _said(spec: SnapshotSpec, below: int, why: str) -> str:
    return (
        f"a disk of guest '{spec.guest}' stands on {1 + below} snapshots, more than max_chain"
        f" {spec.max_chain}: {why}"
    )
