# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain's XML, for a restore of it in place. Pure."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Mapping, Sequence


def disk_formats(xml: str) -> dict[str, str]:
    """Target in the guest ('vda') -> format of its image."""
    found = {}
    for disk in ET.fromstring(xml).iterfind("./devices/disk"):
        target, driver = disk.find("target"), disk.find("driver")
        if target is not None:
            kind = "raw" if driver is None else driver.get("type", "raw")
            found[target.get("dev", "")] = kind
    return found


def with_images(xml: str, moved: Mapping[str, Sequence[str]]) -> str:
    """The same with other images of some disks: target -> (file, format)."""
    root = ET.fromstring(xml)
    for disk in root.iterfind("./devices/disk"):
        target, source, driver = (disk.find(tag) for tag in ("target", "source", "driver"))
        if target is None or source is None or target.get("dev") not in moved:
            continue
        file, kind = moved[target.get("dev", "")]
        source.set("file", file)
        if driver is not None:
            driver.set("type", kind)
    return ET.tostring(root, encoding="unicode")


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
