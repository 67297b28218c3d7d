# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scheme overlay for libvirt's domains: libvirt's definition follows the images by itself."""

from __future__ import annotations

import os
import signal
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _recover
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import remove_snapshot
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.clone import (
    CloneRequest,
    create_clone,
    remove_clone,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import (
    domain_layers,
    overlay,
    uncover,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._flatten import flatten
from ansible_collections.livesnap.qemu.plugins.modules.livesnap_recover import address
from bracket_kit import fault, wait
from lab import DiskSpec, Domain, DomainReach, Libvirtd
from overlay_kit import alone, chains, entries, judged
from taking import TestStore, as_module, helper, note_states
from test_restore_libvirt import is_at, mark


@pytest.fixture(scope="module")
def domain(libvirtd: Libvirtd) -> Iterator[Domain]:
    """Unprivileged and sandboxed, with a raw and a qcow2 disk."""
    with Domain(libvirtd, name="covered",
                disks=(DiskSpec(), DiskSpec(format="qcow2"))) as guest:
        yield guest


@pytest.fixture
def pages(domain: Domain) -> int:
    return int(domain.witness()["pages"])


def take(store: TestStore, domain: Domain, name: str, **options: Any) -> dict[str, Any]:
    return store.take(domain, name, disk_scheme="overlay", **options)


def remove(store: TestStore, domain: Domain, name: str) -> None:
    spec = store.spec(domain, name)
    assert as_module(lambda: remove_snapshot(spec))["changed"]


def recover(store: TestStore) -> list[str]:
    return as_module(lambda: _recover.recover(str(store.path), None, helper()))


def end(*_given: object) -> NoReturn:
    """In the place of a function: the process ends there."""
    os._exit(1)


def defined(domain: Domain, *which: str) -> list[str]:
    """The files of its disks, as libvirt tells."""
    root = ET.fromstring(domain.virsh("dumpxml", *which))
    return [source.attrib["file"] for source in root.iterfind("./devices/disk/source")]


def followed(domain: Domain, count: int) -> None:
    """Each disk is made of so many images, and libvirt knows of the one that is written to."""
    found = chains(domain)
    assert [len(files) for files in found] == [count, count]
    tops = [files[0] for files in found]
    assert defined(domain) == defined(domain, "--inactive") == tops
    user = os.stat(f"/proc/{domain.pid}").st_uid
    assert [os.stat(file).st_uid for file in tops] == [user, user]


def back(domain: Domain) -> None:
    """It runs on its first images, and libvirt has nothing of ours."""
    alone(domain)
    followed(domain, 1)
    assert domain.virsh("snapshot-list", "--name").split() == []
    assert domain.virsh("blockjob", "vda") == ""  # it says so to stderr
    domain.counts()


@pytest.mark.parametrize(("freeze", "writes", "states"), [
    ("required", False, ["running"]),
    ("never", False, ["paused"]),
    # What the file systems do not hold back, as a swap device: once more, in the pause.
    ("required", True, ["running", "paused"]),
])
def test_covers_while_the_guest_is_frozen(
    domain: Domain, store: TestStore, pages: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    freeze: str, writes: bool, states: list[str],
) -> None:
    told = tmp_path / "told"
    noting = note_states(domain_layers.cover, domain, told, "virtio-disk0" if writes else "")
    monkeypatch.setattr(domain_layers, "cover", noting)
    domain.ask()  # it hastens
    result = take(store, domain, "one", freeze=freeze)
    assert told.read_text().split() == states
    assert result["snapshot"]["consistency"]["freeze"]["achieved"] == (freeze == "required")
    assert judged(store, domain, "one", pages) == ""
    followed(domain, 2)
    remove(store, domain, "one")
    back(domain)


def test_the_definition_follows(domain: Domain, store: TestStore, pages: int) -> None:
    definition = domain.virsh("dumpxml", "--inactive")
    for number in range(3):
        result = take(store, domain, f"s{number}")
        assert result["warnings"] == []
        assert judged(store, domain, f"s{number}", pages) == ""
        followed(domain, number + 2)
    request = CloneRequest(str(store.path), "covered", "look", snapshot="s1", helper=helper())
    try:
        made = as_module(lambda: create_clone(request))
        clone = DomainReach(domain.libvirtd, made["domain"], made["pid"])
        assert clone.devices().items() >= {"disk0": "ok", "disk1": "ok"}.items()
    finally:
        as_module(lambda: remove_clone(request))
    kept = ["s0", "s1", "s2"]
    for name in ("s1", "s2", "s0"):
        domain.ask()  # it hastens
        remove(store, domain, name)
        kept.remove(name)
        followed(domain, len(kept) + 1)
        assert sorted(entries(store, domain)) == kept
        assert [judged(store, domain, other, pages) for other in kept] == [""] * len(kept)
    back(domain)
    assert domain.virsh("dumpxml", "--inactive") == definition


@pytest.mark.parametrize(("step", "action"), [
    ("cover", "STOP"), ("stop", "KILL"), ("disks", "KILL"), ("arm", "RAISE"), ("sweep", "KILL")])
def test_what_fails_leaves_nothing(
        domain: Domain, store: TestStore, step: str, action: str) -> None:
    with fault(step, action), pytest.raises(LivesnapError):
        take(store, domain, "one", deadline=4)
    if action != "RAISE":
        wait(lambda: domain.virsh("domstate").strip() == "running", 20)
        wait(lambda: recover(store) or not list(store.path.glob("*/*")), 20)
    back(domain)
    assert list(store.path.iterdir()) == []


@pytest.mark.parametrize("place", [
    (domain_layers, "follow"), (uncover, "_tell"), (uncover.outside, "note")])
def test_a_removal_that_is_cut_short_is_ended(
        domain: Domain, store: TestStore, pages: int, monkeypatch: pytest.MonkeyPatch,
        place: tuple[Any, str]) -> None:
    for name in ("one", "two", "three"):
        take(store, domain, name)
    with monkeypatch.context() as patch:
        patch.setattr(*place, end)
        with pytest.raises(EOFError):
            remove(store, domain, "two")
    domain.counts()
    (said,) = recover(store)
    assert said.startswith("finished removing snapshot 'two' of guest 'covered'")
    followed(domain, 3)
    assert [judged(store, domain, name, pages) for name in ("one", "three")] == ["", ""]
    with monkeypatch.context() as patch:
        if place[1] != "note":
            patch.setattr(*place, end)
            with pytest.raises(EOFError):
                remove(store, domain, "three")
    if place[1] == "note":
        remove(store, domain, "three")
    else:
        recover(store)
    followed(domain, 2)
    remove(store, domain, "one")
    back(domain)


def test_libvirtd_dies_while_it_merges(
        domain: Domain, store: TestStore, pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a layer below and of the one that is written to; QEMU goes on with its job."""
    for name in ("one", "two"):
        take(store, domain, name)
    libvirtd = domain.libvirtd

    def dies(*_given: object) -> NoReturn:
        assert libvirtd.pid is not None
        os.kill(libvirtd.pid, signal.SIGKILL)
        os._exit(1)

    for name, left in (("one", 2), ("two", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(domain_layers, "follow", dies)
            with pytest.raises(EOFError):
                remove(store, domain, name)
        libvirtd.kill()
        libvirtd.start()
        (said,) = recover(store)
        assert said.startswith(f"finished removing snapshot '{name}' of guest 'covered'")
        followed(domain, left)
        if left > 1:
            assert judged(store, domain, "two", pages) == ""
    back(domain)


def test_of_a_domain_that_is_off(
        domain: Domain, store: TestStore, pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    definition = domain.virsh("dumpxml", "--inactive")
    for name in ("one", "two", "three"):
        take(store, domain, name)
    counted = domain.counts()["counter"]
    domain.shut_down()
    remove(store, domain, "two")
    assert [judged(store, domain, name, pages) for name in ("one", "three")] == ["", ""]
    domain.start()
    assert domain.counts()["counter"] > counted
    followed(domain, 3)
    domain.shut_down()
    # All of it is merged, and what libvirt starts next is told only afterwards.
    with monkeypatch.context() as patch:
        patch.setattr(overlay, "remove", end)
        with pytest.raises(EOFError):
            remove(store, domain, "three")
    domain.start()
    recover(store)
    assert domain.counts()["counter"] > counted
    followed(domain, 2)
    domain.shut_down()
    remove(store, domain, "one")
    assert domain.virsh("dumpxml", "--inactive") == definition
    domain.start()
    back(domain)
    assert domain.counts()["counter"] > counted


def by_auto(store: TestStore, domain: Domain, name: str, **options: Any) -> list[str]:
    """The schemes that auto has chosen, disk by disk."""
    found = store.take(domain, name, disk_scheme="auto", memory=False, **options)
    return [disk["scheme"] for disk in found["snapshot"]["disks"]]


def test_auto_takes_what_nothing_stands_in_the_way_of(domain: Domain, store: TestStore) -> None:
    with domain.qmp() as qmp:
        node = next(each["inserted"]["node-name"] for each in qmp.execute("query-block")
                    if "disk1" in each["inserted"]["file"])
        theirs = {"node": node, "name": "theirs"}
        qmp.execute("block-dirty-bitmap-add", {**theirs, "persistent": True})
        try:
            assert by_auto(store, domain, "theirs") == ["overlay", "backup"]
        finally:
            qmp.execute("block-dirty-bitmap-remove", theirs)
    xml = domain.folder / "kept.xml"
    xml.write_text(domain.virsh("dumpxml", "--inactive"))
    domain.virsh("undefine")
    try:
        with pytest.raises(LivesnapError, match="the domain is transient"):
            take(store, domain, "transient")
        assert by_auto(store, domain, "transient") == ["backup", "backup"]
    finally:
        domain.libvirtd.virsh("define", str(xml))
    assert by_auto(store, domain, "both") == ["overlay", "overlay"]
    for name in ("theirs", "transient", "both"):
        remove(store, domain, name)
    back(domain)


def test_flattened(domain: Domain, store: TestStore) -> None:
    for name in ("one", "two"):
        take(store, domain, name)
    reach = address({"qmp_socket": None, "uri": domain.libvirtd.uri, "guest": "covered"})
    said = as_module(lambda: list(flatten(str(store.path), "covered", reach, apply=True)))
    assert len(said) == 2
    back(domain)


def bare(store: TestStore, domain: Domain) -> list[str]:
    """Snapshots whose disks nothing covers."""
    return sorted(name for name, snapshot in entries(store, domain).items()
                  if any(disk["covered"] and not disk["overlay"] for disk in snapshot["disks"]))


def test_it_goes_back_in_place(make_domain: Callable[..., Domain], store: TestStore) -> None:
    """The disks become images that stand on nothing, and the layers are the snapshots' alone."""
    domain = make_domain(name="back", memory=128, disks=(DiskSpec(), DiskSpec(format="qcow2")))
    pages, boot = domain.witness()["pages"], domain.counts()["boot"]
    names = ("s0", "s1", "s2")
    marked = []
    for name in names:
        marked.append(mark(domain, name))
        take(store, domain, name)
    with fault("restore-put", "RAISE"), pytest.raises(LivesnapError, match="goes on where it"):
        store.restore(domain, "s0")
    is_at(domain, boot, marked[2])
    for name in set(entries(store, domain)) - set(names):
        remove(store, domain, name)
    followed(domain, 4)
    assert bare(store, domain) == []
    for number, name in enumerate(("s0", "s1")):
        result = store.restore(domain, name, keep_current=number == 0)
        is_at(domain, boot, marked[number])
        # The first layers' names stay, and nothing lies below them.
        followed(domain, 1)
        assert bare(store, domain) == ["s2"]
        assert [judged(store, domain, each, pages) for each in names] == [""] * 3
        if result["kept"]:
            kept = [disk["scheme"] for disk in entries(store, domain)[result["kept"]]["disks"]]
            assert kept == ["backup"] * 2
            remove(store, domain, result["kept"])
    take(store, domain, "s3")
    followed(domain, 2)
    domain.shut_down()
    domain.start()
    domain.counts()
    left = ["s0", "s1", "s2", "s3"]
    for name in ("s1", "s3", "s2", "s0"):
        remove(store, domain, name)
        left.remove(name)
        assert sorted(entries(store, domain)) == left
        assert [judged(store, domain, each, pages) for each in left] == [""] * len(left)
    followed(domain, 1)
    domain.counts()
    # Its first images were made by others, and are nobody's now.
    tops = {files[0] for files in chains(domain)}
    assert {str(path) for path in domain.folder.glob("disk*")} == {
        *tops, *map(str, domain.disk_paths)}


def test_a_managed_save_keeps_its_images(domain: Domain, store: TestStore) -> None:
    take(store, domain, "one")
    domain.virsh("managedsave")
    domain.pid = None
    spec = store.spec(domain, "one")
    with pytest.raises(RefusedError, match="has a managed save, which names images"):
        as_module(lambda: remove_snapshot(spec))
    domain.start(wait=False)
    remove(store, domain, "one")
    back(domain)


def test_what_libvirt_has_no_name_for_is_refused(libvirtd: Libvirtd, store: TestStore) -> None:
    made = Domain(libvirtd, name="flash")
    variables, xml = made.folder / "variables.fd", made.folder / "domain.xml"
    variables.write_bytes(b"V" * (128 << 10))
    xml.write_text(xml.read_text().replace("</type>", f"""</type>
        <loader readonly='yes' type='pflash'>/usr/share/seabios/bios-256k.bin</loader>
        <nvram>{variables}</nvram>""", 1))
    libvirtd.virsh("define", str(xml))
    with made as guest:
        with pytest.raises(LivesnapError, match=r"flash.* cannot .*: libvirt has no name for it"):
            take(store, guest, "one")
        assert by_auto(store, guest, "one") == ["backup", "overlay"]
        disks = {disk["scheme"]: disk for disk in entries(store, guest)["one"]["disks"]}
        assert Path(disks["overlay"]["covered"]) == guest.disk_paths[0]
        assert disks["backup"]["file"]
        assert by_auto(store, guest, "two", max_chain=1) == ["backup", "backup"]
        for name in ("one", "two"):
            remove(store, guest, name)
        assert defined(guest) == [str(guest.disk_paths[0])]
