# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest is left as if it had never been captured, and what does not need its images stays."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _flatten
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import remove_snapshot
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    QmpConnectError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.address import SocketAddress
from ansible_collections.livesnap.qemu.plugins.module_utils._store import listing
from bracket_kit import clean
from lab import DiskSpec, Guest
from overlay_kit import alone, chains, entries
from taking import TestStore

DISKS = (DiskSpec(format="qcow2"), DiskSpec(format="qcow2"))


def inside(guest: Guest) -> list[tuple[list[Any], list[Any]]]:
    """Bitmaps and snapshots that are kept in each image."""
    found = []
    for path in guest.disk_paths:
        told = json.loads(subprocess.run(
            ["qemu-img", "info", "-U", "--output=json", str(path)], check=True, timeout=60,
            capture_output=True).stdout)
        data = told["format-specific"]["data"]
        found.append((data.get("bitmaps", []), told.get("snapshots", [])))
    return found


def test_nothing_of_ours_stays(make_guest: Callable[..., Guest], store: TestStore) -> None:
    guest = make_guest(name="leaves", disks=DISKS)
    boot = guest.counts()["boot"]
    there = SocketAddress(str(guest.qmp_path))

    def flatten(apply: bool = True) -> list[str]:
        return list(_flatten.flatten(str(store.path), "leaves", there, apply))

    store.take(guest, "copied", memory=False)
    store.take(guest, "inside", memory=False,
               disks=[{"match": "disk0", "scheme": "none"},
                      {"match": "disk1", "scheme": "internal"}])
    for name in ("below", "above"):
        store.take(guest, name, memory=False, disk_scheme="overlay", pinned=True)
    store.take(guest, "upon", memory=False,
               disks=[{"match": "disk0", "scheme": "none"},
                      {"match": "disk1", "scheme": "internal"}])
    # It cannot be taken out of an image that is not written to, and goes with one that goes.
    with pytest.raises(RefusedError, match=r"inside '.*', which snapshot 'below' is made of"):
        remove_snapshot(store.spec(guest, "inside"))
    with pytest.raises(RefusedError, match="has 1 snapshots inside, which would go with it"):
        remove_snapshot(store.spec(guest, "above"))
    with pytest.raises(QmpConnectError, match=r"missing\.sock"):
        nowhere = SocketAddress(str(guest.folder / "missing.sock"))
        list(_flatten.flatten(str(store.path), "leaves", nowhere, apply=True))
    assert sorted(entries(store, guest)) == ["above", "below", "copied", "inside", "upon"]
    foreseen = flatten(apply=False)
    assert sorted(entries(store, guest)) == ["above", "below", "copied", "inside", "upon"]
    assert [len(files) for files in chains(guest)] == [3, 3]
    done = flatten()
    assert done == foreseen
    assert [each.split("'")[1] for each in done[:4]] == ["upon", "above", "below", "inside"]
    assert done[4:] and all(each.startswith("removed dirty bitmap") for each in done[4:])
    alone(guest)
    clean(guest)
    assert sorted(entries(store, guest)) == ["copied"]
    assert flatten() == []
    copy = store.take(guest, "next", memory=False)["snapshot"]["disks"][0]
    assert copy["full_because"] and not copy["base"]
    flatten()
    assert guest.counts()["boot"] == boot
    guest.shut_down()
    assert inside(guest) == [([], []), ([], [])]


def test_not_while_a_snapshot_is_in_the_making(
        guest: Guest, store: TestStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mock of the process that makes it: what matters is that nothing is begun."""
    (store.path / guest.options.name / "one.partial").mkdir(parents=True)
    monkeypatch.setattr(listing, "in_progress", lambda *_given: {"owner": {}})
    with pytest.raises(RefusedError, match=r"'one' of guest '.*' is in the making"):
        list(_flatten.flatten(str(store.path), guest.options.name,
                              SocketAddress(str(guest.qmp_path)), apply=True))
