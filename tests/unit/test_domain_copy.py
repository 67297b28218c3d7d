# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The XML of a second domain: the same machine, with nothing behind it that is the first one's."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._clone import domain_copy
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.domain_plan import DomainPlan

UUID = "0f0e0d0c-0b0a-4988-8776-655443322110"
PCI = "<address type='pci' domain='0x0000' bus='0x00' slot='0x03' function='0x0'/>"
# As libvirt 9 writes it of a domain that runs.
XML = f"""
<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>db1</name>
  <uuid>11111111-2222-4333-8444-555555555555</uuid>
  <genid>99999999-2222-4333-8444-555555555555</genid>
  <title>The data base</title>
  <metadata><m:note xmlns:m='http://example.com/m'>hourly</m:note></metadata>
  <memory unit='KiB'>262144</memory>
  <sysinfo type='smbios'><system>
    <entry name='manufacturer'>us</entry>
    <entry name='uuid'>11111111-2222-4333-8444-555555555555</entry>
  </system></sysinfo>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/db1.fd</nvram>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='block' device='disk' snapshot='external'>
      <driver name='qemu' type='raw' cache='none' io='native'/>
      <source dev='/dev/vg/db1' index='2'/>
      <backingStore/>
      <target dev='vda' bus='virtio'/>
      <serial>disk0</serial>
      <alias name='virtio-disk0'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/vm/scratch.qcow2' index='1'/>
      <target dev='vdb' bus='virtio'/>
      <alias name='virtio-disk1'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/>
      <source file='/iso/install.iso'/>
      <target dev='sda' bus='sata'/>
      <readonly/>
      <alias name='sata0-0-0'/>
    </disk>
    <controller type='pci' index='0' model='pcie-root'/>
    <interface type='bridge'>
      <mac address='52:54:00:aa:bb:cc'/>
      <source network='prod' portid='12345678-2222-4333-8444-555555555555' bridge='br0'/>
      <bandwidth><inbound average='1000'/></bandwidth>
      <target dev='vnet7'/>
      <model type='virtio'/>
      <driver queues='4'/>
      <filterref filter='clean-traffic'/>
      <alias name='net0'/>
      {PCI}
    </interface>
    <interface type='user'>
      <mac address='52:54:00:aa:bb:cd'/>
      <portForward proto='tcp'><range start='2022' to='22'/></portForward>
      <model type='e1000'/>
      <alias name='net1'/>
    </interface>
    <serial type='tcp'>
      <source mode='bind' host='0.0.0.0' service='4555' tls='no'/>
      <protocol type='telnet'/>
      <log file='/var/log/db1' append='on'/>
      <target type='isa-serial' port='0'><model name='isa-serial'/></target>
      <alias name='serial0'/>
    </serial>
    <console type='tcp'>
      <source mode='bind' host='0.0.0.0' service='4555' tls='no'/>
      <protocol type='telnet'/>
      <target type='serial' port='0'/>
      <alias name='serial0'/>
    </console>
    <channel type='unix'>
      <source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-7-db1/org'/>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
      <alias name='channel0'/>
    </channel>
    <channel type='spicevmc'>
      <target type='virtio' name='com.redhat.spice.0' state='disconnected'/>
    </channel>
    <graphics type='vnc' port='5901' autoport='no' listen='0.0.0.0' passwd='secret' keymap='de'>
      <listen type='address' address='0.0.0.0'/>
    </graphics>
    <graphics type='sdl' display=':0.0' xauth='/home/me/.Xauthority'/>
    <audio id='1' type='pulseaudio' serverName='me'><input/></audio>
    <rng model='virtio'>
      <backend model='egd' type='tcp'><source mode='connect' host='1.2.3.4' service='8'/></backend>
    </rng>
    <vsock model='virtio'><cid auto='no' address='17'/><alias name='vsock0'/></vsock>
    <memballoon model='virtio'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-global'/>
    <qemu:arg value='ICH9-LPC.disable_s3=1'/>
  </qemu:commandline>
</domain>
"""


def copied(network: bool = False, xml: str = XML, **changes: Any) -> domain_copy.Rewritten:
    plan: dict[str, Any] = {
        **{"name": "db1.look", "uuid": UUID, "about": "a clone", "folder": "/c"},
        **{"overlays": {"virtio-disk0": "/c/disk0.qcow2"}, "variables": "/c/variables.fd"},
        **{"network": network, "mac": lambda: "52:54:00:00:00:01", **changes},
    }
    return domain_copy.rewrite(xml, DomainPlan(**plan))


def devices(rewritten: domain_copy.Rewritten, path: str) -> list[ET.Element]:
    return ET.fromstring(rewritten.xml).findall(f"./devices/{path}")


def test_it_is_another_domain() -> None:
    made = copied()
    root = ET.fromstring(made.xml)
    assert made.findings.blockers == []
    assert (root.findtext("name"), root.findtext("uuid")) == ("db1.look", UUID)
    assert root.get("id") is None and root.findtext("description") == "a clone"
    # libvirt makes up an empty one.
    assert root.findtext("genid") == "" and "99999999" not in made.xml
    assert [each.text for each in root.iterfind("./sysinfo/system/entry")] == ["us", UUID]
    assert root.find("title") is None and root.find("metadata") is None
    assert root.findtext("./os/nvram") == "/c/variables.fd"
    assert root.findtext("./os/loader") == "/usr/share/OVMF/OVMF_CODE_4M.fd"


def test_nothing_of_the_first_one_is_left() -> None:
    text = copied().xml
    for gone in (
        *("11111111-", "db1.fd", "/dev/vg/db1", "/vm/scratch", "aa:bb:c", "br0", "vnet7", "prod"),
        *("2022", "4555", "/var/log", "domain-7", "5901", "0.0.0.0", "secret", "Xauthority"),
        *("pulseaudio", "1.2.3.4", "'17'", '"17"', "clean-traffic"),
    ):
        assert gone not in text, gone


def test_disks() -> None:
    made = copied()
    first, second, third = devices(made, "disk")
    assert first.attrib == {"type": "file", "device": "disk"}
    driver, source, target = (first.find(tag) for tag in ("driver", "source", "target"))
    assert driver is not None and source is not None and target is not None
    assert source.attrib == {"file": "/c/disk0.qcow2"}
    assert driver.attrib == {"name": "qemu", "type": "qcow2", "cache": "none", "io": "native"}
    assert target.attrib == {"dev": "vda", "bus": "virtio"}
    assert first.find("backingStore") is None and first.findtext("serial") == "disk0"
    # One that is not in the snapshot is empty, what nobody writes to is shared.
    assert made.findings.blanks == [("/vm/scratch.qcow2", "/c/blank0.qcow2")]
    assert made.findings.warnings == ["disk 'vdb' is not in the snapshot: it is empty"]
    for disk, file in ((second, "/c/blank0.qcow2"), (third, "/iso/install.iso")):
        found = disk.find("source")
        assert found is not None and found.get("file") == file


def test_cards_without_a_network() -> None:
    tap, user = devices(copied(), "interface")
    assert tap.attrib == {"type": "ethernet"}
    assert sorted(child.tag for child in tap) == ["address", "alias", "driver", "mac", "model"]
    assert user.get("type") == "user" and user.find("portForward") is None
    for card in (tap, user):
        mac = card.find("mac")
        assert mac is not None and mac.get("address") == "52:54:00:00:00:01"
        down = ET.fromstring(domain_copy.unplugged(ET.tostring(card, encoding="unicode")))
        link = down.find("link")
        assert link is not None and link.get("state") == "down"


def test_cards_with_a_network() -> None:
    tap, _user = devices(copied(network=True), "interface")
    source = tap.find("source")
    assert tap.get("type") == "bridge" and tap.find("filterref") is not None
    assert source is not None and source.attrib == {"network": "prod", "bridge": "br0"}
    assert tap.find("target") is None
    taken = XML.replace("<interface type='bridge'>", "<interface type='ethernet'>")
    assert "cannot be shared by a clone" in copied(True, taken).findings.blockers[0]
    assert copied(False, taken).findings.blockers == []


def test_ports_and_displays() -> None:
    made = copied()
    serial = devices(made, "serial")[0]
    assert serial.get("type") == "pty" and [child.tag for child in serial] == ["target", "alias"]
    assert devices(made, "console") == []
    agent, spice = devices(made, "channel")
    assert agent.get("type") == "unix" and agent.find("source") is None
    assert spice.get("type") == "spicevmc"
    (vnc,) = devices(made, "graphics")
    assert vnc.attrib == {"type": "vnc", "keymap": "de"}
    assert [child.attrib for child in vnc] == [{"type": "none"}]
    assert devices(made, "audio")[0].attrib == {"id": "1", "type": "none"}
    assert devices(made, "rng/backend")[0].text == "/dev/urandom"
    assert devices(made, "vsock/cid")[0].attrib == {"auto": "yes"}


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("<hostdev mode='subsystem' type='pci'/>", "<hostdev>: a device of the host"),
        ("<filesystem><alias name='fs0'/></filesystem>", "<filesystem> 'fs0': a folder"),
        ("<disk type='file' device='lun'><target dev='sdb'/></disk>", "disk 'sdb' is a device"),
        ("<disk type='network'><source name='x'/><target dev='vdz'/></disk>", "disk 'vdz' is"),
        ("<interface type='vhostuser'/>", "its network is of another program"),
        ("<memory><source><path>/n</path></source></memory>", "a file of the host is memory"),
        ("<shmem name='x'/>", "memory is shared"),
        ("<tpm model='tpm-crb'/>", "the TPM's state"),
        ("<novelty/>", "<novelty>: it is unknown here"),
    ],
)
def test_what_cannot_be_given_twice(device: str, words: str) -> None:
    found = copied(xml=XML.replace("<memballoon", device + "<memballoon")).findings.blockers
    assert len(found) == 1 and words in found[0], found


def test_what_else_stands_in_the_way() -> None:
    assert copied(variables="").findings.blockers == [
        "the variables of its firmware are not in the snapshot"
    ]
    missing = copied(overlays={"virtio-disk0": "/c/a", "virtio-disk9": "/c/b"})
    assert missing.findings.blockers == [
        "disk 'virtio-disk9' of the snapshot is not in the domain's XML"
    ]
    taken = XML.replace("'-global'", "'-qmp'").replace("ICH9-LPC.disable_s3=1", "unix:/q")
    assert "-qmp unix:/q" in copied(xml=taken).findings.blockers[0]
    sealed = XML.replace("<devices>", "<launchSecurity type='sev'/><devices>")
    assert "is encrypted" in copied(xml=sealed).findings.blockers[0]


def test_what_a_running_domain_tells() -> None:
    assert domain_copy.variables_of(XML) == "/var/lib/libvirt/qemu/nvram/db1.fd"
    there = XML.replace(
        ">/var/lib/libvirt/qemu/nvram/db1.fd<", " type='file'><source file='/n/v.fd'/><"
    )
    assert domain_copy.variables_of(there) == "/n/v.fd"
    assert domain_copy.variables_of("<domain/>") == ""
    assert domain_copy.agent_path(XML) == ("/var/lib/libvirt/qemu/channel/target/domain-7-db1/org")
    assert domain_copy.agent_path("<domain><devices/></domain>") is None
    pty = XML.replace("mode='bind' host='0.0.0.0' service='4555' tls='no'", "path='/dev/pts/3'")
    assert domain_copy.terminals(pty) == ["/dev/pts/3"]
    assert [ET.fromstring(card).get("type") for card in domain_copy.cards(XML)] == [
        "bridge",
        "user",
    ]
