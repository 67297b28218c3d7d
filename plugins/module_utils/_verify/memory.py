# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Level memory: RAM is looked into without a guest. Its processors find the kernel in it, and what
a user knows of it is there."""

from __future__ import annotations

import time
from typing import Any

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import HelperError
from ansible_collections.livesnap.qemu.plugins.module_utils._image.binding import ImageError
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files
from ansible_collections.livesnap.qemu.plugins.module_utils._verify import kernel
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.guest_memory import GuestMemory
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.paging import Cpu, cpu_of
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.probes import Judge
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.request import (
    BadSnapshot,
    Check,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.sections import parse_sections


def check(about: Check) -> dict[str, Any]:
    """Evidence; BadSnapshot says what does not fit together."""
    begun = time.monotonic()
    memory = about.fields["memory"]
    cpus = _cpus(about)
    image = about.folder / memory["file"]
    disks = {
        disk["match"]: (about.folder / disk["file"], disk["format"])
        for disk in about.fields["disks"]
        if disk["file"] is not None
    }
    try:
        with GuestMemory(image, memory["gpa"], about.request.helper) as guest:
            found = _kernel(about, guest, cpus)
            about.tell("memory", 50.0)
            judge = Judge(guest, cpus[0] if cpus else None, disks)
            probes = judge.judge(about.request.probes)
            read_by = guest.read_by
    except (ImageError, HelperError) as err:
        if err.word in ("torn", "storage"):
            raise BadSnapshot(err.msg) from None
        raise
    return {
        "read_by": read_by,
        "kernel": found,
        "probes": probes,
        "seconds": round(time.monotonic() - begun, 3),
    }


def _cpus(about: Check) -> list[Cpu]:
    """The processors that translate addresses; level structure has counted all of them."""
    path = about.folder / about.fields["devices"]["file"]
    sections = parse_sections(files.read_regular(path, 1 << 30))
    found = [cpu_of(section) for section in sections if section.name == "cpu"]
    return [cpu for cpu in found if cpu is not None]


def _kernel(about: Check, guest: GuestMemory, cpus: list[Cpu]) -> dict[str, Any]:
    """{banner, virtual, physical, processors} of the Linux in it; {} where there is none."""
    if about.fields["guest_facts"]["arch"] != "x86_64" or not cpus:
        about.not_done.append("the kernel in RAM: no processor of the guest is in 64-bit mode")
        return {}
    found = kernel.find(guest, cpus)
    if found is None:
        about.not_done.append("the kernel in RAM: the processors run no Linux that is known here")
        return {}
    elsewhere, nowhere = kernel.strays(guest, cpus, found)
    if elsewhere:
        raise BadSnapshot(
            f"processors {', '.join(map(str, elsewhere))} find something else at virtual address"
            f" {found.virtual:#x} than the others, which find '{found.banner}': RAM and device"
            " state do not fit together"
        )
    if nowhere:
        numbers = ", ".join(map(str, nowhere))
        about.not_done.append(f"the kernel in RAM: processors {numbers} do not run it")
    return {
        "banner": found.banner,
        "virtual": hex(found.virtual),
        "physical": hex(found.physical),
        "processors": len(cpus) - len(nowhere),
    }
