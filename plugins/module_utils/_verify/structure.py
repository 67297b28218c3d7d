# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Level structure: images that stand alone and are sound, a device state that parses, a machine
that is available here, file systems without errors."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Mapping

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    CloneError,
    RefusedError,
    StoreError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.mtree import parse_ramblocks
from ansible_collections.livesnap.qemu.plugins.module_utils._helper import run_once
from ansible_collections.livesnap.qemu.plugins.module_utils._restore import checks
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files
from ansible_collections.livesnap.qemu.plugins.module_utils._verify import filesystems, images
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.request import (
    BadSnapshot,
    Check,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.sections import (
    Section,
    parse_sections,
)


def check(about: Check) -> dict[str, Any]:
    """Evidence; BadSnapshot says what is wrong. RefusedError when a program is missing here."""
    begun = time.monotonic()
    tool = checks.qemu_img(checks.program_of(about.fields["guest_facts"]["exe"]))
    with_ram = about.fields["memory"] is not None
    sections = [] if not with_ram else _state(about)
    if with_ram:
        _machine(about)
    else:
        about.not_done.append("machine and device state: the snapshot has no RAM to go on from")
    found = []
    disks = about.fields["disks"]
    for number, disk in enumerate(disks):
        about.tell("structure", 100.0 * number / len(disks))
        if disk["file"] is None:
            about.not_done.append(f"image of disk '{disk['match']}': it is not in the store")
            continue
        _image(about, disk, tool)
        found += filesystems.check(about, disk, tool)
    return {
        "images": sum(disk["file"] is not None for disk in disks),
        "device_sections": len(sections),
        "file_systems": found,
        "seconds": round(time.monotonic() - begun, 3),
    }


def _image(about: Check, disk: Mapping[str, Any], tool: str) -> None:
    """Its image, and all that it stands on."""
    links = about.links(disk)
    for link, below in zip(links, [*(each.path for each in links[1:]), None]):
        images.check(link.path, link.disk, below, tool)


def _machine(about: Check) -> None:
    """Machine type, CPU, QEMU's version and firmware are available here."""
    try:
        checks.check_machine(checks.needs_of(about.fields))
    except (RefusedError, CloneError) as err:
        raise BadSnapshot(err.msg, err.hint) from None


def _state(about: Check) -> list[Section]:
    """RAM image and device state are those that the manifest speaks of."""
    memory, facts = about.fields["memory"], about.fields["guest_facts"]
    path = about.folder / memory["file"]
    _ram(path, run_once(about.request.helper, ["info", str(path)]), about.fields)
    path = about.folder / about.fields["devices"]["file"]
    try:
        sections = parse_sections(files.read_regular(path, 1 << 30))
    except StoreError as err:
        raise BadSnapshot(f"device state '{path}' does not parse: {err.msg}") from None
    cpus = sum(section.name == "cpu" for section in sections)
    if cpus != facts["vcpus"]:
        raise BadSnapshot(
            f"device state '{path}' is of {cpus} CPUs; the guest had {facts['vcpus']}"
        )
    return sections


def _ram(path: Path, info: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """The image's own tables say what the manifest says."""
    memory = fields["memory"]
    blocks = {str(each["name"]): int(each["length"]) for each in info["blocks"]}
    lengths = parse_ramblocks(memory["ramblock"])
    for what, here, there in (
        ("snapshot", info["id"], fields["id"]),
        ("machine type", info["machine"], fields["guest_facts"]["machine"]),
        ("size", info["ram_bytes"], memory["bytes"]),
        ("RAM blocks", blocks, {name: lengths.get(name) for name in blocks}),
        ("guest addresses", _places(info["gpa"]), _places(memory["gpa"])),
    ):
        if here != there:
            raise BadSnapshot(f"'{path}' and its manifest differ in {what}: {here} and {there}")


def _places(gpa: Any) -> list[tuple[int, str, int, int]]:
    return sorted((each["gpa"], each["block"], each["offset"], each["length"]) for each in gpa)
