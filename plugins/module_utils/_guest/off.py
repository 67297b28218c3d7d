# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a libvirt domain is that is off: there is no QEMU to ask, so libvirt's XML has to do."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Any

from ansible_collections.livesnap.qemu.plugins.module_utils import _deps
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import (
    Domain,
    dotted,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import RefusedError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import Disk
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.domain_xml import (
    memory_bytes,
    xml_blockers,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.firmware import firmware_of
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.process import user_name

#: virDomainShutoffReason -> what it says about the disks.
_ENDED = {
    1: "it was shut down",
    2: "it was destroyed, which is a power cut to the file systems in it",
    3: "it crashed",
    5: "it was saved",
    6: "it failed to start",
    7: "it was reverted to a snapshot",
}
_MIGRATED = 4
_UNKNOWN = "libvirt does not know how it ended"
#: What a QEMU of libvirt's calls the variables of UEFI firmware, for which libvirt has no name.
_NVRAM_QDEV, _NVRAM_NODE = "/machine/system.flash1", "libvirt-pflash1-format"
_BLOCK_DEVICES = {"file": "file", "block": "dev"}


@dataclass(frozen=True)
class OffGuest:
    """A domain that is off. Sizes of disks are not known from XML: virtual_bytes is 0.

    saved: libvirt holds its RAM, and starts it from there. owner: uid and gid that libvirt's QEMU
    runs as. blockers: as GuestFacts.restore_blockers.
    """

    name: str
    uuid: str
    xml: str
    disks: list[Disk]
    encrypted: list[str]
    ended: str
    migrated: bool
    saved: bool
    owner: tuple[int, int]
    qemu_version: str
    blockers: list[str]

    def facts(self) -> dict[str, Any]:
        """guest_facts of the manifest, as far as there is anything to know."""
        root = ET.fromstring(self.xml)
        files = [root.findtext(f"./os/{tag}", "") for tag in ("loader", "kernel", "initrd")]
        uid, gid = self.owner
        return {
            "name": self.name,
            "qemu_version": self.qemu_version,
            "qemu_package": "",
            **machine(root),
            "memory_bytes": memory_bytes(self.xml),
            "argv": [],
            "cwd": "",
            "exe": root.findtext("./devices/emulator", ""),
            "user": user_name(uid),
            "uid": uid,
            "gid": gid,
            "cgroup": "",
            "firmware": [
                {"path": each.path, "sha256": each.sha256, "bytes": each.bytes}
                for each in firmware_of(path for path in files if path)
            ],
            "device_tree": {},
            "block_nodes": [],
        }


def read_off(domain: Domain) -> OffGuest:
    """Ask libvirt. RefusedError where the domain runs by now."""
    xml = domain.definition()
    state, reason = domain.call("state", lambda each: each.state())
    if state != _deps.libvirt.VIR_DOMAIN_SHUTOFF:
        raise RefusedError(
            f"domain '{domain.name}', which was off, was started meanwhile",
            "nothing was done: run again, and it is captured while it runs",
            "started",
        )
    host = domain.call("capabilities", lambda each: each.connect().getCapabilities())
    version = domain.call("version", lambda each: each.connect().getVersion())
    root = ET.fromstring(xml)
    return OffGuest(
        name=domain.name,
        uuid=domain.uuid,
        xml=xml,
        disks=parse_disks(root),
        encrypted=[
            _target(each)
            for each in root.iterfind("./devices/disk")
            if each.find(".//encryption") is not None
        ],
        ended=_ENDED.get(reason, _UNKNOWN),
        migrated=reason == _MIGRATED,
        saved=bool(domain.call("hasManagedSaveImage", lambda each: each.hasManagedSaveImage(0))),
        owner=qemu_user(host, root.get("type", "")),
        qemu_version=".".join(map(str, dotted(version))),
        blockers=xml_blockers(xml),
    )


def machine(root: ET.Element) -> dict[str, Any]:
    """What the domain's QEMU would be made to be. Pure."""
    kind = root.find("./os/type")
    cpu = root.find("./cpu")
    attributes = kind.attrib if kind is not None else {}
    return {
        "machine": attributes.get("machine", ""),
        "arch": attributes.get("arch", ""),
        "accelerator": "kvm" if root.get("type") == "kvm" else "tcg",
        "cpu": "" if cpu is None else cpu.findtext("./model") or cpu.get("mode", ""),
        "vcpus": int(root.findtext("./vcpu", "1")),
    }


def parse_disks(root: ET.Element) -> list[Disk]:
    """The firmware's variables, once there are any, then the disks in libvirt's order.

    A source that is neither file nor block device has libvirt's word for its kind as `file`.
    """
    found = _variables(root)
    for disk in root.iterfind("./devices/disk"):
        kind, source = disk.get("type", ""), disk.find("./source")
        driver = disk.find("./driver")
        device = disk.get("device", "disk")
        attributes = source.attrib if source is not None else {}
        file = attributes.get(_BLOCK_DEVICES.get(kind, ""), "" if kind in _BLOCK_DEVICES else kind)
        target = _target(disk)
        found.append(
            Disk(
                device="",
                node=target,
                qdev="",
                serial=disk.findtext("./serial", ""),
                file=file,
                format="raw" if driver is None else driver.get("type", "raw"),
                virtual_bytes=0,
                read_only=disk.find("./readonly") is not None or device == "cdrom",
                removable=device in ("cdrom", "floppy"),
                inserted=bool(attributes),
                target=target,
            )
        )
    return found


def _variables(root: ET.Element) -> list[Disk]:
    nvram = root.find("./os/nvram")
    if nvram is None or not nvram.text or not os.path.exists(nvram.text):
        return []
    return [
        Disk(
            device="",
            node=_NVRAM_NODE,
            qdev=_NVRAM_QDEV,
            serial="",
            file=nvram.text,
            format=nvram.get("format", "raw"),
            virtual_bytes=0,
            read_only=False,
            removable=False,
            inserted=True,
        )
    ]


def _target(disk: ET.Element) -> str:
    target = disk.find("./target")
    return "" if target is None else target.get("dev", "")


def qemu_user(capabilities: str, kind: str) -> tuple[int, int]:
    """uid and gid that libvirt runs the QEMUs of domains of a type as; root's where it says none.

    libvirt's capabilities have it as the base label '+UID:+GID' of the security model dac. Pure.
    """
    for model in ET.fromstring(capabilities).iterfind("./host/secmodel"):
        if model.findtext("./model") != "dac":
            continue
        for label in model.iterfind("./baselabel"):
            match = re.fullmatch(r"\+(\d+):\+(\d+)", label.text or "")
            if label.get("type") == kind and match:
                return int(match.group(1)), int(match.group(2))
    return 0, 0
