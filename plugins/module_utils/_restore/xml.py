# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain's XML, for a restore of it in place. Pure."""

from __future__ import annotations

import xml.etree.ElementTree as ET


def disk_files(xml: str) -> dict[str, str]:
    """Target in the guest ('vda') -> file, of the disks that are files."""
    found = {}
    for disk in ET.fromstring(xml).iterfind("./devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        if target is not None and source is not None and source.get("file"):
            found[target.get("dev", "")] = source.get("file", "")
    return found


def without_chains(xml: str) -> str:
    """The same less what it says of backing files: images that were put back have none."""
    root = ET.fromstring(xml)
    for disk in root.iterfind("./devices/disk"):
        for chain in disk.findall("backingStore"):
            disk.remove(chain)
    return ET.tostring(root, encoding="unicode")


def chained(xml: str) -> list[str]:
    """Targets of the disks whose backing file is named there, and not left to the image."""
    return [
        target.get("dev", "")
        for disk in ET.fromstring(xml).iterfind("./devices/disk")
        for target in disk.findall("target")
        if disk.find("./backingStore/source") is not None
    ]
