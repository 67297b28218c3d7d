# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Domains that are off: refused, skipped, or their disks copied with nobody else at them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _recover
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import (
    plan_snapshot,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import resting
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.image_lock import ImageLock
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._host.info import (
    HostRequest,
    describe,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import manifest
from ansible_collections.livesnap.qemu.plugins.module_utils._store.listing import list_snapshots
from bracket_kit import RUN, fault, read, run_dirs, state, wait
from lab import DiskSpec, Domain, LabError, Libvirtd, disk_state
from taking import TestStore, as_module, folder_of, helper, images_of, verdict

OFF: dict[str, Any] = {"when_off": "disks"}


@pytest.fixture(scope="module")
def domain(libvirtd: Libvirtd) -> Iterator[Domain]:
    """Defined, and not started but by the tests that say so."""
    guest = Domain(libvirtd, name="resting", memory=128,
                   disks=(DiskSpec(), DiskSpec(64, "qcow2")))
    try:
        yield guest
    finally:
        guest.stop()


def same(image: Path, kind: str, copy: Path) -> None:
    subprocess.run(["qemu-img", "compare", "-f", kind, "-F", "qcow2", str(image), str(copy)],
                   check=True, stdout=subprocess.DEVNULL, timeout=60)


def view(domain: Domain) -> tuple[Any, ...]:
    return (domain.virsh("dumpxml"), domain.virsh("domstate"), domain.virsh("snapshot-list"),
            [(path.stat().st_mtime_ns, path.stat().st_uid) for path in domain.disk_paths])


def test_skip_and_fail_touch_nothing(domain: Domain, store: TestStore) -> None:
    before = view(domain)
    for options in ({}, {"when_off": "fail"}):
        with pytest.raises(LivesnapError, match="guest 'resting' is off; start it first, or set"):
            store.take(domain, "one", **options)
    spec = store.spec(domain, "one", when_off="skip")
    for result in (store.take(domain, "one", when_off="skip"),
                   as_module(lambda: plan_snapshot(spec))):
        assert result["skip_reason"] == "guest 'resting' is off (when_off: skip)"
        assert (result["changed"], result["snapshot"], result["actions"]) == (False, None, [])
    assert view(domain) == before and not list(store.path.iterdir())


def test_disks_of_a_domain_that_is_off(domain: Domain, store: TestStore) -> None:
    before = view(domain)
    spec = store.spec(domain, "one", **OFF)
    planned = as_module(lambda: plan_snapshot(spec))
    assert planned["changed"] and not list(store.path.iterdir())
    result = store.take(domain, "one", labels=["a"], **OFF)
    assert view(domain) == before
    snapshot = result["snapshot"]
    assert result["actions"] == planned["actions"] == [
        "took snapshot 'one' of guest 'resting', which is off: its disks alone"]
    assert (snapshot["memory"], snapshot["engine"], snapshot["labels"]) == (None, None, ["a"])
    consistency = snapshot["consistency"]
    assert consistency == planned["snapshot"]["consistency"]
    assert consistency["level"] == "clean"
    assert consistency["freeze"]["reason"] == "not needed: guest is off"
    assert snapshot["timings"]["disk_copy_s"] >= 0 and snapshot["timings"]["pause_ms"] is None
    assert [disk["match"] for disk in snapshot["disks"]] == ["vda", "vdb"]
    for path, kind, copy in zip(domain.disk_paths, ("raw", "qcow2"), images_of(result)):
        same(path, kind, copy)
        assert copy.stat().st_mode & 0o777 == 0o400
        # The QEMU of this libvirt has to be able to open it.
        assert copy.owner() == "libvirt-qemu"
    folder = folder_of(result)
    fields = manifest.read(folder)
    assert fields["was_off"] and not fields["was_running"] and fields["uuid"] == domain.uuid
    assert fields["guest_facts"]["machine"].startswith("pc-")
    xml = domain.virsh("dumpxml", "--inactive", "--security-info")
    assert (folder / "domain.xml").read_text().strip() == xml.strip()
    assert [each["problem"] for each in list_snapshots(str(store.path))] == [None]
    assert not run_dirs() and not list(RUN.glob("lock/*"))


def test_slow_and_compressed(domain: Domain, store: TestStore) -> None:
    """Without a QEMU there is nothing that libvirt would have to do."""
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 50M 8M", str(domain.disk_paths[1])],
                   check=True, stdout=subprocess.DEVNULL, timeout=60)
    result = store.take(domain, "one", disk_bandwidth="4M", disk_compression="zstd", **OFF)
    for path, kind, copy in zip(domain.disk_paths, ("raw", "qcow2"), images_of(result)):
        same(path, kind, copy)
    assert result["snapshot"]["disks"][1]["stored_bytes"] < 2 << 20
    assert result["snapshot"]["timings"]["disk_copy_s"] > 0.6 * 8 / 4


def test_what_is_off_has_no_ram_to_ask_for(domain: Domain, store: TestStore) -> None:
    first = store.take(domain, "one", freeze="required", **OFF)["snapshot"]
    again = store.take(domain, "one", memory=True, freeze="required", **OFF)
    assert (again["changed"], again["snapshot"]["id"]) == (False, first["id"])
    with pytest.raises(LivesnapError, match="less than what is asked: memory: true"):
        store.take(domain, "one", memory=True)
    assert not store.take(domain, "one", memory=False, when_off="skip")["changed"]


def test_which_disks(domain: Domain, store: TestStore) -> None:
    disks = [{"match": "disk0", "scheme": "none"}]
    result = store.take(domain, "one", disks=disks, **OFF)
    assert [disk["match"] for disk in result["snapshot"]["disks"]] == ["vdb"]
    assert manifest.read(folder_of(result))["excluded_disks"] == [{"match": "vda", "node": "vda"}]
    with pytest.raises(LivesnapError, match="matches 'vdx'"):
        store.take(domain, "two", disks=[{"match": "vdx"}], **OFF)
    every = [{"match": "vd*", "scheme": "none"}]
    with pytest.raises(LivesnapError, match="it is off, and there is no disk"):
        store.take(domain, "two", disks=every, **OFF)
    with contextlib.ExitStack() as stack:
        hidden = domain.disk_paths[1].with_name("elsewhere")
        domain.disk_paths[1].rename(hidden)
        stack.callback(hidden.rename, domain.disk_paths[1])
        with pytest.raises(LivesnapError, match=r"disk1\.qcow2' cannot be read"):
            store.take(domain, "two", **OFF)
    assert [path.name for path in store.path.glob("*/*")] == ["one"]


def stopped_owner() -> int:
    def find() -> int:
        for folder in run_dirs("off-*"):
            pid = int(read(folder / "owner.json").get("pid", 0))
            if pid and state(pid) == "T":
                return pid
        return 0

    return int(wait(find, 30.0))


def meanwhile(
    store: TestStore, domain: Domain, act: Callable[[], object], **given: Any
) -> dict[str, Any]:
    """A snapshot whose owner stands still with the images locked while something is done."""
    failed: list[Exception] = []

    def interfere() -> None:
        pid = stopped_owner()
        try:
            act()
        except (AssertionError, LabError) as error:
            failed.append(error)
        finally:
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=interfere)
    with fault("copy", "STOP"):
        thread.start()
        try:
            return store.take(domain, "one", **(given or OFF))
        finally:
            thread.join()
            assert not failed, failed


def test_nobody_starts_it_while_it_is_copied(domain: Domain, store: TestStore) -> None:
    def start() -> None:
        with pytest.raises(LabError, match="lock"):
            domain.virsh("start")

    result = meanwhile(store, domain, start)
    assert result["snapshot"]["consistency"]["level"] == "clean"
    for path, kind, copy in zip(domain.disk_paths, ("raw", "qcow2"), images_of(result)):
        same(path, kind, copy)
    domain.start(wait=False)
    domain.shut_down()
    said = store.take(domain, "two", **OFF)["snapshot"]["consistency"]["indications"]
    assert said[0] == (
        "guest is off: it was destroyed, which is a power cut to the file systems in it")


def test_a_start_that_no_lock_prevents_is_seen(libvirtd: Libvirtd, store: TestStore) -> None:
    file = store.path.with_name(store.path.name + ".img")
    with file.open("wb") as image:
        image.truncate(64 << 20)
    made = subprocess.run(["losetup", "--find", "--show", str(file)], capture_output=True,
                          text=True, check=False, timeout=60)
    if made.returncode:
        file.unlink()
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    device = made.stdout.strip()
    domain = Domain(libvirtd, name="blocks", memory=128, devices=f"""
        <disk type='block' device='disk'><driver name='qemu' type='raw'/>
          <source dev='{device}'/><target dev='vdz' bus='virtio'/></disk>""")
    given = {"disks": [{"match": "vda", "scheme": "none"}], **OFF}
    try:
        with pytest.raises(LivesnapError, match="'blocks' was started while its disks were copied"):
            meanwhile(store, domain, lambda: domain.start(wait=False), **given)
        assert not list(store.path.glob("*/*"))
        domain.shut_down()
        result = store.take(domain, "one", **given)
        assert [disk["match"] for disk in result["snapshot"]["disks"]] == ["vdz"]
        same(Path(device), "raw", images_of(result)[0])
    finally:
        domain.stop()
        subprocess.run(["losetup", "--detach", device], check=True, timeout=60)
        file.unlink()


def test_what_somebody_else_writes_is_seen(domain: Domain, store: TestStore) -> None:
    def write() -> None:
        # By no QEMU: it looks at no locks.
        with domain.disk_paths[0].open("r+b") as file:
            file.seek(4096)
            file.write(b"x")

    with pytest.raises(LivesnapError, match=r"disk0\.raw' was written to while it was copied"):
        meanwhile(store, domain, write)
    assert not list(store.path.glob("*/*")) and not run_dirs()


def test_a_copy_is_aborted_on_request(domain: Domain, store: TestStore) -> None:
    with pytest.raises(LivesnapError, match="'one' of guest 'resting' failed: it was aborted on"):
        meanwhile(store, domain, lambda: os.kill(stopped_owner(), signal.SIGTERM))
    assert not list(store.path.glob("*/*")) and not run_dirs()


def test_an_image_that_is_in_use(domain: Domain, store: TestStore) -> None:
    path = str(domain.disk_paths[0])
    with subprocess.Popen(["qemu-io", "-f", "raw", path], stdin=subprocess.PIPE,
                          stdout=subprocess.DEVNULL) as user:
        def in_use() -> bool:
            try:
                ImageLock(path).release()
            except RefusedError:
                return True
            return False

        try:
            wait(in_use, 20.0)
            with pytest.raises(LivesnapError, match=r"disk0\.raw' is in use"):
                store.take(domain, "one", **OFF)
        finally:
            user.kill()
    assert not list(store.path.glob("*/*"))
    lock = ImageLock(path)
    assert lock.kept
    write = ["qemu-io", "-f", "raw", "-c", "write 8192 512", path]
    refused = subprocess.run(write, capture_output=True, text=True, check=False, timeout=60)
    assert "lock" in refused.stderr
    lock.release()
    subprocess.run(write, check=True, stdout=subprocess.DEVNULL, timeout=60)


@pytest.mark.parametrize("step", ["folder", "copy", "publish"])
def test_the_owner_dies(step: str, domain: Domain, store: TestStore) -> None:
    with fault(step, "KILL"), pytest.raises(LivesnapError, match="was killed"):
        store.take(domain, "one", **OFF)
    # It dies a moment after its pipe was closed.
    wait(lambda: _recover.plan_recovery(str(store.path), None), 20)
    said = as_module(lambda: _recover.recover(str(store.path), None, helper()))
    assert len(said) == 1 and "snapshot 'one' of guest 'resting'" in said[0]
    assert not list(store.path.glob("*/*")) and not run_dirs()
    assert store.take(domain, "one", **OFF)["recovered"] == []


def test_a_copy_ends_with_its_owner(domain: Domain, tmp_path: Path) -> None:
    target = tmp_path / "copy.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(target), "64M"], check=True,
                   timeout=60)
    note = tmp_path / "pid"

    def die(percent: float) -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        if children and Path(f"/proc/{children[0]}/comm").read_text() == "qemu-img\n":
            os.kill(int(children[0]), signal.SIGSTOP)
            note.write_text(children[0])
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        try:
            resting.copy(str(domain.disk_paths[0]), "raw", str(target), die)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    wait(lambda: state(int(note.read_text())) in ("", "Z"), 10.0)


def test_what_libvirt_saved_is_not_clean(libvirtd: Libvirtd, store: TestStore) -> None:
    with Domain(libvirtd, name="saved", memory=128) as domain:
        domain.virsh("managedsave")
        domain.pid = None
        with pytest.raises(LivesnapError, match="is off, and saved"):
            store.take(domain, "one", freeze="required", **OFF)
        consistency = store.take(domain, "one", **OFF)["snapshot"]["consistency"]
        assert consistency["level"] == "crash"
        assert "libvirt has saved the guest's RAM" in consistency["indications"][-1]
        domain.start(wait=False)
        domain.counts()
        whole = store.take(domain, "two", **OFF)
        assert verdict(domain, whole, domain.witness()["pages"]) == ""
        assert manifest.read(folder_of(whole))["was_off"] is False
        domain.shut_down()
        result = store.take(domain, "three", **OFF)
        assert result["snapshot"]["consistency"]["level"] == "clean"
        assert disk_state(images_of(result)[0]) == disk_state(domain.disk_paths[0])


def test_what_is_possible_is_told_of_a_domain_that_is_off(
        domain: Domain, store: TestStore) -> None:
    request = HostRequest(str(store.path), domain.libvirtd.uri, helper())
    found = as_module(lambda: describe(request))["guests"]
    told = next(each for each in found if each["name"] == domain.name)
    assert (told["state"], told["problem"]) == ("off", None)
    assert told["schemes"]["backup"] == {"possible": True, "reasons": []}
    assert told["engines"]["uffd"] == {"possible": False, "reasons": ["guest is off"]}
    assert told["freeze"] == {"possible": False, "reason": "guest is off"}
