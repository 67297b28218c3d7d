# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots of libvirt's domains; libvirt's own view of them stays what it was."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import (
    plan_snapshot,
    remove_snapshot,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.domain_jobs import DomainJobs
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._host.info import (
    HostRequest,
    describe,
)
from lab import DiskSpec, Domain, Libvirtd, QmpError
from taking import (
    TestStore,
    as_module,
    export,
    folder_of,
    helper,
    images_of,
    note_states,
    overlays,
    restored_xml,
    verdict,
)


@pytest.fixture(scope="module")
def domain(libvirtd: Libvirtd) -> Iterator[Domain]:
    """A guest of libvirt's as it comes: unprivileged, sandboxed, in namespaces of its own."""
    with Domain(libvirtd, name="stock", disks=(DiskSpec(), DiskSpec(64, "qcow2"))) as guest:
        yield guest


def view(domain: Domain) -> tuple[str, ...]:
    """What libvirt tells of a domain."""
    return (
        domain.virsh("dumpxml"), domain.virsh("dumpxml", "--inactive"), domain.virsh("domblklist"),
        domain.virsh("snapshot-list"), domain.virsh("checkpoint-list"),
        domain.virsh("domjobinfo"), domain.virsh("domstate"))


def test_snapshot_of_a_domain(domain: Domain, store: TestStore) -> None:
    status = Path(f"/proc/{domain.pid}/status").read_text()
    assert re.search(r"^Uid:\s+[1-9]", status, re.M) and re.search(r"^Seccomp:\s+2", status, re.M)
    assert Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() == "0"
    with domain.qmp() as qmp, pytest.raises(QmpError, match="not supported by host kernel"):
        qmp.execute("migrate-set-capabilities", {
            "capabilities": [{"capability": "background-snapshot", "state": True}]})
    before = view(domain)
    result = store.take(domain, "one")
    assert verdict(domain, result, domain.witness()["pages"]) == ""
    snapshot = result["snapshot"]
    assert snapshot["consistency"]["level"] == "filesystem"
    assert [disk["match"] for disk in snapshot["disks"]] == ["vda", "vdb"]
    assert view(domain) == before
    domain.counts()
    assert store.take(domain, "one") == {**result, "changed": False, "actions": [], "diff": {
        "before": {}, "after": {}}}
    # The folder is the domain's name, whichever way it was asked for.
    again = store.take(domain, "one", guest=domain.uuid)
    assert again["snapshot"]["path"] == snapshot["path"] and not again["changed"]
    owners = {os.stat(image).st_uid for image in images_of(result)}
    assert owners == {os.stat(f"/proc/{domain.pid}").st_uid}


def test_a_paused_domain_stays_paused(domain: Domain, store: TestStore) -> None:
    domain.virsh("suspend")
    try:
        result = store.take(domain, "paused")
        assert domain.virsh("domstate").strip() == "paused"
    finally:
        domain.virsh("resume")
    said = result["snapshot"]["consistency"]["indications"]
    assert said == ["fsfreeze: not done: not possible: guest is paused"]
    assert verdict(domain, result, domain.witness()["pages"]) == ""


def test_check_mode_touches_nothing(domain: Domain, store: TestStore) -> None:
    before = view(domain)
    spec = store.spec(domain, "planned", disks=[{"match": "vdb", "scheme": "none"}])
    plan = as_module(lambda: plan_snapshot(spec))
    assert [disk["match"] for disk in plan["snapshot"]["disks"]] == ["vda"]
    assert plan["snapshot"]["engine"] == "uffd"
    assert view(domain) == before and not list(store.path.iterdir())


def test_libvirt_cannot_compress(domain: Domain, store: TestStore) -> None:
    with pytest.raises(LivesnapError, match="libvirt copies the disks of guest 'stock', and can"):
        store.take(domain, "one", disk_compression="zstd")
    assert not list(store.path.iterdir())


def possible(domain: Domain, where: Path) -> dict[str, Any]:
    """What is told of a domain beforehand."""
    request = HostRequest(str(where), domain.libvirtd.uri, helper())
    found = as_module(lambda: describe(request))["guests"]
    return next(dict(each) for each in found if each["name"] == domain.name)


def test_what_is_possible_is_told_beforehand(domain: Domain, store: TestStore) -> None:
    before = view(domain)
    told = possible(domain, store.path)
    assert (told["uuid"], told["state"], told["problem"]) == (domain.uuid, "running", None)
    assert told["memory_bytes"] == domain.options.memory << 20
    assert told["engines"]["uffd"] == told["schemes"]["backup"] == {
        "possible": True, "reasons": []}
    assert told["freeze"] == {"possible": True, "reason": None}
    assert told["restore_blockers"] == []
    hidden = store.path / "hidden"
    (hidden / "store").mkdir(parents=True)
    hidden.chmod(0o700)
    domain.virsh("suspend")
    try:
        told = possible(domain, hidden / "store")
    finally:
        domain.virsh("resume")
    assert told["state"] == "paused" and told["engines"]["uffd"]["possible"]
    assert told["freeze"] == {"possible": False, "reason": "not possible: guest is paused"}
    assert "cannot be reached by user" in told["schemes"]["backup"]["reasons"][0]
    assert view(domain) == before


#: MiB a second.
_SLOW = 50


@pytest.fixture
def large(libvirtd: Libvirtd) -> Iterator[Domain]:
    """A guest whose disk has no holes: there is enough to copy."""
    made = Domain(libvirtd, name="large", disks=(DiskSpec(512),))
    disk = made.disk_paths[0]
    whole = disk.with_suffix(".whole")
    subprocess.run(["cp", "--sparse=never", str(disk), str(whole)], check=True, timeout=60)
    whole.replace(disk)
    with made as guest:
        yield guest


def test_five_in_a_row_while_libvirtd_is_restarted(
        libvirtd: Libvirtd, large: Domain, store: TestStore) -> None:
    domain, before = large, view(large)
    for number in range(5):
        if number in (1, 3):
            libvirtd.restart()
        during = Restart(domain, crash=number == 4)
        if number in (2, 4):
            during.start()
        try:
            limit = f"{_SLOW}M" if number in (2, 4) else "0"
            result = store.take(domain, f"row{number}", disk_bandwidth=limit)
        finally:
            if number in (2, 4):
                during.join()
        if number in (2, 4):
            # It takes a third of a second otherwise.
            assert result["snapshot"]["timings"]["disk_copy_s"] > 2
        assert during.seen == ([before[:4]] * 2 if number in (2, 4) else []), number
        assert verdict(domain, result, domain.witness()["pages"]) == "", number
        assert view(domain) == before, number
    domain.counts()
    for number in (2, 0, 4, 1, 3):
        spec = store.spec(domain, f"row{number}")
        assert as_module(lambda spec=spec: remove_snapshot(spec))["changed"]  # type: ignore[misc]
    assert view(domain) == before
    # Nothing of ours is in the way of what libvirt does with a domain.
    domain.virsh("undefine")
    libvirtd.virsh("define", str(domain.folder / "domain.xml"))
    domain.virsh("managedsave")
    domain.virsh("start")
    domain.pid = int((libvirtd.folder / "run" / "qemu" / f"{domain.name}.pid").read_text())
    domain.counts()


class Restart(threading.Thread):
    """libvirtd goes away in the middle of a copy of disks, and comes back to it."""

    def __init__(self, domain: Domain, crash: bool) -> None:
        super().__init__()
        self.domain = domain
        self.crash = crash
        #: What libvirt told in the middle of the copy, and as soon as it was back.
        self.seen: list[tuple[str, ...]] = []

    def run(self) -> None:
        deadline = time.monotonic() + 60
        while not self._slow():
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)
        self._look()
        if self.crash:
            self.domain.libvirtd.kill()
            self.domain.libvirtd.start()
        else:
            self.domain.libvirtd.restart()
        # The copy goes on, or has ended while nobody was there to see it.
        self._look()

    def _look(self) -> None:
        self.seen.append(view(self.domain)[:4])

    def _slow(self) -> bool:
        """The copy goes at the speed that it has from the thaw on."""
        told = self.domain.virsh("blockjob", "vda", "--raw")
        speed = re.search(r"^ *bandwidth=([0-9]+)$", told, re.M)
        return bool(speed and int(speed[1]) == _SLOW)


@pytest.mark.parametrize(("freeze", "writes", "states"), [
    ("required", False, ["running"]),
    ("never", False, ["paused"]),
    # What the file systems do not hold back, as a swap device: once more, in the pause.
    ("required", True, ["running", "paused"]),
])
def test_copies_begin_while_the_guest_is_frozen(
    domain: Domain, store: TestStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    freeze: str, writes: bool, states: list[str],
) -> None:
    told = tmp_path / "told"
    noting = note_states(DomainJobs._begin, domain, told, "virtio-disk1" if writes else "")
    monkeypatch.setattr(DomainJobs, "_begin", noting)
    before = view(domain)
    # The second disk is empty: its copy has ended before it can be told a speed.
    result = store.take(domain, "one", freeze=freeze, disk_bandwidth="50M")
    assert told.read_text().split() == states
    assert result["snapshot"]["consistency"]["freeze"]["achieved"] == (freeze == "required")
    assert verdict(domain, result, domain.witness()["pages"]) == ""
    assert view(domain) == before
    with domain.qmp() as qmp:
        nodes = qmp.execute("query-named-block-nodes", {"flat": True})
    assert not [each for each in nodes if each.get("dirty-bitmaps")]


def test_another_job_is_waited_for_then_refused(domain: Domain, store: TestStore) -> None:
    target = domain.folder / "theirs.qcow2"
    backup = domain.folder / "backup.xml"
    backup.write_text(f"<domainbackup mode='pull'><server transport='unix' "
                      f"socket='{domain.folder}/nbd'/><disks><disk name='vda' type='file'>"
                      f"<scratch file='{target}'/></disk></disks></domainbackup>")
    domain.folder.chmod(0o777)
    domain.virsh("backup-begin", str(backup))
    try:
        assert "busy with a job on domain" in possible(domain, store.path)["problem"]
        with pytest.raises(LivesnapError, match="busy with a job on domain 'stock'"):
            store.take(domain, "refused", lock_timeout=1)
    finally:
        domain.virsh("domjobabort")
        domain.folder.chmod(0o755)
    assert not list(store.path.glob("*/*"))
    assert store.take(domain, "taken")["changed"]


def test_no_such_domain_and_no_such_libvirt(domain: Domain, store: TestStore) -> None:
    with pytest.raises(LivesnapError, match="has no domain 'nosuch'"):
        store.take(domain, "x", guest="nosuch")
    with pytest.raises(LivesnapError, match="cannot be reached"):
        store.take(domain, "x", uri="qemu:///system?socket=/nowhere")
    with pytest.raises(LivesnapError, match="not of this machine's libvirt"):
        store.take(domain, "x", uri="qemu+ssh://elsewhere/system")


def test_the_firmwares_variables_are_captured(libvirtd: Libvirtd, store: TestStore) -> None:
    domain = Domain(libvirtd, name="flash")
    # Any firmware that lies in flash has its variables beside it; SeaBIOS boots fast.
    variables = domain.folder / "variables.fd"
    variables.write_bytes(b"V" * (128 << 10))
    xml = domain.folder / "domain.xml"
    xml.write_text(xml.read_text().replace("</type>", f"""</type>
        <loader readonly='yes' type='pflash'>/usr/share/seabios/bios-256k.bin</loader>
        <nvram>{variables}</nvram>""", 1))
    libvirtd.virsh("define", str(xml))
    with domain:
        before = view(domain)
        result = store.take(domain, "one")
        assert view(domain) == before
        copy, _disk = images_of(result)
        subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(variables),
                        str(copy)], check=True, stdout=subprocess.DEVNULL, timeout=60)
        domain.counts()
        domain.shut_down()
        off = store.take(domain, "off", when_off="disks")
        for key in ("match", "qdev", "node", "source", "format", "bytes"):
            assert off["snapshot"]["disks"][0][key] == result["snapshot"]["disks"][0][key]
        subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(variables),
                        str(images_of(off)[0])], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_a_store_that_qemu_cannot_get_to(domain: Domain, store: TestStore) -> None:
    hidden = store.path / "hidden"
    (hidden / "store").mkdir(parents=True)
    hidden.chmod(0o700)
    before = view(domain)
    with pytest.raises(LivesnapError, match="cannot be reached by user 'libvirt-qemu'"):
        store.take(domain, "x", store=str(hidden / "store"))
    assert view(domain) == before and not list((hidden / "store").iterdir())


@pytest.mark.parametrize("freeze", ["never", "required"])
def test_virsh_restores_the_export(
        libvirtd: Libvirtd, store: TestStore, tmp_path: Path, freeze: str) -> None:
    with Domain(libvirtd, name="comes-back") as domain:
        result = store.take(domain, "one", freeze=freeze)
        counter = domain.counts()["counter"]
        domain.shut_down()
        xml = tmp_path / "edited.xml"
        xml.write_text(restored_xml(folder_of(result), overlays(domain.folder, images_of(result))))
        save = export(result, domain.folder / "save", "libvirt", "--xml", str(xml))
        libvirtd.virsh("restore", str(save))
        domain.pid = int((libvirtd.folder / "run" / "qemu" / "comes-back.pid").read_text())
        if freeze == "required":
            domain.virsh("domfsthaw")
        # It goes on where it was: the original had counted further.
        assert domain.ask()["counter"] <= counter + 200
        assert domain.counts()["intact"]
        # An ordinary domain again, in use by what it was restored from.
        again = store.take(domain, "two")
        assert verdict(domain, again, domain.witness()["pages"]) == ""
        domain.virsh("managedsave")
        domain.virsh("start")
        domain.counts()
