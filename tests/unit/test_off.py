# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a domain that is off, from its XML; what becomes of it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket import entry, off
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.spec import SnapshotSpec
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.select import Selection
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    QmpConnectError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.off import (
    OffGuest,
    machine,
    parse_disks,
    qemu_user,
)

XML = """<domain type='kvm'><name>a</name><memory unit='KiB'>131072</memory><vcpu>3</vcpu>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>{os}</os>{cpu}
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}</devices></domain>"""
DISKS = """
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a.qcow2'/>
 <target dev='vda'/><serial>s1</serial></disk>
<disk type='block' device='disk'><source dev='/dev/vg/a'/><target dev='vdb'/></disk>
<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>
<disk type='file' device='cdrom'><source file='/cd.iso'/><target dev='sdb'/></disk>
<disk type='network' device='disk'><driver type='raw'/><source protocol='rbd' name='p/i'/>
 <target dev='vdc'/></disk>"""
CAPABILITIES = """<capabilities><host>
<secmodel><model>apparmor</model><doi>0</doi></secmodel>
<secmodel><model>dac</model><baselabel type='kvm'>+64055:+109</baselabel>
 <baselabel type='qemu'>+64056:+110</baselabel></secmodel></host></capabilities>"""


def root(os: str = "", cpu: str = "", devices: str = "") -> ET.Element:
    return ET.fromstring(XML.format(os=os, cpu=cpu, devices=devices))


def guest(**given: Any) -> OffGuest:
    values: dict[str, Any] = {
        "name": "a", "uuid": "u", "xml": "", "disks": parse_disks(root(devices=DISKS)),
        "encrypted": [], "ended": "it was shut down", "migrated": False, "saved": False,
        "owner": (1, 2), "qemu_version": "7.2.22", "blockers": [], **given}
    return OffGuest(**values)


def test_disks_of_each_kind() -> None:
    found = parse_disks(root(devices=DISKS))
    assert [(disk.label, disk.file, disk.format) for disk in found] == [
        ("vda", "/a.qcow2", "qcow2"), ("vdb", "/dev/vg/a", "raw"), ("sda", "", "raw"),
        ("sdb", "/cd.iso", "raw"), ("vdc", "network", "raw")]
    assert [disk.inserted for disk in found] == [True, True, False, True, True]
    assert [disk.read_only for disk in found] == [False, False, True, True, False]
    assert found[0].names == ("vda", "vda", "s1")


def test_variables_of_firmware_once_they_are_there(tmp_path: Path) -> None:
    file = tmp_path / "vars.fd"
    os = f"<nvram>{file}</nvram>"
    assert parse_disks(root(os=os)) == []
    file.touch()
    (found,) = parse_disks(root(os=os))
    # As a running guest has it, so that an entry of 'disks' fits it on or off.
    assert (found.label, found.node) == ("/machine/system.flash1", "libvirt-pflash1-format")
    assert (found.file, found.format) == (str(file), "raw")


@pytest.mark.parametrize(("cpu", "model"), [
    ("", ""), ("<cpu mode='host-passthrough'/>", "host-passthrough"),
    ("<cpu mode='custom'><model>Skylake-Server</model></cpu>", "Skylake-Server"),
])
def test_the_machine(cpu: str, model: str) -> None:
    assert machine(root(cpu=cpu)) == {
        "machine": "pc-q35-7.2", "arch": "x86_64", "accelerator": "kvm", "cpu": model, "vcpus": 3}


def test_whom_libvirt_runs_qemu_as() -> None:
    assert qemu_user(CAPABILITIES, "kvm") == (64055, 109)
    assert qemu_user(CAPABILITIES, "qemu") == (64056, 110)
    assert qemu_user("<capabilities><host/></capabilities>", "kvm") == (0, 0)
    assert qemu_user(CAPABILITIES.replace("+64055", "name"), "kvm") == (0, 0)


def test_what_only_its_own_qemu_can_read_is_refused() -> None:
    off.check_disk("a", guest(), guest().disks[0])
    off.check_disk("a", guest(), guest().disks[1])
    with pytest.raises(RefusedError, match="'vdc' of guest 'a', which is off, is of type 'net"):
        off.check_disk("a", guest(), guest().disks[4])
    with pytest.raises(RefusedError, match="'vda' of guest 'a', which is off, is encrypted"):
        off.check_disk("a", guest(encrypted=["vda"]), guest().disks[0])


def test_clean_but_for_a_guest_that_was_saved() -> None:
    found = off.consistency(guest(), "auto")
    assert found["level"] == "clean"
    assert found["indications"] == ["guest is off: it was shut down", "RAM: none: guest is off"]
    assert off.consistency(guest(saved=True), "auto")["level"] == "crash"


def test_what_becomes_of_a_guest_that_is_off() -> None:
    base = {"guest": "a", "name": "one"}
    with pytest.raises(RefusedError, match="guest 'a' is off; start it first"):
        entry.unless_disks(SnapshotSpec.of(base))
    skipped = entry.unless_disks(SnapshotSpec.of({**base, "when_off": "skip"}))
    assert skipped is not None and not skipped["changed"] and "is off" in skipped["skip_reason"]
    assert entry.unless_disks(SnapshotSpec.of({**base, "when_off": "disks"})) is None


def test_off_is_what_libvirt_says_and_no_socket() -> None:
    assert entry.is_off(QmpConnectError("off", "it does not run"))
    assert not entry.is_off(QmpConnectError("missing", "no such socket"))
    assert not entry.is_off(LivesnapError("off"))


def test_a_scheme_that_needs_a_qemu_is_refused() -> None:
    disks = [disk for disk in guest().disks if disk.label in ("vda", "vdb")]
    off.check_schemes("a", Selection([(disk, "backup") for disk in disks], []))
    with pytest.raises(RefusedError, match=r"disk 'vdb' of guest 'a', which is off, .* 'reflink'"):
        off.check_schemes("a", Selection([(disks[0], "backup"), (disks[1], "reflink")], []))
