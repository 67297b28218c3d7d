# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt's XML of a domain tells that QEMU does not. Pure.

The XML is of the machine's own libvirtd, which root trusts with more than this.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

_AGENT = "org.qemu.guest_agent.0"


def disk_targets(xml: str) -> dict[str, str]:
    """Alias of a disk's device, which is its id in QEMU -> its target in the guest ('vda')."""
    found = {}
    for disk in ET.fromstring(xml).iterfind("./devices/disk"):
        alias, target = disk.find("alias"), disk.find("target")
        if alias is not None and target is not None:
            found[alias.get("name", "")] = target.get("dev", "")
    return found


def xml_blockers(xml: str) -> list[str]:
    """What a restore would lack, as far as the XML tells."""
    return [
        "the domain has a TPM that is not libvirt's own, and whose state is not in the snapshot"
        for tpm in ET.fromstring(xml).iterfind("./devices/tpm")
        if not is_own_tpm(tpm)
    ]


def is_own_tpm(tpm: ET.Element) -> bool:
    """Whether libvirt starts a program for this TPM, whose state QEMU saves with the devices'."""
    backend = tpm.find("backend")
    return backend is not None and backend.get("type") == "emulator"


def agent_state(xml: str) -> str:
    """'connected', 'disconnected' or 'absent': the channel of the guest's agent."""
    for target in ET.fromstring(xml).iterfind("./devices/channel/target"):
        if target.get("name") == _AGENT:
            return target.get("state", "disconnected")
    return "absent"


def memory_bytes(xml: str) -> int:
    """The most RAM that the domain can have. libvirt always writes it in KiB."""
    return int(ET.fromstring(xml).findtext("./memory", "0")) << 10


def words(xml: str) -> dict[str, Any]:
    """What people and programs have noted in it: title, description ('' without), metadata.

    metadata has {name, namespace, attributes, text} of each element that somebody put there.
    """
    root = ET.fromstring(xml)
    found = []
    for element in root.iterfind("./metadata/*"):
        space, _brace, name = element.tag.rpartition("}")
        found.append(
            {
                "name": name,
                "namespace": space.lstrip("{"),
                "attributes": dict(element.attrib),
                "text": "".join(element.itertext()).strip(),
            }
        )
    return {
        "title": root.findtext("./title", ""),
        "description": root.findtext("./description", ""),
        "metadata": found,
    }
