# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A libvirt domain goes back to a snapshot, in place, and is an ordinary domain as before."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _recover
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.restore import plan_restore
from bracket_kit import fault, wait
from lab import DiskSpec, Domain, Libvirtd
from taking import TestStore, as_module, helper, verdict

GENERATION = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"


def generation(domain: Domain) -> str:
    """What tells the guest's system that it went back in time, when it changes."""
    with domain.qmp() as qmp:
        return str(qmp.execute("query-vm-generation-id")["guid"])


@pytest.fixture(scope="module")
def domain(libvirtd: Libvirtd) -> Iterator[Domain]:
    """Unprivileged and sandboxed, with a raw and a qcow2 disk, and variables of its firmware."""
    made = Domain(libvirtd, name="goes-back", memory=128,
                  disks=(DiskSpec(), DiskSpec(64, "qcow2")))
    # Any firmware that lies in flash has its variables beside it; SeaBIOS boots fast.
    variables(made).write_bytes(b"V" * (128 << 10))
    xml = made.folder / "domain.xml"
    xml.write_text(xml.read_text().replace("</type>", f"""</type>
        <loader readonly='yes' type='pflash'>/usr/share/seabios/bios-256k.bin</loader>
        <nvram>{variables(made)}</nvram>""", 1))
    xml.write_text(xml.read_text().replace("</uuid>", f"</uuid><genid>{GENERATION}</genid>"))
    libvirtd.virsh("define", str(xml))
    with made as guest:
        yield guest


def variables(domain: Domain) -> Path:
    return domain.folder / "variables.fd"


@pytest.fixture(scope="module")
def kept() -> Iterator[TestStore]:
    """One store for the module."""
    made = TestStore()
    yield made
    made.remove()


def settled(domain: Domain) -> None:
    """Which process it is now."""
    domain.pid = int((domain.libvirtd.folder / "run" / "qemu" / f"{domain.name}.pid").read_text())


def judged(domain: Domain, snapshot: dict[str, Any], pages: int) -> str:
    """verdict() of the disks that the witness writes to."""
    disks = [disk for disk in snapshot["disks"] if "flash" not in disk["match"]]
    return verdict(domain, {"snapshot": {**snapshot, "disks": disks}}, pages)


def files_of(xml: str) -> list[str]:
    return [source.attrib["file"]
            for source in ET.fromstring(xml).iterfind("./devices/disk/source")]


def in_order(domain: Domain, definition: str) -> None:
    """Its definition is what it was, and all of libvirt's views name the files that QEMU has."""
    ours = [str(path) for path in domain.disk_paths]
    assert domain.virsh("dumpxml", "--inactive") == definition
    assert files_of(domain.virsh("dumpxml")) == files_of(definition) == ours
    with domain.qmp() as qmp:
        blocks = qmp.execute("query-block")
    opened = [each["inserted"]["image"]["filename"] for each in blocks]
    assert [file for file in opened if "seabios" not in file] == [str(variables(domain)), *ours]
    assert variables(domain).read_bytes() == b"V" * (128 << 10)
    assert domain.virsh("domblklist").split() == [
        word for pair in zip(("vda", "vdb"), ours) for word in pair]
    assert domain.virsh("snapshot-list", "--name").strip() == ""
    assert "None" in domain.virsh("domjobinfo")
    assert not [path for path in domain.folder.iterdir() if "livesnap" in path.name]


def mark(domain: Domain, name: str) -> set[str]:
    """A file in the guest's RAM: all marks that there are now."""
    with domain.agent() as agent:
        agent.run("/bin/busybox", "touch", f"/mark-{name}")
    return marks(domain)


def marks(domain: Domain) -> set[str]:
    with domain.agent() as agent:
        return {name for name in agent.run("/bin/ls", "/").split() if name[:5] == "mark-"}


def is_at(domain: Domain, boot: str, marked: set[str]) -> None:
    """It is the guest that had these marks, counts on, and nothing of it is damaged."""
    settled(domain)
    assert marks(domain) == marked
    assert domain.counts()["boot"] == boot


def test_it_goes_back_and_starts_again(domain: Domain, kept: TestStore) -> None:
    definition = domain.virsh("dumpxml", "--inactive")
    pages = domain.witness()["pages"]
    kept.take(domain, "one", freeze="required")
    boot = domain.counts()["boot"]
    owner = os.stat(domain.disk_paths[0]).st_uid
    plan = as_module(lambda: plan_restore(kept.request(domain, "one")))
    assert plan["pid"] == domain.pid
    later = mark(domain, "later")
    assert generation(domain) == GENERATION
    # Where the image is not what the chip holds, the chip writes itself to it as it wakes up.
    number = variables(domain).stat().st_ino
    with variables(domain).open("r+b") as file:
        file.write(b"other")
    result = kept.restore(domain, "one")
    assert variables(domain).stat().st_ino != number
    assert result["running"] and result["warnings"] == []
    is_at(domain, boot, set())
    assert result["pid"] == domain.pid
    assert generation(domain) != GENERATION
    in_order(domain, definition)
    assert os.stat(domain.disk_paths[0]).st_uid == owner
    # Snapshotted again, of one instant.
    two = kept.take(domain, "two", freeze="required")["snapshot"]
    assert judged(domain, two, pages) == ""
    folder = kept.path / "goes-back" / result["kept"]
    present = {**json.loads((folder / "manifest.json").read_text()), "path": folder}
    assert present["was_running"] and judged(domain, present, pages) == ""
    # Back to the present that was kept, by its UUID.
    kept.restore(domain, result["kept"], guest=domain.uuid, keep_current=False)
    is_at(domain, boot, later)
    # Shut down, started, snapshotted again.
    domain.shut_down()
    assert os.stat(domain.disk_paths[0]).st_uid == 0
    domain.start()
    in_order(domain, definition)
    three = kept.take(domain, "three", freeze="required")["snapshot"]
    assert judged(domain, three, domain.witness()["pages"]) == ""


def test_a_failure_puts_everything_back(
        domain: Domain, kept: TestStore, tmp_path: Path) -> None:
    """A save file that libvirt's QEMU refuses: the domain goes on where it stood."""
    cut = tmp_path / "helper"
    cut.write_text(f"""#!/bin/sh
{helper()} "$@" || exit
case "$*" in *libvirt*/two\\ *) for save in "$@"; do :; done; truncate -s 40000000 "$save";; esac
""")
    cut.chmod(0o755)
    definition, boot = domain.virsh("dumpxml", "--inactive"), domain.counts()["boot"]
    marked = mark(domain, "refused")
    with pytest.raises(LivesnapError, match="goes on where it stood"):
        kept.restore(domain, "two", _livesnap_helper=str(cut))
    is_at(domain, boot, marked)
    in_order(domain, definition)


@pytest.mark.parametrize("step", ["put"])
def test_it_is_killed_after(domain: Domain, kept: TestStore, step: str) -> None:
    definition, boot = domain.virsh("dumpxml", "--inactive"), domain.counts()["boot"]
    marked = mark(domain, step)
    with fault(f"restore-{step}", "KILL"):
        with pytest.raises(LivesnapError, match="was killed"):
            kept.restore(domain, "three")
    store = str(kept.path)
    wait(lambda: as_module(lambda: _recover.plan_recovery(store, domain.name)), 20)
    said = as_module(lambda: _recover.recover(store, domain.name, helper()))
    assert [line for line in said if "goes on where it stood" in line]
    is_at(domain, boot, marked)
    in_order(domain, definition)


def test_what_is_refused(domain: Domain, kept: TestStore) -> None:
    def refused(words: str, **options: object) -> None:
        with pytest.raises(LivesnapError, match=words):
            kept.restore(domain, "three", **options)
        assert not list(kept.path.glob("*/.restore"))

    refused("cannot be reached", uri="qemu:///system?socket=/nowhere")
    definition = domain.virsh("dumpxml", "--inactive")
    other = domain.folder / "other.xml"
    try:
        for words, text in (
                ("the definition of domain 'goes-back' has '/elsewhere'",
                 definition.replace(str(domain.disk_paths[0]), "/elsewhere")),
                ("names the backing file of disk 'vdb'", definition.replace(
                    "<target dev='vdb'", "<backingStore type='file'><format type='raw'/>"
                    "<source file='/base'/></backingStore><target dev='vdb'"))):
            other.write_text(text)
            domain.libvirtd.virsh("define", str(other))
            refused(words)
    finally:
        other.write_text(definition)
        domain.libvirtd.virsh("define", str(other))
        other.unlink()
    domain.virsh("managedsave")
    refused("does not run, so that its present cannot be kept")
    refused("has a managed save", keep_current=False)
    domain.virsh("managedsave-remove")
    # Off, and its present given up.
    result = kept.restore(domain, "three", keep_current=False)
    assert result["kept"] is None
    settled(domain)
    assert domain.counts()["intact"]
    in_order(domain, definition)
