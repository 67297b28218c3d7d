# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scheme overlay: new images that take the guest's writes, and go again while it runs."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _recover
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import (
    plan_snapshot,
    remove_snapshot,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import layers, overlay, uncover
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.overlay import Overlay
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from bracket_kit import clean, fault, wait, well
from lab import DiskSpec, Guest, disk_state
from overlay_kit import allocated, alone, chains, entries, judged
from taking import TestStore, folder_of, helper, verdict
from test_bad_input import mounted

DISKS = (DiskSpec(), DiskSpec(format="qcow2"))
#: The most that a layer of these has besides data, bytes.
TABLES = 512 << 10


@pytest.fixture
def pair(make_guest: Callable[..., Guest]) -> Iterator[Guest]:
    """A guest as libvirt starts one, with a raw and a qcow2 disk."""
    guest = make_guest(name="pair", disks=DISKS, user="nobody", sandbox=True)
    yield guest
    if guest.alive:
        clean(guest)


def take(store: TestStore, guest: Guest, name: str, **options: Any) -> dict[str, Any]:
    return store.take(guest, name, disk_scheme="overlay", **options)


def comes_back(store: TestStore, guest: Guest, name: str, counters: range) -> None:
    """As a clone that counts on from a counter of its own instant."""
    then = disk_state(entries(store, guest)[name]["disks"][0]["covered"]).counter
    assert then in counters
    with store.clone(guest, name) as clone:
        now = clone.counts()
        assert now["counter"] > then and now["boot"] == guest.ask()["boot"]


def start_with(guest: Guest, snapshot: dict[str, Any]) -> None:
    """What the operator has been told to do: another image in the command line."""
    (path,), (disk,) = guest.disk_paths, snapshot["disks"]
    guest.argv = [word.replace(f"filename={path}", f"filename={disk['overlay']}")
                  for word in guest.argv]
    guest.start()


def test_one_instant(pair: Guest, store: TestStore) -> None:
    pages, boot = pair.witness()["pages"], pair.counts()["boot"]
    for number in range(3):
        result = take(store, pair, f"s{number}")
        assert result["warnings"] == [Overlay.WARNING]
        assert verdict(pair, result, pages,
                       [Path(disk["covered"]) for disk in result["snapshot"]["disks"]]) == ""
        for disk, path in zip(result["snapshot"]["disks"], pair.disk_paths):
            new = Path(disk["overlay"])
            assert new.name == f"{path.name}.livesnap-{result['snapshot']['id'][:8]}.qcow2"
            about, below = new.stat(), path.stat()
            assert (about.st_uid, about.st_mode) == (below.st_uid, below.st_mode)
            assert disk["file"] is None and disk["stored_bytes"] == 0
    assert [len(files) for files in chains(pair)] == [4, 4]
    well(pair)
    for name in ("s0", "s2"):
        with store.clone(pair, name) as clone:
            assert clone.counts()["boot"] == boot
            assert clone.devices()["disk1"] == "ok"
            # What it stands on must stay as it is, below the next snapshot as well.
            with pytest.raises(RefusedError, match="running clones stand on its images"):
                remove_snapshot(store.spec(pair, "s0"))
    with store.restored_by_hand(pair, "s1") as restored:
        assert restored.counts()["boot"] == boot
    with pytest.raises(LivesnapError, match=r"of a chain that snapshot 's[12]' is part of"):
        store.restore(pair, "s1", keep_current=False)
    with pytest.raises(LivesnapError, match="stands on 3 snapshots, as many as max_chain"):
        take(store, pair, "s3", max_chain=3)
    damaged = folder_of({"snapshot": entries(store, pair)["s1"]}) / "manifest.json"
    data = damaged.read_bytes()
    damaged.write_bytes(data + b"\n")
    with pytest.raises(RefusedError, match="'s1', whose manifest is damaged, is made of"):
        remove_snapshot(store.spec(pair, "s0"))
    damaged.write_bytes(data)
    assert verdict(pair, store.take(pair, "copy"), pages) == ""
    for name in ("s2", "s0", "s1"):
        remove_snapshot(store.spec(pair, name))
    alone(pair)
    clean(pair)
    well(pair)


def test_they_go_in_any_order(make_guest: Callable[..., Guest], store: TestStore,
                              rounds: Callable[[int, int], int]) -> None:
    count = rounds(4, 8)
    guest = make_guest(name="order", disks=DISKS)
    pages = guest.witness()["pages"]
    for seed in range(rounds(1, 10)):
        kept = [f"s{seed}-{number}" for number in range(1, count + 1)]
        counters = {}
        for name in kept:
            before = guest.ask()["counter"]
            take(store, guest, name)
            counters[name] = range(before, guest.ask()["counter"] + 2)
        order = random.Random(seed).sample(kept, count)
        for name in order:
            guest.ask()  # it hastens
            told, taken = entries(store, guest)[name], allocated(store.path, guest.folder)
            assert told["own_bytes"] > allocated(folder_of({"snapshot": told}))
            remove_snapshot(store.spec(guest, name))
            freed = taken - allocated(store.path, guest.folder)
            assert freed <= told["own_bytes"] + len(DISKS) * TABLES
            kept.remove(name)
            assert [len(files) for files in chains(guest)] == [len(kept) + 1] * 2, order
            assert sorted(entries(store, guest)) == kept
            for other in kept:
                assert judged(store, guest, other, pages) == "", (order, name, other)
                comes_back(store, guest, other, counters[other])
        alone(guest)
        clean(guest)
    well(guest)


@pytest.mark.parametrize("step", ["disks", "arm", "sweep"])
@pytest.mark.parametrize("action", ["RAISE", "KILL"])
def test_what_fails_leaves_nothing(pair: Guest, store: TestStore, step: str, action: str) -> None:
    with fault(step, action), pytest.raises(LivesnapError):
        take(store, pair, "one")
    if action == "KILL":
        wait(lambda: _recover.plan_recovery(str(store.path), "pair"), 20)
        _recover.recover(str(store.path), "pair", helper())
    alone(pair)
    clean(pair)
    assert list(store.path.iterdir()) == []
    well(pair)


class Cut(BaseException):
    """The end of a process, as far as its own code is concerned."""


@pytest.mark.parametrize("place", [
    (layers, "_follow"), (uncover, "_tell"), (overlay, "remove"), (uncover.outside, "note")])
def test_a_removal_that_is_cut_short_is_ended(
        pair: Guest, store: TestStore, monkeypatch: pytest.MonkeyPatch,
        place: tuple[Any, str]) -> None:
    pages = pair.witness()["pages"]
    for name in ("one", "two", "three"):
        take(store, pair, name)
    for name, kept in (("two", ["one", "three"]), ("three", ["one"])):
        with monkeypatch.context() as patch:
            def cut(*_given: object) -> None:
                raise Cut

            patch.setattr(*place, cut)
            if (name, place[1]) != ("three", "note"):
                with pytest.raises(Cut):
                    remove_snapshot(store.spec(pair, name))
        well(pair)
        _recover.recover(str(store.path), "pair", helper())
        if (name, place[1]) == ("three", "note"):
            remove_snapshot(store.spec(pair, name))
        assert sorted(entries(store, pair)) == kept
        for other in kept:
            assert judged(store, pair, other, pages) == ""
    remove_snapshot(store.spec(pair, "one"))
    alone(pair)
    clean(pair)


def test_qemu_dies_while_it_merges(make_guest: Callable[..., Guest], store: TestStore,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a layer below, which is ended while the guest is off, and of that which it writes to."""
    guest = make_guest(name="dies", disks=(DiskSpec(format="qcow2"),))
    pages = guest.witness()["pages"]
    for name in ("one", "two", "three"):
        take(store, guest, name)
    newest = entries(store, guest)["three"]

    def dies(*_given: object) -> None:
        os.kill(guest.pid, signal.SIGKILL)
        raise Cut

    for name, kept in (("one", ["three", "two"]), ("three", ["two"])):
        counted = guest.counts()["counter"]
        with monkeypatch.context() as patch:
            patch.setattr(layers, "_follow", dies)
            with pytest.raises(Cut):
                remove_snapshot(store.spec(guest, name))
        guest.shut_down()
        if name == "three":
            with pytest.raises(LivesnapError, match="which would go, and the guest is off"):
                _recover.recover(str(store.path), "dies", helper())
            guest.start()
        _recover.recover(str(store.path), "dies", helper())
        assert sorted(entries(store, guest)) == kept
        assert [judged(store, guest, each, pages) for each in kept] == [""] * len(kept)
        if name == "one":
            start_with(guest, newest)
        assert guest.counts()["counter"] >= counted
    remove_snapshot(store.spec(guest, "two"))
    alone(guest)
    clean(guest)


def test_of_a_guest_that_is_off(make_guest: Callable[..., Guest], store: TestStore) -> None:
    guest = make_guest(name="off", disks=(DiskSpec(format="qcow2"),))
    pages = guest.witness()["pages"]
    for name in ("one", "two", "three"):
        take(store, guest, name)
    counted = guest.counts()["counter"]
    argv, newest = list(guest.argv), entries(store, guest)["three"]
    guest.shut_down()
    with pytest.raises(RefusedError, match="which would go, and the guest is off"):
        remove_snapshot(store.spec(guest, "three"))
    remove_snapshot(store.spec(guest, "one"))
    assert [judged(store, guest, name, pages) for name in ("two", "three")] == ["", ""]
    start_with(guest, newest)
    assert guest.counts()["counter"] > counted
    assert [len(files) for files in chains(guest)] == [3]
    guest.shut_down()
    # Not as the operator was told.
    guest.argv = argv
    guest.start(wait=False)
    with pytest.raises(RefusedError, match=r"the guest was started with .*, which the snapshot is"):
        remove_snapshot(store.spec(guest, "two"))
    guest.shut_down()
    start_with(guest, newest)
    for name in ("three", "two"):
        remove_snapshot(store.spec(guest, name))
    alone(guest)
    clean(guest)
    assert guest.counts()["counter"] > counted


def test_the_oldest_goes_when_the_chain_is_full(pair: Guest, store: TestStore) -> None:
    bare: dict[str, Any] = {"memory": False}
    for name in ("s0", "s1", "s2"):
        take(store, pair, name, **bare, max_chain=3, pinned=name == "s0")
    full = {"disk_scheme": "overlay", "max_chain": 3, "when_chain_full": "merge"}
    planned = plan_snapshot(store.spec(pair, "s3", **bare, **full))
    assert sorted(entries(store, pair)) == ["s0", "s1", "s2"]
    taken = store.take(pair, "s3", **bare, **full)
    assert taken["actions"] == planned["actions"]
    assert "removed snapshot 's1'" in taken["actions"][1]
    assert sorted(entries(store, pair)) == ["s0", "s2", "s3"]
    assert [len(files) for files in chains(pair)] == [4, 4]
    alone_left = store.take(pair, "s4", **bare, **{**full, "max_chain": 1})
    assert sorted(entries(store, pair)) == ["s0", "s4"]
    assert any("2 snapshots, more than max_chain 1: the older" in each
               for each in alone_left["warnings"])
    for name in ("s4", "s0"):
        remove_snapshot(store.spec(pair, name))
    alone(pair)
    clean(pair)


def test_prune_knows_what_is_inside_of_layers(
    make_guest: Callable[..., Guest], store: TestStore
) -> None:
    guest = make_guest(name="mixed", disks=(DiskSpec(format="qcow2"),))
    pages = guest.witness()["pages"]
    for name, scheme in (("a", "internal"), ("b", "overlay"), ("c", "overlay"), ("d", "internal")):
        guest.ask()
        store.take(guest, name, disk_scheme=scheme)
    done = store.prune(guest="mixed", keep_last=1)
    assert (sorted(entries(store, guest)), done["freed_bytes"] > 0) == (["a", "c", "d"], True)
    assert judged(store, guest, "c", pages) == ""
    store.take(guest, "e")
    store.prune(guest="mixed", keep_last=1)
    assert sorted(entries(store, guest)) == ["e"]
    alone(guest)
    clean(guest)
    well(guest)


def test_bitmaps_of_others(pair: Guest, store: TestStore) -> None:
    with pair.look() as qmp:
        for node, persistent in (("disk0", False), ("disk1", True)):
            qmp.execute("block-dirty-bitmap-add", {
                "node": node, "name": "theirs", "persistent": persistent})
    with pytest.raises(LivesnapError, match=r"bitmaps of others.*: 'theirs'"):
        take(store, pair, "one")
    alone(pair)
    clean(pair)
    take(store, pair, "one", foreign_bitmaps="ignore")
    remove_snapshot(store.spec(pair, "one"))
    alone(pair)
    clean(pair)


def test_what_has_no_room_is_refused(store: TestStore, tmp_path: Path) -> None:
    """Beside the image; other kinds of disks are refused in test_disk_kinds.py."""
    with mounted(tmp_path / "small", "24m") as folder:
        disks = (DiskSpec(), DiskSpec(16, folder=str(folder)))
        with Guest(name="narrow", disks=disks) as guest:
            with pytest.raises(LivesnapError, match="its folder has no room for what the guest"):
                take(store, guest, "one")
            take(store, guest, "one", disks=[{"match": "disk1", "scheme": "none"}])
            remove_snapshot(store.spec(guest, "one"))
            alone(guest)
            clean(guest)
