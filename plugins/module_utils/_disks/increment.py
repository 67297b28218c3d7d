# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a copy of a disk can stand on, so that only what was written since need be copied.

In doubt it is a full copy, and the manifest says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._disks import bitmaps
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.scheme import Subject
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import StoreError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import Disk
from ansible_collections.livesnap.qemu.plugins.module_utils._store import chain, manifest
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store

SCHEME = "backup"


@dataclass(frozen=True)
class Base:
    """The image of an earlier snapshot, and the bitmap that counts from it. dirty: bytes."""

    id: str
    name: str
    file: str
    bitmap: str
    dirty: int

    def noted(self) -> dict[str, str]:
        """`base` of the manifest."""
        return {"id": self.id, "name": self.name, "file": self.file}

    @property
    def below(self) -> str:
        """Its image, as one in disks/ of another snapshot names it."""
        return f"../../{self.name}/{self.file}"


@dataclass(frozen=True)
class Choice:
    """What a copy stands on, or why on nothing; no reason is given where none was asked for."""

    base: Optional[Base] = None
    reason: Optional[str] = None


def choose(
    subject: Subject, disks: Sequence[Disk], nodes: Mapping[str, Mapping[str, Any]]
) -> list[Choice]:
    """A choice for each disk. `nodes` as of bitmaps.of_nodes(). Reads the store."""
    if not subject.max_chain:
        return [Choice()] * len(disks)
    if any(disk.target for disk in disks):
        return [Choice(None, "the disk is libvirt's, which has bitmaps of its own")] * len(disks)
    tag = bitmaps.tag(subject.store, subject.guest)
    found = [bitmaps.ours(nodes.get(disk.node, {}), tag) for disk in disks]
    earlier = _Earlier(subject) if any(found) else None
    return [_choice(disk, theirs, earlier) for disk, theirs in zip(disks, found)]


def _choice(disk: Disk, found: Sequence[bitmaps.Bitmap], earlier: Optional[_Earlier]) -> Choice:
    if disk.read_only:
        return Choice(None, "the disk is read-only")
    if not found or earlier is None:
        return Choice(None, "QEMU has no bitmap that counts from an earlier snapshot")
    first: Optional[Choice] = None
    for bitmap in sorted(found, key=earlier.age, reverse=True):
        choice = earlier.judge(disk, bitmap)
        if choice.base is not None:
            return choice
        first = first or choice
    return first or Choice()


class _Earlier:
    """The snapshots of a guest, read once."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        store = Store(subject.store)
        self._known: dict[str, tuple[Path, dict[str, Any]]] = {}
        self._read: dict[Path, dict[str, Any]] = {}
        for name in store.entries(subject.guest)[0]:
            folder = store.snapshot(subject.guest, name)
            try:
                fields = manifest.read(folder)
            except StoreError:
                # It is not one to stand on; livesnap_info says why.
                continue
            self._known[fields["id"]] = (folder, fields)
            self._read[folder] = fields
        self._used = {
            each for fields in self._read.values() for each in chain.bases(fields)
        }

    def age(self, bitmap: bitmaps.Bitmap) -> str:
        """When its snapshot was, '' if that is not known."""
        known = self._known.get(bitmap.snapshot_id)
        return "" if known is None else str(known[1]["created"])

    def judge(self, disk: Disk, bitmap: bitmaps.Bitmap) -> Choice:
        """Whether a copy of a disk can stand on the snapshot that a bitmap counts from."""
        if bitmap.inconsistent:
            return Choice(None, f"bitmap '{bitmap.name}' is inconsistent: QEMU did not end well")
        if bitmap.busy or not bitmap.recording:
            why = "in use by a block job" if bitmap.busy else "switched off"
            return Choice(None, f"bitmap '{bitmap.name}' is {why}")
        known = self._known.get(bitmap.snapshot_id)
        if known is None:
            return Choice(
                None, f"the snapshot with id {bitmap.snapshot_id} is not in the store, or not sound"
            )
        folder, fields = known
        entry = next((each for each in fields["disks"] if _is_of(each, disk)), None)
        reason = self._unfit(disk, fields, entry, folder)
        if reason is not None or entry is None:
            return Choice(None, reason)
        return Choice(
            Base(fields["id"], fields["name"], entry["file"], bitmap.name, bitmap.count)
        )

    def _unfit(
        self,
        disk: Disk,
        fields: Mapping[str, Any],
        entry: Optional[Mapping[str, Any]],
        folder: Path,
    ) -> Optional[str]:
        """Why a snapshot is nothing to stand on."""
        name = fields["name"]
        if entry is None:
            return f"snapshot '{name}' has no copy of this disk"
        if entry["bytes"] != disk.virtual_bytes:
            return f"the disk had another size at snapshot '{name}'"
        owner = (fields["guest_facts"]["uid"], fields["guest_facts"]["gid"])
        if owner != self._subject.owner:
            return f"QEMU ran as another user at snapshot '{name}'"
        if name in self._used:
            return f"another one stands on snapshot '{name}'"
        try:
            length = len(chain.links(folder, entry, self._read))
        except StoreError as err:
            return err.msg
        if length > self._subject.max_chain:
            return f"the chain of snapshot '{name}' is as long as max_chain allows"
        return None


def _is_of(entry: Mapping[str, Any], disk: Disk) -> bool:
    """Whether an entry of a manifest is a copy of this disk."""
    return (entry["scheme"], entry["source"]["file"]) == (SCHEME, disk.file)
