# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a clone needs of a snapshot."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._clone import cmdline
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.argv import Props
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import outside
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.scheme import Image
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.table import SCHEMES
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import RefusedError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.mtree import parse_ramblocks
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.checks import (
    Needs,
    needs_of,
    program_of,
)


@dataclass(frozen=True)
class SourceDisk:
    """A disk of a snapshot, and what the guest's QEMU called it.

    image: None where it is outside of the store; fetch() then copies it into an empty file, in
    `format`, within so many seconds.
    """

    device: str
    node: str
    qdev: str
    source: str
    below: tuple[str, ...]
    image: Optional[Image]
    format: str
    fetch: Callable[[str, float], None]
    bytes: int


@dataclass(frozen=True)
class SourceDomain:
    """The libvirt that a guest is of, and the file with its XML of the instant."""

    uri: str
    xml: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """The parts of a manifest that matter here, paths made absolute. Sizes in bytes."""

    guest: str
    snapshot: str
    id: str
    folder: str
    was_running: bool
    frozen: bool
    disks: tuple[SourceDisk, ...]
    image: str
    image_bytes: int
    zero_bytes: int
    compression: str
    main_block: str
    main_bytes: int
    devices: str
    argv: tuple[str, ...]
    cwd: str
    exe: str
    uid: int
    gid: int
    user: str
    machine: str
    needs: Needs
    domain: Optional[SourceDomain] = None

    @property
    def command(self) -> cmdline.CommandLine:
        """The original's command line."""
        return cmdline.parse(self.argv, self.cwd)


def from_manifest(folder: Path, fields: dict[str, Any]) -> Source:
    """Of a manifest that was read and checked. RefusedError when it has no RAM."""
    facts, memory, devices = fields["guest_facts"], fields["memory"], fields["devices"]
    if memory is None or devices is None:
        raise RefusedError(
            f"'{fields['guest']}/{fields['name']}' has no RAM: no clone can be made of it",
            "take one with 'memory: true'",
            "no_memory",
        )
    main = next((each for each in memory["gpa"] if each["gpa"] == 0), {"block": ""})
    lengths = [each["length"] for each in memory["gpa"] if each["block"] == main["block"]]
    disks = tuple(
        SourceDisk(
            device=disk["device"] or "",
            node=disk["node"],
            qdev=disk["qdev"] or "",
            source=disk["source"]["file"],
            below=tuple(disk["source"].get("below", ())),
            image=SCHEMES[disk["scheme"]].image(folder, disk),
            format=disk["format"],
            fetch=functools.partial(outside.fetch, fields, disk),
            bytes=disk["bytes"],
        )
        for disk in fields["disks"]
    )
    return Source(
        guest=fields["guest"],
        snapshot=fields["name"],
        id=fields["id"],
        folder=str(folder),
        was_running=fields["was_running"],
        frozen=fields["consistency"]["freeze"]["achieved"],
        disks=disks,
        image=str(folder / memory["file"]),
        image_bytes=memory["bytes"],
        zero_bytes=memory["zero_bytes"],
        compression=memory["compression"],
        main_block=main["block"],
        main_bytes=used_length(memory["ramblock"], main["block"]) or sum(lengths),
        devices=str(folder / devices["file"]),
        argv=tuple(facts["argv"]),
        cwd=facts["cwd"],
        exe=program_of(facts["exe"]),
        uid=facts["uid"],
        gid=facts["gid"],
        user=facts["user"],
        machine=facts["machine"],
        needs=needs_of(fields),
        domain=_domain(folder, fields.get("domain")),
    )


def _domain(folder: Path, entry: Optional[dict[str, Any]]) -> Optional[SourceDomain]:
    if entry is None:
        return None
    return SourceDomain(entry["uri"], str(folder / entry["file"]), entry["sha256"])


def used_length(ramblock: str, block: str) -> int:
    """Used length of a block in the text of 'info ramblock', 0 if it is not there. Pure."""
    return parse_ramblocks(ramblock).get(block, 0)


def guest_name(source: Source) -> str:
    """The original's -name, or its folder's."""
    for option in source.command.options():
        if option.name == "name":
            return Props("name", option.value).get("guest") or source.guest
    return source.guest
