# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest of its own QMP socket goes back to a snapshot, in place; or stays where it was."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _recover
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import plan_removal
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.command import again
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.restore import plan_restore
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.undo import lock_key
from ansible_collections.livesnap.qemu.plugins.module_utils._store import manifest
from ansible_collections.livesnap.qemu.plugins.module_utils._store.locks import GuestLock
from bracket_kit import fault, living, wait
from lab import DiskSpec, Guest, Reach
from taking import TestStore, folder_of, helper, verdict


class Going:
    """A guest that goes back and on: its QEMU is another one each time."""

    def __init__(self, guest: Guest, store: TestStore) -> None:
        self.guest = guest
        self.store = store
        self.pid = guest.pid
        self.reach = Reach(guest.qmp_path, guest.agent_path)
        self.boot = guest.counts()["boot"]
        self.one = store.take(guest, "one", freeze="required")
        self.pages = guest.witness()["pages"]

    def restore(self, snapshot: str, /, **options: Any) -> dict[str, Any]:
        result = self.store.restore(self.guest, snapshot, **options)
        self.look()
        return result

    def look(self) -> None:
        """Which process it is now."""
        with self.reach.qmp() as qmp:
            qmp.status()
        self.pid = listener(self.guest.qmp_path)

    def mark(self, name: str) -> set[str]:
        """A file in the guest's RAM: all marks that there are now."""
        marks = self.marks()
        with self.reach.agent() as agent:
            agent.run("/bin/busybox", "touch", f"/mark-{name}")
        return marks | {f"mark-{name}"}

    def marks(self) -> set[str]:
        with self.reach.agent() as agent:
            return {name for name in agent.run("/bin/ls", "/").split() if name[:5] == "mark-"}

    def is_at(self, marks: set[str]) -> None:
        """It is the guest that had these marks, counts on, and nothing of it is damaged."""
        assert self.marks() == marks
        assert self.reach.counts()["boot"] == self.boot

    def clean(self) -> None:
        """Nothing of a restore lies about."""
        assert not [path for path in self.guest.folder.iterdir() if "livesnap" in path.name]
        assert not (self.store.path / self.guest.options.name / ".restore").exists()

    def end(self) -> None:
        """Its QEMU is no child of this process, and after a failed test not the one last seen."""
        with contextlib.suppress(IndexError):
            pid = listener(self.guest.qmp_path)
            os.kill(pid, signal.SIGKILL)
            wait(lambda: not living(pid), 10)


def listener(path: Path) -> int:
    """Pid of the process that made a socket."""
    done = subprocess.run(["fuser", str(path)], capture_output=True, text=True, check=False)
    return int(done.stdout.split()[0])


@pytest.fixture(scope="module")
def going() -> Iterator[Going]:
    store = TestStore()
    with Guest(name="going", memory=128, user="nobody", sandbox=True,
               disks=(DiskSpec(), DiskSpec(64, "qcow2"))) as guest:
        made = Going(guest, store)
        try:
            yield made
            made.clean()
        finally:
            made.end()
            store.remove()


def owners(paths: list[Path]) -> list[tuple[int, int, int]]:
    return [(os.stat(path).st_uid, os.stat(path).st_gid, os.stat(path).st_mode) for path in paths]


def argv_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]


def test_it_goes_back_and_forth(going: Going) -> None:
    guest, store = going.guest, going.store
    before = owners(guest.disk_paths)
    status = Path(f"/proc/{guest.pid}/status").read_text()
    going.reach.counts()
    planned = plan_restore(store.request(guest, "one"))
    assert (planned["changed"], planned["pid"]) == (True, guest.pid)
    going.clean()
    later = going.mark("later")
    result = going.restore("one")
    assert guest.pid is not None and not living(guest.pid)
    assert (result["pid"], result["running"], result["warnings"]) == (going.pid, True, [])
    assert result["snapshot"]["id"] == going.one["snapshot"]["id"]
    going.is_at(set())
    assert owners(guest.disk_paths) == before
    for line in ("Uid", "Gid", "Groups", "Seccomp", "Umask"):
        now = Path(f"/proc/{going.pid}/status").read_text()
        assert field(now, line) == field(status, line)
    assert again(argv_of(going.pid), incoming=False) == guest.argv
    going.clean()
    # It can be snapshotted again, by the same engine, and is of one instant.
    two = store.take(guest, "two", freeze="required")
    assert verdict(guest, two, going.pages) == ""
    # The present was kept, as it was when the guest was ended, and is a snapshot like others.
    folder = store.path / "going" / result["kept"]
    kept = {"snapshot": {**json.loads((folder / "manifest.json").read_text()), "path": folder}}
    assert kept["snapshot"]["was_running"] and verdict(guest, kept, going.pages) == ""
    going.restore(result["kept"], keep_current=False)
    going.is_at(later)


def field(status: str, name: str) -> str:
    return next(line for line in status.splitlines() if line.startswith(name + ":"))


def test_a_stream_that_qemu_refuses(going: Going, tmp_path: Path) -> None:
    """The old images are put back, and the guest goes on where it stood."""
    cut = tmp_path / "helper"
    cut.write_text(f"#!/bin/sh\ncase \"$*\" in\n"
                   f"*qemu*/one*) {helper()} \"$@\" | head -c 20000000;;\n"
                   f"*) exec {helper()} \"$@\";;\nesac\n")
    cut.chmod(0o755)
    marks = going.mark("refused")
    before = [path.stat().st_ino for path in going.guest.disk_paths]
    with pytest.raises(LivesnapError, match="goes on where it stood") as caught:
        going.store.restore(going.guest, "one", _livesnap_helper=str(cut))
    assert "was not taken back to snapshot 'one'" in caught.value.msg
    going.look()
    assert [path.stat().st_ino for path in going.guest.disk_paths] == before
    going.is_at(marks)
    going.clean()
    assert (going.store.path / "going" / caught.value.result["kept"]).is_dir()


@pytest.mark.parametrize("step", ["begin", "hold", "put", "bring", "back"])
def test_it_is_killed_after(going: Going, step: str) -> None:
    """The next run, or livesnap_recover, brings the guest back to where it stood, or finishes."""
    marks = going.mark(step)
    with fault(f"restore-{step}", "KILL"):
        with pytest.raises(LivesnapError, match="was killed"):
            going.store.restore(going.guest, "one")
    store, name = str(going.store.path), going.guest.options.name
    if step == "hold":
        with pytest.raises(LivesnapError, match="a restore of that guest needs it"):
            plan_removal(going.store.spec(going.guest, "one"))
    # It dies a moment after its socket was closed.
    wait(lambda: "the restore of guest 'going'" in str(_recover.plan_recovery(store, name)), 20)
    said = _recover.recover(store, name, helper())
    assert [line for line in said if "the restore of guest 'going' to snapshot 'one'" in line]
    going.look()
    going.is_at(set() if step == "back" else marks)
    going.clean()
    assert _recover.recover(store, name, helper()) == []


def test_what_an_image_has_inside_is_not_lost_unasked(going: Going) -> None:
    with going.reach.qmp() as qmp:
        qmp.execute("blockdev-snapshot-internal-sync", {"device": "disk1", "name": "theirs"})
    refused(going, "one", "would lose what nothing brings back: snapshot 'theirs' inside")
    with in_group(going, ".scope") as group:
        result = going.restore("one", force=True)
        assert f"0::/{group}\n" in Path(f"/proc/{going.pid}/cgroup").read_text()
    assert [line for line in result["warnings"] if "'theirs'" in line]
    going.is_at(set())


def test_another_run_is_waited_for(going: Going) -> None:
    with GuestLock.acquire(lock_key("going"), {"guest": "going", "snapshot": "other"}, 1.0):
        with pytest.raises(LivesnapError, match=r"on snapshot 'other' .* \(waited 0 s\)"):
            going.store.restore(going.guest, "one", lock_timeout=0)


def test_a_guest_that_is_off(going: Going) -> None:
    """And a snapshot of a guest that was paused: it is paused again."""
    marks = going.mark("paused")
    with going.reach.qmp() as qmp:
        qmp.execute("stop")
    going.store.take(going.guest, "paused")
    with going.reach.qmp() as qmp:
        qmp.execute("cont")
    going.mark("later")
    # The machine goes down in the middle of another restore: nobody starts a guest after that.
    with fault("restore-put", "KILL"), pytest.raises(LivesnapError, match="was killed"):
        going.store.restore(going.guest, "one")
    store, journal = str(going.store.path), going.store.path / "going" / ".restore" / "journal.json"
    journal.write_text(json.dumps({**json.loads(journal.read_text()), "boot": "another"}))
    with pytest.raises(LivesnapError, match="a restore of it was cut short: run livesnap_recover"):
        going.store.take(going.guest, "refused")
    said = str(_recover.recover(store, "going", helper()))
    assert "the guest is off, and its disks are as they were; what it had in RAM is in" in said
    refused(going, "one", "does not run, so that its present cannot be kept")
    result = going.restore("paused", keep_current=False)
    assert (result["kept"], result["running"]) == (None, False)
    with going.reach.qmp() as qmp:
        assert qmp.status() == "paused"
        qmp.execute("cont")
    going.is_at(marks)
    two = going.store.take(going.guest, "after-off")
    assert verdict(going.guest, two, going.pages) == ""


def refused(going: Going, snapshot: str, words: str) -> None:
    """Before anything is touched."""
    store = going.store.path / going.guest.options.name
    before = sorted(store.rglob("*"))
    with pytest.raises(LivesnapError, match=words):
        going.store.restore(going.guest, snapshot)
    assert sorted(store.rglob("*")) == before
    assert not [path for path in going.guest.folder.iterdir() if "livesnap" in path.name]


Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(("words", "edit"), [
    ("is of QEMU 99.1.0", lambda facts: facts.update(qemu_version="99.1.0")),
    ("machine type 'pc-i440fx-99.1'",
     lambda facts: facts.update(machine="pc-i440fx-99.1", qemu_package="")),
    ("CPU model 'Nonesuch'",
     lambda facts: facts.update(argv=[*facts["argv"], "-cpu", "Nonesuch"], qemu_package="")),
    ("firmware file '/nowhere/bios', which is gone",
     lambda facts: facts.update(firmware=[{"path": "/nowhere/bios", "sha256": "0"}])),
    ("takes a descriptor that its starter had opened",
     lambda facts: facts.update(argv=[*facts["argv"], "-netdev", "tap,id=n,fd=17"])),
])
def test_refused_by_name(going: Going, words: str, edit: Edit) -> None:
    copy(going, "edited", lambda fields: edit(fields["guest_facts"]))
    refused(going, "edited", words)


@pytest.mark.parametrize(("words", "edit"), [
    ("cannot be brought back: a TPM", lambda it: it.update(restore_blockers=["a TPM"])),
    ("is no disk of the guest now",
     lambda it: it["disks"][0].update(match="gone", source={"file": "/gone", "format": "raw"})),
    ("is '.*disk0.raw' now", lambda it: it["disks"][0]["source"].update(file="/elsewhere")),
    ("as qcow2, and is opened as raw now",
     lambda it: it["disks"][0]["source"].update(format="qcow2")),
    ("disk 'dev-disk1' .* is not in the snapshot", lambda it: it["disks"].pop()),
    ("is too full", lambda it: it["disks"][0].update(bytes=1 << 60, stored_bytes=1 << 60)),
    ("was taken by libvirt", lambda it: it.update(
        domain={**it["devices"], "file": "domain.xml", "uri": ""})),
])
def test_snapshots_that_do_not_fit(going: Going, words: str, edit: Edit) -> None:
    folder = copy(going, "edited", edit)
    # What a manifest of libvirt's names as well.
    (folder / "domain.xml").write_bytes((folder / "devices").read_bytes())
    refused(going, "edited", words)


@contextlib.contextmanager
def in_group(going: Going, name: str) -> Iterator[str]:
    """The guest is in a control group of that name; whatever it is at the end, it leaves it."""
    every = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")]
    top = next((path for path in every if (path / "cgroup.controllers").exists()), None)
    if top is None or not os.access(top, os.W_OK):
        pytest.skip("no control group of the unified hierarchy can be made here")
    group = top / f"livesnap-test-{os.getpid()}{name}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(going.pid))
        yield group.name
    finally:
        (top / "cgroup.procs").write_text(str(going.pid))
        group.rmdir()


def test_a_guest_of_a_unit_is_named(going: Going) -> None:
    with in_group(going, ".service") as unit:
        refused(going, "one", f"belongs to systemd unit '{unit}'")


def test_damage_is_found_before(going: Going) -> None:
    folder = copy(going, "damaged", lambda fields: None)
    for name, place in (("devices", 100), ("ram.lsnap", 1 << 20)):
        path = folder / name
        data = path.read_bytes()
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1:])
        with pytest.raises(LivesnapError, match="checksum"):
            going.store.restore(going.guest, "damaged")
        path.write_bytes(data)
    going.reach.counts()
    going.clean()


def copy(going: Going, name: str, edit: Edit) -> Path:
    """Another snapshot of the same content, with a manifest that was edited."""
    source = folder_of(going.one)
    folder = source.with_name(name)
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(folder)], check=True)
    fields = manifest.read(source)
    fields = {key: value for key, value in fields.items() if key != "sha256"}
    fields["name"] = name
    edit(fields)
    (folder / manifest.NAME).write_bytes(manifest.encode(fields))
    return folder
