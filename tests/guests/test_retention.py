# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pruning snapshots of a real guest that works, is snapshotted meanwhile, is off, and is gone."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.livesnap.qemu.plugins.module_utils._store import listing
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store
from dying import die_at
from lab import DiskSpec, Guest, disk_state
from taking import TestStore, as_module, folder_of, helper, images_of, verdict


def decided(result: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["decision"] for each in result["decisions"]}


def names(store: TestStore, guest: Guest) -> list[str]:
    return Store(str(store.path)).entries(guest.options.name)[0]


def judged(store: TestStore, guest: Guest, name: str, pages: int) -> str:
    """verdict() of its increment, and of its layer wherever that is now."""
    place = Store(str(store.path))
    found = listing.look(place, guest.options.name, name)
    disks = found["disks"]
    images = [folder_of({"snapshot": found}) / disks[0]["file"], Path(disks[1]["covered"])]
    return verdict(guest, {"snapshot": found}, pages, images)


def test_what_is_kept_restores_and_verifies(store: TestStore) -> None:
    """RAM, a disk of increments, and one of layers."""
    disks = (DiskSpec(), DiskSpec())
    with Guest(name="pruned", memory=192, rest=0, buffer=0, disks=disks) as guest:
        pages = guest.witness()["pages"]
        layers = {"freeze": "never", "disks": [{"match": "disk1", "scheme": "overlay"}]}
        alone = {**layers, "disks": [{"match": "disk1", "scheme": "none"}]}
        taken = {
            "first": store.take(guest, "first", **layers),
            "audit": store.take(guest, "audit", **layers, labels=["audit"]),
            "torn": store.take(guest, "torn", **alone, memory=False, max_chain=0),
            "third": store.take(guest, "third", **layers),
            "pinned": store.take(guest, "pinned", **layers, pinned=True),
            "frozen": store.take(guest, "frozen", disks=layers["disks"]),
        }
        torn = folder_of(taken["torn"]) / "manifest.json"
        torn.write_bytes(torn.read_bytes() + b"\n")
        before = {str(path) for path in torn.parent.rglob("*")}
        # One is in the making while the others are pruned.
        making = threading.Thread(
            target=lambda: taken.update(
                last=store.take(
                    guest, "last", **layers, compression="none", bandwidth=24 << 20
                )
            )
        )
        making.start()
        place = Store(str(store.path))
        end = time.monotonic() + 30
        while place.entries("pruned")[1] != ["last"]:
            assert time.monotonic() < end and making.is_alive()
            time.sleep(0.05)
        policy: dict[str, Any] = {"keep_last": 1, "keep_labels": ["audit"]}
        predicted = store.prune(apply=False, **policy)
        done = store.prune(**policy)
        assert making.is_alive(), "it was to be in the making during all of this"
        assert (
            decided(done)
            == decided(predicted)
            == {
                "last": "leave",
                "torn": "leave",
                "frozen": "keep",
                "pinned": "keep",
                "third": "remove",
                "audit": "keep",
                "first": "remove",
            }
        )
        assert done["gone"] == []
        assert done["freed_bytes"] > 1 << 20
        making.join(60)
        assert {str(path) for path in torn.parent.rglob("*")} == before
        kept = ["audit", "frozen", "last", "pinned"]
        assert names(store, guest) == sorted([*kept, "torn"])
        for name in kept:
            folder = folder_of(taken[name])
            subprocess.run(
                [helper(), "verify", str(folder)], check=True, capture_output=True, timeout=120
            )
            assert judged(store, guest, name, pages) == ""
        boot = guest.counts()["boot"]
        for name in kept[:2]:
            with store.clone(guest, name) as clone:
                assert clone.counts()["boot"] == boot
                # What it stands on stays, whatever the policy says.
                held = store.prune(keep_labels=["none"], allow_empty=True, apply=False)
                assert decided(held)[name] == "keep"
        guest.counts()
        guest.shut_down()
        off = store.prune(keep_last=1)
        assert off["gone"] == []
        assert names(store, guest) == ["last", "pinned", "torn"]
    gone = store.prune(keep_labels=["none"], allow_empty=True)
    assert [each["guest"] for each in gone["gone"]] == ["pruned"]
    assert names(store, guest) == ["last", "pinned", "torn"]
    # Its layers are gone with the guest.
    store.prune(keep_labels=["none"], allow_empty=True, gone="prune")
    assert names(store, guest) == ["pinned", "torn"]


def killed_at(store: TestStore, step: int, **policy: Any) -> bool:
    """Prunes in a process that dies before that many changes of the store; whether it did."""
    child = os.fork()
    if child == 0:
        try:
            die_at(step)
            store.prune(**policy)
            os._exit(0)
        finally:
            os._exit(1)
    ended = os.waitpid(child, 0)[1]
    assert ended == 0 or os.WTERMSIG(ended) == signal.SIGKILL
    return ended != 0


def finished(store: TestStore, put_back: Callable[[], None], stride: int) -> list[str]:
    """Prunes two of four, killed at each step; `put_back` undoes that. What recovery said."""
    step, recovered = 0, []
    while killed_at(store, step, keep_last=2):
        done = store.prune(keep_last=2)
        recovered += done["recovered"]
        found = listing.of_guest(Store(str(store.path)), "killed")
        assert {info["name"]: info["problem"] for info, _fields in found} == {
            "kept": None, "new": None}, step  # fmt: skip
        assert store.prune(keep_last=2)["changed"] is False
        put_back()
        step += stride
    assert step > 15
    return recovered


def test_killed_at_every_step_the_next_run_finishes(
    store: TestStore, rounds: Callable[[int, int], int]
) -> None:
    """Beside a guest that works: what is kept is whole, and what goes is gone, wherever it died."""
    with Guest(name="killed", memory=128) as guest:
        pages = guest.witness()["pages"]
        names_taken = ("old", "older", "kept", "new")
        taken = {
            name: store.take(guest, name, freeze="never", max_chain=0) for name in names_taken
        }
        place = store.path / "killed"
        aside = store.path.with_name(f"{store.path.name}-aside")
        # Links: whoever writes to a file here writes to that of the kept one.
        shutil.copytree(place, aside, copy_function=os.link)

        def put_back() -> None:
            for name in ("old", "older"):
                shutil.copytree(aside / name, place / name, copy_function=os.link)

        try:
            recovered = finished(store, put_back, rounds(2, 1))
        finally:
            shutil.rmtree(aside)
        assert "removed unfinished snapshot 'old' of guest 'killed'" in recovered
        for name in ("kept", "new"):
            subprocess.run(
                [helper(), "verify", str(folder_of(taken[name]))],
                check=True, capture_output=True, timeout=120,
            )  # fmt: skip
            assert verdict(guest, taken[name], pages) == ""
        boot = guest.counts()["boot"]
        with store.clone(guest, "kept") as clone:
            assert clone.counts()["boot"] == boot


def test_killed_while_it_merges(store: TestStore, rounds: Callable[[int, int], int]) -> None:
    """The same where those that are kept stand on those that go."""
    with Guest(name="killed", memory=128) as guest:
        names_taken = ("old", "older", "kept", "new")
        taken = {
            name: store.take(guest, name, freeze="never", memory=False) for name in names_taken
        }
        states = {name: disk_state(images_of(taken[name])[0]) for name in ("kept", "new")}
        place = store.path / "killed"
        aside = store.path.with_name(f"{store.path.name}-aside")
        shutil.copytree(place, aside)

        def put_back() -> None:
            for name, state in states.items():
                assert disk_state(images_of(taken[name])[0]) == state
            shutil.rmtree(place)
            shutil.copytree(aside, place)

        try:
            recovered = finished(store, put_back, rounds(4, 1))
        finally:
            shutil.rmtree(aside)
        assert any(said.startswith("finished removing snapshot 'old") for said in recovered)


def test_a_domain_is_gone_when_it_is_undefined(store: TestStore, make_domain: Any) -> None:
    domain = make_domain(name="pruneddomain", memory=128)
    for name in ("one", "two"):
        as_module(functools.partial(store.take, domain, name, freeze="never"))
    policy: dict[str, Any] = {"keep_last": 1}
    assert as_module(lambda: store.prune(apply=False, **policy))["gone"] == []
    domain.shut_down()
    assert as_module(lambda: store.prune(apply=False, **policy))["gone"] == []
    domain.stop()
    left = as_module(lambda: store.prune(**policy))
    assert f"no domain '{domain.uuid}'" in left["gone"][0]["why"]
    assert decided(left) == {"two": "keep", "one": "keep"}
    done = as_module(lambda: store.prune(gone="prune", **policy))
    assert decided(done) == {"two": "keep", "one": "remove"}
