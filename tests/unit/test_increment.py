# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a copy stands on, and why it is a full one: a made-up QEMU. tests/guests has a real one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import bitmaps, increment
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.scheme import Subject
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import Disk
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.process import QemuProcess
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store
from test_store import ID, fields, make

OTHER = "2b671a64-40d5-491e-99b0-da01ff1f3342"
DISK = Disk("", "n0", "d0", "", "/x", "raw", 10, False, False, True)


class Qmp:
    """QEMU with one node, and its bitmaps."""

    def __init__(self, *found: dict[str, Any], **about: Any) -> None:
        self.node = {"node-name": "n0", "dirty-bitmaps": list(found), **about}
        self.asked: list[tuple[str, Any]] = []

    def execute(self, command: str, arguments: Any = None, _timeout: float = 0) -> Any:
        self.asked.append((command, arguments))
        return [self.node]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    root = tmp_path / "store"
    root.mkdir(mode=0o711)
    return Store(str(root))


def subject(store: Store, uid: int = 0, max_chain: int = 16) -> Subject:
    process = QemuProcess(1, 1, uid, 0, (), "u", (), "/", "/q", "/")
    return Subject("web1", str(store.root), process, None, max_chain)


def bitmap(store: Store, snapshot_id: str = ID, **about: Any) -> dict[str, Any]:
    name = bitmaps.name_of(snapshot_id, bitmaps.tag(str(store.root), "web1"))
    return {"name": name, "count": 65536, "recording": True, "busy": False, **about}


def choice(
        whose: Subject, *found: dict[str, Any], disk: Disk = DISK) -> tuple[str | None, str | None]:
    qmp: Any = Qmp(*found)
    (made,) = increment.choose(whose, [disk], bitmaps.of_nodes(qmp))
    return None if made.base is None else made.base.name, made.reason


def test_it_stands_on_the_newest(store: Store) -> None:
    make(store, "one")
    make(store, "two", id=OTHER, created="2026-11-24T01:00:07Z")
    whose, both = subject(store), (bitmap(store), bitmap(store, OTHER))
    assert choice(whose, *both) == ("two", None)
    assert choice(whose, *reversed(both)) == ("two", None)
    assert choice(whose, both[0]) == ("one", None)
    # An older one serves where the newest does not.
    assert choice(whose, both[0], bitmap(store, OTHER, inconsistent=True)) == ("one", None)
    qmp: Any = Qmp(*both)
    (made,) = increment.choose(whose, [DISK], bitmaps.of_nodes(qmp))
    assert made.base is not None and made.base.dirty == 65536
    assert made.base.below == "../../two/disks/0-d0.qcow2"
    assert made.base.noted() == {"id": OTHER, "name": "two", "file": "disks/0-d0.qcow2"}


@pytest.mark.parametrize(("about", "disk", "whose", "reason"), [
    ({}, {"read_only": True}, {}, "read-only"),
    ({}, {"target": "vda"}, {}, "libvirt's"),
    ({"inconsistent": True}, {}, {}, "is inconsistent"),
    ({"busy": True}, {}, {}, "in use by a block job"),
    ({"recording": False}, {}, {}, "switched off"),
    ({"snapshot_id": OTHER}, {}, {}, f"id {OTHER} is not in the store"),
    ({}, {"file": "/y"}, {}, "has no copy of this disk"),
    ({}, {"virtual_bytes": 11}, {}, "had another size"),
    ({}, {}, {"uid": 5}, "ran as another user"),
])
def test_why_on_none(
        store: Store, about: dict[str, Any], disk: dict[str, Any], whose: dict[str, int],
        reason: str) -> None:
    make(store)
    base, said = choice(subject(store, **whose), bitmap(store, **about),
                        disk=dataclasses.replace(DISK, **disk))
    assert base is None and said is not None and reason in said


def test_bitmaps_of_others_count_for_nothing(store: Store) -> None:
    make(store)
    theirs = {**bitmap(store), "name": f"livesnap-{ID}@00000000"}
    assert choice(subject(store), theirs, {"name": "backup-2026"})[1] == (
        "QEMU has no bitmap that counts from an earlier snapshot")
    assert choice(subject(store, max_chain=0), bitmap(store)) == (None, None)


def test_a_chain_neither_branches_nor_grows_for_ever(store: Store) -> None:
    make(store, "one")
    disk = {**fields()["disks"][0], "base": {"id": ID, "name": "one", "file": "disks/0-d0.qcow2"}}
    make(store, "two", id=OTHER, disks=[disk])
    assert choice(subject(store), bitmap(store)) == (None, "another one stands on snapshot 'one'")
    assert choice(subject(store), bitmap(store, OTHER)) == ("two", None)
    assert choice(subject(store, max_chain=2), bitmap(store, OTHER)) == ("two", None)
    assert choice(subject(store, max_chain=1), bitmap(store, OTHER))[1] == (
        "the chain of snapshot 'two' is as long as max_chain allows")
    # One that is not sound is nothing to stand on, and nothing can be said of what is on it.
    (store.snapshot("web1", "one") / "disks" / "0-d0.qcow2").unlink()
    base, said = choice(subject(store), bitmap(store, OTHER))
    assert base is None and said is not None and "'one', which is not sound" in said


def test_a_new_bitmap_is_kept_where_it_can_be() -> None:
    qcow2 = {"format-specific": {"type": "qcow2", "data": {"compat": "1.1"}}}
    old = {"format-specific": {"type": "qcow2", "data": {"compat": "0.10"}}}
    for image, kept in ((qcow2, True), (old, False), ({}, False)):
        qmp: Any = Qmp()
        bitmaps.add(qmp, {"node-name": "n0", "image": image}, "livesnap-x@y")
        ((command, arguments),) = qmp.asked
        assert command == "block-dirty-bitmap-add" and arguments["disabled"]
        assert arguments["persistent"] == kept
