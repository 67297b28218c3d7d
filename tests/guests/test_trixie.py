# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU 10.0 and libvirt 11 of Debian 13: their guests, and what was taken here comes back there."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.clone import (
    CloneRequest,
    plan_clone,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from bracket_kit import clean, well
from lab import DiskSpec, Domain, DomainReach, Guest, Libvirtd
from layout import REPO
from taking import (
    TestStore,
    export,
    folder_of,
    images_of,
    overlays,
    restored_xml,
    verdict,
)

UNREACHABLE = 75


@pytest.fixture(scope="session")
def trixie() -> Path:
    """A Debian 13, made if it is not there."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    done = subprocess.run([str(REPO / "scripts" / "trixie")], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=900, check=False)
    if done.returncode == UNREACHABLE:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return Path(done.stdout.strip())


@pytest.fixture
def newer(trixie: Path) -> Iterator[str]:
    """Its QEMU, at a place of its own, as another package of this machine would be."""
    folder = Path(tempfile.mkdtemp(prefix="livesnap-newer-", dir="/tmp"))
    try:
        shutil.copytree(trixie / "outside", folder, symlinks=True, dirs_exist_ok=True)
        yield str(folder / "bin" / "qemu-system-x86_64")
    finally:
        shutil.rmtree(folder)


def by_qemu_itself(guest: Guest, store: TestStore, pages: int) -> None:
    """Engine qemu, which leaves it to us to let the guest go on; one that is paused stays so."""
    result = store.take(guest, "running", engine="qemu")
    assert result["snapshot"]["engine"] == "qemu"
    assert verdict(guest, result, pages) == ""
    well(guest)
    clean(guest)
    boot = guest.counts()["boot"]
    with store.clone(guest, "running") as clone:
        assert clone.counts(limit=30.0)["boot"] == boot
    with guest.look() as qmp:
        qmp.execute("stop")
        assert verdict(guest, store.take(guest, "paused", engine="qemu"), pages) == ""
        assert qmp.execute("query-status")["status"] == "paused"
        qmp.execute("cont")
    well(guest)
    clean(guest)


@pytest.mark.parametrize(("machine", "type_there"), [
    ("q35", "pc-q35-10.0"), ("pc", "pc-i440fx-10.0")])
def test_a_guest_of_qemu_10(
        newer: str, store: TestStore, machine: str, type_there: str) -> None:
    with Guest(program=newer, machine=machine, disks=(DiskSpec(), DiskSpec(64, "qcow2"))) as guest:
        result = store.take(guest, "one")
        boot = guest.counts()["boot"]
        pages = guest.witness()["pages"]
        assert verdict(guest, result, pages) == ""
        manifest = (folder_of(result) / "manifest.json").read_text()
        # QEMU tells where RAM lies; 7.2 does not.
        assert "HVA" in manifest and f'"machine": "{type_there}"' in manifest
        with store.clone(guest, "one") as clone:
            assert clone.counts()["boot"] == boot
        guest.counts()
        if machine == "pc":
            by_qemu_itself(guest, store, pages)
    # An older QEMU in its place is named before anything is made.
    older = shutil.which("qemu-system-x86_64")
    assert older is not None
    os.unlink(newer)
    shutil.copy2(older, newer)
    request = CloneRequest(str(store.path), guest.options.name, "old", "one")
    with pytest.raises(LivesnapError, match=rf"is of QEMU 10.*'{newer}' is older: .*version 7"):
        plan_clone(request)
    assert request.place.left() == []


def test_virsh_restores_the_export_on_debian_13(
        trixie: Path, libvirtd: Libvirtd, store: TestStore, tmp_path: Path) -> None:
    with Domain(libvirtd, name="moves", cpu="qemu64") as domain:
        result = store.take(domain, "one", freeze="required")
        state = domain.counts()
        pages = domain.witness()["pages"]
        assert verdict(domain, result, pages) == ""
        domain.shut_down()
        xml = tmp_path / "edited.xml"
        xml.write_text(restored_xml(folder_of(result), overlays(domain.folder, images_of(result))))
        save = export(result, domain.folder / "save", "libvirt", "--xml", str(xml))
        with Libvirtd(trixie) as there:
            assert "11." in there.virsh("--version")
            there.virsh("restore", str(save))
            back = DomainReach(there, "moves")
            back.virsh("domfsthaw")
            with back.qmp() as qmp:
                assert qmp.execute("query-version")["qemu"]["major"] == 10
            assert '<type arch="x86_64" machine="pc-i440fx-7.2"' in back.virsh("dumpxml").replace(
                "'", '"')
            # It goes on where it was: the original had counted further.
            assert back.ask()["counter"] <= state["counter"] + 200
            assert back.counts()["boot"] == state["boot"]
            # Its RAM and its disks are of one instant there, too.
            again = store.take(domain, "there", uri=there.uri)
            assert verdict(domain, again, pages) == ""
