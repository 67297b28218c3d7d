# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store: names, manifests, status, layout, space, locks. On real files, without a guest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _recover
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket import (
    entry,
    publish,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import (
    SnapshotSpec,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.link import Unlinked
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
    StoreError,
    TimedOutError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import (
    files,
    listing,
    locks,
    manifest,
    names,
    rundir,
    status,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store
from hypothesis import given
from hypothesis import strategies as st

REPO = Path(__file__).resolve().parents[2]
ID = "1b671a64-40d5-491e-99b0-da01ff1f3341"
UUID = "9f86d081-884c-4d65-9a2f-eaa0c55ad015"


def fields(**changed: Any) -> dict[str, Any]:
    """A manifest of a snapshot with everything."""
    found: dict[str, Any] = {
        "livesnap": "0.1.0", "id": ID, "guest": "web1", "name": "one", "uuid": UUID,
        "created": "2026-11-23T01:00:07.123456Z", "started": "2026-11-23T01:00:06Z",
        "complete": True, "was_running": True, "engine": "uffd",
        "consistency": {
            "level": "filesystem", "indications": ["x"],
            "freeze": {"asked": "auto", "achieved": True, "reason": None, "filesystems": 1}},
        "timings": {**dict.fromkeys(manifest.TIMINGS, 1.5), "freeze_ms": None},
        "memory": {
            "file": "ram.lsnap", "bytes": 1, "zero_bytes": 0, "stored_bytes": 1, "file_bytes": 3,
            "checksum": "ab", "compression": "lz4", "faults": 0,
            "fault_us": {"p50": None, "p99": None, "max": None}, "proof": {"scans": 1, "chunks": 1},
            "gpa": [{"gpa": 0, "block": "pc.ram", "offset": 0, "length": 1}], "ramblock": ""},
        "devices": {"file": "devices", "bytes": 2, "sha256": "00"},
        "disks": [{
            "match": "d0", "device": None, "qdev": "d0", "node": "n0", "serial": None,
            "scheme": "backup", "file": "disks/0-d0.qcow2", "format": "qcow2", "bytes": 10,
            "stored_bytes": 4, "file_bytes": 4, "source": {"file": "/x", "format": "raw"}}],
        "excluded_disks": [],
        "guest_facts": {
            "name": "web1", "qemu_version": "7.2.22", "qemu_package": "", "machine": "pc-q35-7.2",
            "arch": "x86_64", "accelerator": "tcg", "cpu": "qemu64", "vcpus": 1,
            "memory_bytes": 1, "argv": ["qemu"], "cwd": "/", "exe": "/usr/bin/q", "user": "root",
            "uid": 0, "gid": 0, "cgroup": "/", "firmware": [],
            "device_tree": {"/machine/peripheral/d0": "virtio-blk-pci"}, "block_nodes": []},
        "restore_blockers": [], "schedule": None, "slot": None,
        "bracket": {"attempts": 1, "deadline_s": 9, "warnings": []},
        "parent": None, "encryption": None,
    }
    found.update(changed)
    return found


def make(store: Store, name: str = "one", **changed: Any) -> Path:
    """A published snapshot."""
    folder = store.begin("web1", name)
    (folder / "ram.lsnap").write_bytes(b"ram")
    (folder / "devices").write_bytes(b"de")
    (folder / "disks" / "0-d0.qcow2").write_bytes(b"disk")
    return store.publish(folder, fields(name=name, **changed), status.default())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    root = tmp_path / "store"
    root.mkdir(mode=0o711)
    return Store(str(root))


@pytest.fixture(autouse=True)
def own_run_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rundir, "_ROOT", tmp_path / "run")
    return tmp_path / "run"


@given(st.text(max_size=140))
def test_a_good_name_is_one_folder(name: str) -> None:
    if not names.problem(name):
        assert os.path.basename(name) == name
        assert name not in ("", ".", "..")
        assert not name.endswith(".partial")
        assert len(name) <= 128


@pytest.mark.parametrize("name", ["disks/../x", "/etc/passwd", "..", "disks/", "a/b", ".x", "", 3])
def test_files_stay_inside(name: Any) -> None:
    assert not names.is_file(name)


@given(st.text())
def test_safe_names_are_files(text: str) -> None:
    assert names.is_file(f"disks/0-{names.safe(text)}.qcow2")


def test_version_is_that_of_the_collection() -> None:
    assert f"version: {publish.LIVESNAP}\n" in (REPO / "galaxy.yml").read_text()


def test_manifest_comes_back() -> None:
    data = manifest.encode(fields())
    found = manifest.decode(data)
    assert found["schema"] == "livesnap-manifest"
    assert list(found)[-1] == "sha256"
    assert {key: found[key] for key in fields()} == fields()


def test_manifest_is_checked_by_common_tools(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(manifest.encode(fields()))
    done = subprocess.run(["sh", "-c", f"head -n -2 {tmp_path}/m | sha256sum"],
                          capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == manifest.decode(manifest.encode(fields()))["sha256"]


@given(st.data())
def test_any_flipped_bit_and_any_cut_is_found(data: st.DataObject) -> None:
    sound = manifest.encode(fields())
    at = data.draw(st.integers(0, len(sound) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    for torn in (sound[:at] + bytes([sound[at] ^ bit]) + sound[at + 1 :], sound[:at]):
        with pytest.raises(StoreError):
            manifest.decode(torn)


def resealed(data: bytes) -> bytes:
    """The same bytes with a right checksum: what a careful forger would write."""
    head = data[: data.rindex(b'  "sha256"')]
    digest = hashlib.sha256(head).hexdigest()
    return head + f'  "sha256": "{digest}"\n}}\n'.encode()


@pytest.mark.parametrize(("old", "new", "message"), [
    (b'"version": 1', b'"version": 2', "version 2"),
    (b'"version": 1', b'"version": true', "version"),
    (b'"version": 1', b'"version": 0', "version"),
    (b"livesnap-manifest", b"other-manifest", "schema"),
    (b'"disks/0-d0.qcow2"', b'"disks/../../x"', "'disks'"),
    (b'"ram.lsnap"', b'"/etc/passwd"', "'memory'"),
    (b'"file_bytes": 4', b'"file_bytes": -4', "'disks'"),
    (b'"file_bytes": 4', b'"file_bytes": 4.5', "'disks'"),
    (b'"file_bytes": 4', b'"file_bytes": 99999999999999999999', "'disks'"),
    (b'"parent": null', b'"parent": "x"', "'parent'"),
    (b'"encryption": null', b'"encryption": {}', "'encryption'"),
    (b'"engine": "uffd"', b'"engine": "other"', "'engine'"),
    (b'"complete": true', b'"complete": 1', "'complete'"),
    (b'"complete": true', b'"complete": NaN', "not JSON"),
    (b'"schedule": null', b'"schedule": null, "schedule": null', "twice"),
    (b'"schedule": null', b'"other": null', "lacks 'schedule'"),
])
def test_a_resealed_forgery_is_refused(old: bytes, new: bytes, message: str) -> None:
    data = manifest.encode(fields())
    assert old in data
    with pytest.raises(StoreError, match=message):
        manifest.decode(resealed(data.replace(old, new, 1)))


def test_every_field_is_needed() -> None:
    for key in manifest.FIELDS:
        with pytest.raises(StoreError, match=f"'{key}'"):
            manifest.encode({name: value for name, value in fields().items() if name != key})


@pytest.mark.parametrize("domain", [
    {}, "domain.xml", {"file": "other.xml", "bytes": 1, "sha256": "0", "uri": "qemu:///system"},
    {"file": "domain.xml", "bytes": -1, "sha256": "0", "uri": "qemu:///system"},
])
def test_a_later_field_may_lack_but_not_be_wrong(domain: Any) -> None:
    right = {"file": "domain.xml", "bytes": 1, "sha256": "0", "uri": "qemu:///system"}
    for value in (None, right):
        found = manifest.decode(manifest.encode({**fields(), "domain": value}))
        assert found["domain"] == value
    assert ("domain.xml", 1) in manifest.sizes(found)
    with pytest.raises(StoreError, match="bad 'domain'"):
        manifest.encode({**fields(), "domain": domain})


@pytest.mark.parametrize(("devices", "good"), [
    ({}, True), ([{"path": "/machine/q", "type": "q"}], True), ({"/machine/q": 1}, False),
    ([{"path": "/machine/q"}], False), ([{"path": "/machine/q", "type": None}], False),
    (["path"], False), ([None], False), ("q", False), (None, False),
])
def test_devices_are_a_table_and_were_a_list(devices: Any, good: bool) -> None:
    facts = {**fields()["guest_facts"], "device_tree": devices}
    with contextlib.nullcontext() if good else pytest.raises(StoreError, match="'guest_facts'"):
        manifest.encode(fields(guest_facts=facts))


def test_every_field_is_documented() -> None:
    text = (REPO / "docs" / "manifest.md").read_text()
    documented = {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")}
    every = set(manifest.FIELDS) | set(manifest.LATER) | set(manifest.TIMINGS)
    every |= set(status.default())
    every |= set(fields()["guest_facts"]) - {"uid", "gid"} | set(fields()["memory"])
    told = {name for cell in documented for name in cell.split(", ")}
    assert every - told == set()


def test_publish_and_remove(store: Store) -> None:
    store.check()
    final = make(store)
    assert manifest.read(final)["id"] == ID
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in final.iterdir()}
    assert modes["manifest.json"] == modes["status.json"] == 0o600
    assert modes["disks"] == stat.S_IMODE(final.stat().st_mode) == 0o711
    assert store.entries("web1") == (["one"], [])
    with pytest.raises(StoreError, match="appeared meanwhile"):
        make(store)
    store.discard(store.partial("web1", "one"))
    store.discard(store.retire("web1", "one"))
    assert store.entries("web1") == ([], [])
    assert store.guests() == []


def test_nothing_is_published_that_is_not_what_the_manifest_says(store: Store) -> None:
    folder = store.begin("web1", "one")
    (folder / "ram.lsnap").write_bytes(b"too long")
    with pytest.raises(StoreError, match="has 8 bytes; the manifest says 3"):
        store.publish(folder, fields(memory={**fields()["memory"]}, disks=[]), status.default())
    assert store.entries("web1") == ([], ["one"])
    assert listing.list_snapshots(str(store.root))[0]["problem"]


def test_a_folder_in_the_making_is_never_reused(store: Store) -> None:
    store.begin("web1", "one")
    with pytest.raises(StoreError, match="File exists"):
        store.begin("web1", "one")


def test_discard_only_removes_what_is_in_the_making(store: Store, tmp_path: Path) -> None:
    final = make(store)
    for folder in (final, tmp_path, store.root, tmp_path / "x.partial"):
        with pytest.raises(StoreError, match="not a snapshot in the making"):
            store.discard(folder)


def test_two_may_remove_the_same_folder(tmp_path: Path) -> None:
    """Recovery and the writer of a dead keeper, say: neither fails, and nothing is left."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    folder = tmp_path / "folder"
    for number in range(300):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "file").touch()
    (folder / "link").symlink_to(kept)
    start = multiprocessing.Barrier(2)

    def work() -> None:
        start.wait()
        files.remove_tree(folder)

    others = [multiprocessing.Process(target=work) for _number in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert [other.exitcode for other in others] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "file").exists()


def test_other_guests_are_told_apart(store: Store) -> None:
    make(store)
    store.check_owner("web1", UUID, "renamed")
    with pytest.raises(RefusedError, match=f"{UUID}.*{ID}"):
        store.check_owner("web1", ID, "web1")
    with pytest.raises(RefusedError, match="none"):
        store.check_owner("web1", None, "web1")
    store.discard(store.retire("web1", "one"))
    make(store, uuid=None)
    store.check_owner("web1", None, "web1")
    with pytest.raises(RefusedError, match="web2"):
        store.check_owner("web1", None, "web2")


def test_listing_is_newest_first_and_says_what_is_wrong(store: Store) -> None:
    make(store, "old", created="2026-11-22T01:00:00Z")
    make(store, "new", created="2026-11-24T01:00:00Z")
    make(store, "mid", created="2026-11-23T01:00:00Z")
    store.begin("web1", "making")
    found = listing.list_snapshots(str(store.root), "web1")
    assert [entry["name"] for entry in found] == ["making", "new", "mid", "old"]
    assert found[0]["complete"] is False
    assert "ramblock" not in found[1]["memory"]
    (store.snapshot("web1", "new") / "status.json").write_text('{"pinned": 3}')
    broken = listing.look(store, "web1", "new")
    assert broken["pinned"] is True
    assert "bad 'pinned'" in broken["problem"]


def test_a_snapshot_below_a_running_clone_stays(store: Store) -> None:
    make(store)
    folder = rundir.root() / "clone" / "web1" / ".twin"
    folder.mkdir(parents=True)
    state = {**rundir.myself(), "store": str(store.root), "guest": "web1", "snapshot": "one"}
    files.write_json(folder / "state.json", state)
    params = {"guest": "web1", "name": "one", "store": str(store.root), "state": "absent"}
    for apply in (False, True):
        with pytest.raises(RefusedError, match="running clones stand on its images: 'twin'"):
            entry.remove(SnapshotSpec.of(params), apply)
    assert store.exists("web1", "one")
    files.write_json(folder / "state.json", {**state, "start_time": 1})
    assert entry.remove(SnapshotSpec.of(params), True)["changed"] is True
    assert not store.exists("web1", "one")


def test_what_a_reboot_left_is_listed_and_removed(store: Store) -> None:
    make(store)
    store.begin("web1", "half")
    store.begin("web2", "half")
    assert len(_recover.plan_recovery(str(store.root))) == 2
    planned = _recover.plan_recovery(str(store.root), "web1")
    assert planned == ["would remove unfinished snapshot 'half' of guest 'web1'"]
    assert _recover.recover(str(store.root), "web1") == [
        "removed unfinished snapshot 'half' of guest 'web1'"]
    assert store.entries("web1") == (["one"], [])
    assert store.entries("web2") == ([], ["half"])
    _recover.recover(str(store.root))
    assert store.guests() == ["web1"]
    assert _recover.recover(str(store.root)) == []


def test_a_guest_that_is_off_changes_nothing_about_its_snapshots(store: Store) -> None:
    make(store)
    store.begin("web1", "half")
    params = {"guest": "web1", "name": "one", "store": str(store.root),
              "qmp_socket": str(store.root / "none"), "labels": ["b", "a"]}
    found = entry.take(SnapshotSpec.of(params), Unlinked())
    assert found["snapshot"]["labels"] == ["a", "b"]
    assert found["diff"]["before"] == {"labels": [], "pinned": False}
    assert found["recovered"] == ["removed unfinished snapshot 'half' of guest 'web1'"]
    assert entry.take(SnapshotSpec.of(params), Unlinked())["changed"] is False
    planned = entry.plan_take(SnapshotSpec.of({**params, "pinned": True}))
    assert planned["changed"] is True
    assert planned["snapshot"]["pinned"] is True
    assert status.read(store.snapshot("web1", "one"))["pinned"] is False
    with pytest.raises(LivesnapError, match="does not exist"):
        entry.take(SnapshotSpec.of({**params, "name": "two"}), Unlinked())


@pytest.mark.parametrize(("asked", "has", "message"), [
    ({"memory": True}, {"memory": None, "devices": None, "engine": None}, "memory: true"),
    ({"freeze": "required"}, {"consistency": {"level": "crash", "indications": [], "freeze": {
        "asked": "auto", "achieved": False, "reason": "no agent", "filesystems": 0}}}, "no agent"),
])
def test_less_than_what_is_asked_is_refused(
    store: Store, asked: dict[str, Any], has: dict[str, Any], message: str
) -> None:
    make(store, **has)
    params = {"guest": "web1", "name": "one", "store": str(store.root),
              "qmp_socket": str(store.root / "none"), **asked}
    with pytest.raises(RefusedError, match=message):
        entry.take(SnapshotSpec.of(params), Unlinked())
    with pytest.raises(RefusedError, match=message):
        entry.plan_take(SnapshotSpec.of(params))


def test_in_progress_needs_a_living_owner(store: Store) -> None:
    run = rundir.RunDir("1-2")
    run.make()
    run.write("owner.json", {
        **rundir.myself(), "store": str(store.root), "guest": "web1", "snapshot": "one"})
    run.write("progress.json", {"percent": 40.0})
    store.begin("web1", "one")
    found = listing.list_snapshots(str(store.root))[0]
    assert found["in_progress"]["percent"] == 40.0
    assert found["in_progress"]["owner"]["pid"] == os.getpid()
    run.write("owner.json", {
        "pid": os.getpid(), "start_time": 1, "store": str(store.root), "guest": "web1",
        "snapshot": "one"})
    assert listing.list_snapshots(str(store.root))[0]["in_progress"] is None


def test_status_keeps_what_it_does_not_know(store: Store) -> None:
    folder = make(store)
    state = status.changed({**status.read(folder), "later": 1}, ["b", "a", "b"], True)
    status.write(folder, state)
    assert status.read(folder)["labels"] == ["a", "b"]
    assert status.changed(status.read(folder), None, None) == status.read(folder)
    assert json.loads((folder / "status.json").read_text())["later"] == 1
    with pytest.raises(LivesnapError, match="label 'a b'"):
        status.changed(state, ["a b"], None)


def test_reading_follows_no_links(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(StoreError):
        files.read_object(tmp_path / "link")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StoreError, match="not a regular file"):
        files.read_object(tmp_path / "fifo")
    (tmp_path / "long").write_bytes(b" " * 100)
    with pytest.raises(StoreError, match="at most 10"):
        files.read_regular(tmp_path / "long", 10)


def test_writing_leaves_no_temporary_file(tmp_path: Path) -> None:
    files.write_json(tmp_path / "x", {"a": 1})
    files.write_json(tmp_path / "x", {"a": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "y", {"a": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def _hold(root: Path, key: str, seconds: float, ready: Any) -> None:
    rundir._ROOT = root
    with locks.GuestLock.acquire(key, {"guest": "web1", "snapshot": "held"}, 5):
        ready.set()
        time.sleep(seconds)


def test_lock_waits_and_names_its_holder(own_run_root: Path) -> None:
    ready = multiprocessing.Event()
    holder = multiprocessing.Process(target=_hold, args=(own_run_root, "1-2", 1.5, ready))
    holder.start()
    assert ready.wait(5)
    assert locks.is_held("1-2")
    with pytest.raises(TimedOutError, match=f"process {holder.pid}, .*'held' of guest 'web1'"):
        locks.GuestLock.acquire("1-2", {}, 0.2)
    with locks.GuestLock.acquire("1-2", {}, 10):
        assert locks.is_held("1-2")
    holder.join()
    assert not locks.is_held("1-2")
    assert not own_run_root.exists()


def test_lock_dies_with_its_holder(own_run_root: Path) -> None:
    ready = multiprocessing.Event()
    holder = multiprocessing.Process(target=_hold, args=(own_run_root, "1-2", 60, ready))
    holder.start()
    assert ready.wait(5)
    holder.kill()
    holder.join()
    with locks.GuestLock.acquire("1-2", {}, 0):
        pass


def test_lock_of_a_stopped_holder_is_taken(own_run_root: Path) -> None:
    ready = multiprocessing.Event()
    holder = multiprocessing.Process(target=_hold, args=(own_run_root, "1-2", 60, ready))
    holder.start()
    assert ready.wait(5)
    assert holder.pid is not None
    os.kill(holder.pid, 19)
    begun = time.monotonic()
    with locks.GuestLock.acquire("1-2", {}, 20):
        assert time.monotonic() - begun >= locks.STOPPED_LIMIT - 0.5
    holder.join()


def test_journal_forgives_a_torn_line() -> None:
    run = rundir.RunDir("1-2")
    run.make()
    run.note({"step": "a"})
    with open(run.path / "journal", "ab") as file:
        file.write(b'{"step": "b')
    assert [line["step"] for line in run.journal()] == ["a"]
