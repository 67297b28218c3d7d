# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rewrites a domain's XML into that of a second domain beside the first. Pure.

The XML is of the instant; the machine that the guest sees stays the same. The input was written by
the machine's own libvirt, and is libvirt's to judge again when the clone is made.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._clone.argv import (
    parse_options,
    words,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.domain_devices import (
    Devices,
    drop,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.domain_plan import (
    DomainFindings,
    DomainPlan,
)

_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_AGENT = "org.qemu.guest_agent.0"
#: Options of QEMU's that name nothing of the host, unless there is a path in them.
_HARMLESS = words("cpu global set machine rtc smbios fw_cfg boot")


@dataclass(frozen=True)
class Rewritten:
    """The XML of the new domain, and what came up while it was made."""

    xml: str
    findings: DomainFindings


def rewrite(xml: str, plan: DomainPlan) -> Rewritten:
    """The XML of a second domain as the plan says."""
    root = ET.fromstring(xml)
    findings = DomainFindings()
    root.attrib.pop("id", None)
    _name(root, plan)
    _variables(root, plan, findings)
    _options(root, findings)
    if root.find("launchSecurity") is not None:
        findings.blockers.append("the guest's memory is encrypted (<launchSecurity>)")
    devices = root.find("devices")
    if devices is not None:
        Devices(plan, findings).rewrite(devices)
    for alias in plan.overlays:
        if alias not in findings.matched:
            findings.blockers.append(f"disk '{alias}' of the snapshot is not in the domain's XML")
    return Rewritten(ET.tostring(root, encoding="unicode"), findings)


def _set(root: ET.Element, tag: str, text: str) -> None:
    element = root.find(tag)
    if element is None:
        element = ET.Element(tag)
        root.insert(0, element)
    element.text = text


def _name(root: ET.Element, plan: DomainPlan) -> None:
    """What tells it from all others. Notes of other programs are about the original."""
    drop(root, "metadata", "title", "description")
    _set(root, "description", plan.about)
    _set(root, "uuid", plan.uuid)
    _set(root, "name", plan.name)
    for entry in root.iterfind("./sysinfo/system/entry"):
        if entry.get("name") == "uuid":
            # libvirt refuses another one than the domain's.
            entry.text = plan.uuid
    generation = root.find("genid")
    if generation is not None:
        # libvirt makes one up, and QEMU tells the guest.
        generation.text = None


def _variables(root: ET.Element, plan: DomainPlan, findings: DomainFindings) -> None:
    nvram = root.find("./os/nvram")
    if nvram is None:
        return
    if not plan.variables:
        findings.blockers.append("the variables of its firmware are not in the snapshot")
        return
    findings.variables_format = nvram.get("format", "raw")
    nvram.attrib.pop("type", None)
    drop(nvram, "source")
    nvram.text = plan.variables


def _options(root: ET.Element, findings: DomainFindings) -> None:
    """Options that libvirt hands to QEMU as they are: it knows nothing of what they mean."""
    given = [each.get("value", "") for each in root.iterfind(f"./{_QEMU}commandline/{_QEMU}arg")]
    for option in parse_options(["", *given]):
        if option.name not in _HARMLESS or "/" in (option.value or ""):
            findings.blockers.append(
                f"<qemu:commandline> has '-{option.name} {option.value or ''}', of which a second"
                " QEMU might take what is the first one's"
            )


def variables_of(xml: str) -> str:
    """The file with the variables of a domain's firmware, '' where it has none."""
    nvram = ET.fromstring(xml).find("./os/nvram")
    if nvram is None:
        return ""
    source = nvram.find("source")
    return (nvram.text or "").strip() if source is None else source.get("file", "")


def agent_path(xml: str) -> Optional[str]:
    """The socket of the agent's channel of a domain that runs."""
    for channel in ET.fromstring(xml).iterfind("./devices/channel"):
        target, source = channel.find("target"), channel.find("source")
        if target is not None and target.get("name") == _AGENT and source is not None:
            return source.get("path")
    return None


def terminals(xml: str) -> list[str]:
    """The pseudo terminals of the serial ports of a domain that runs."""
    found = [
        each.get("path", "") for each in ET.fromstring(xml).iterfind("./devices/serial/source")
    ]
    return [path for path in found if path]


def cards(xml: str) -> list[str]:
    """Its network cards, each as XML of its own."""
    every = ET.fromstring(xml).iterfind("./devices/interface")
    return [ET.tostring(card, encoding="unicode") for card in every]


def unplugged(card: str) -> str:
    """That card with its cable out."""
    element = ET.fromstring(card)
    drop(element, "link")
    ET.SubElement(element, "link", state="down")
    return ET.tostring(element, encoding="unicode")
