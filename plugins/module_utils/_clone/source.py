# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a clone needs of a snapshot, and whether this machine can run it."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.livesnap.qemu.plugins.module_utils._clone import cmdline
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.argv import Props
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import CloneError, RefusedError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.firmware import firmware_of
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.mtree import parse_ramblocks
from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded

_PROGRAM_LIMIT = 20.0


@dataclass(frozen=True)
class SourceDisk:
    """A disk image of a snapshot, and what the guest's QEMU called the disk."""

    device: str
    node: str
    qdev: str
    source: str
    image: str
    bytes: int


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
    accel: str
    qemu_version: str
    qemu_package: str
    firmware: tuple[tuple[str, str], ...]
    blockers: tuple[str, ...]

    @property
    def command(self) -> cmdline.CommandLine:
        """The original's command line."""
        return cmdline.parse(self.argv, self.cwd)


def from_manifest(folder: Path, fields: dict[str, Any]) -> Source:
    """Of a manifest that was read and checked. RefusedError when it has no RAM."""
    if fields.get("domain") is not None:
        raise RefusedError(
            f"'{fields['guest']}/{fields['name']}' is of a libvirt domain, which cannot be cloned"
            " by livesnap_clone yet",
            "'livesnap-helper export --format libvirt' writes what 'virsh restore' takes",
            "domain",
        )
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
            image=str(folder / disk["file"]),
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
        compression=memory["compression"],
        main_block=main["block"],
        main_bytes=used_length(memory["ramblock"], main["block"]) or sum(lengths),
        devices=str(folder / devices["file"]),
        argv=tuple(facts["argv"]),
        cwd=facts["cwd"],
        exe=re.sub(r" \(deleted\)$", "", facts["exe"]),
        uid=facts["uid"],
        gid=facts["gid"],
        user=facts["user"],
        machine=facts["machine"],
        accel=facts["accelerator"],
        qemu_version=facts["qemu_version"],
        qemu_package=facts["qemu_package"],
        firmware=tuple((each["path"], each["sha256"]) for each in facts["firmware"]),
        blockers=tuple(fields["restore_blockers"]),
    )


def used_length(ramblock: str, block: str) -> int:
    """Used length of a block in the text of 'info ramblock', 0 if it is not there. Pure."""
    return parse_ramblocks(ramblock).get(block, 0)


def ask(program: str, *arguments: str) -> str:
    """What a program prints; CloneError when it cannot be run, fails or does not end."""
    done = run_bounded([program, *arguments], _PROGRAM_LIMIT)
    if done.problem:
        name = f"{program} {arguments[0]}" if done.timed_out else program
        raise CloneError(f"'{name}' {done.problem}")
    if done.code != 0:
        raise CloneError(f"'{program} {' '.join(arguments)}' failed: {done.words}")
    return done.text


def parse_version(text: str) -> tuple[int, ...]:
    """(7, 2, 22) of 'QEMU emulator version 7.2.22 (Debian ...)' or of '7.2.22'. Pure."""
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in match.groups()) if match else ()


def check(source: Source) -> None:
    """Whether this machine can run it: RefusedError that names what is missing."""
    subject = f"snapshot '{source.guest}/{source.snapshot}'"
    if source.blockers:
        raise RefusedError(
            f"{subject} cannot be brought back: {'; '.join(source.blockers)}",
            reason="restore_blockers",
        )
    if not os.access(source.exe, os.X_OK):
        raise RefusedError(
            f"{subject} was taken of '{source.exe}', which is not here", "install it", "qemu"
        )
    _check_kvm(source, subject)
    version = ask(source.exe, "--version").splitlines()[0]
    if parse_version(version)[:2] < parse_version(source.qemu_version)[:2]:
        raise RefusedError(
            f"{subject} is of QEMU {source.qemu_version}; '{source.exe}' is older: {version}",
            "install that version or a newer one",
            "qemu_version",
        )
    if source.qemu_package and f"{source.qemu_version} ({source.qemu_package})" in version:
        # The same build has what it had.
        _check_firmware(source, subject)
        return
    names = {line.split()[0] for line in ask(source.exe, "-machine", "help").splitlines() if line}
    if source.machine not in names:
        raise RefusedError(
            f"{subject} needs machine type '{source.machine}', which {version} does not have",
            "use a QEMU that still has it",
            "machine",
        )
    _check_cpu(source, subject)
    _check_firmware(source, subject)


def _check_firmware(source: Source, subject: str) -> None:
    paths = [path for path, _digest in source.firmware]
    now = {each.path: each.sha256 for each in firmware_of(paths)}
    for path, digest in source.firmware:
        if now.get(path) != digest:
            state = "is gone" if path not in now else "is another than then"
            raise RefusedError(
                f"{subject} needs firmware file '{path}', which {state}", reason="firmware"
            )


def _check_kvm(source: Source, subject: str) -> None:
    if source.accel == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise RefusedError(
            f"{subject} was taken of a guest under KVM, and /dev/kvm cannot be used here",
            "load the kernel's kvm module",
            "kvm",
        )


def _check_cpu(source: Source, subject: str) -> None:
    for option in source.command.options():
        if option.name == "cpu" and option.value:
            model = option.value.split(",")[0]
            known = set(re.findall(r"[\w.+-]+", ask(source.exe, "-cpu", "help")))
            if model not in known:
                raise RefusedError(
                    f"{subject} needs CPU model '{model}', which '{source.exe}' does not have",
                    reason="cpu",
                )


def qemu_img(exe: str) -> str:
    """The qemu-img of this QEMU, or the one in PATH."""
    beside = os.path.join(os.path.dirname(exe), "qemu-img")
    found = beside if os.access(beside, os.X_OK) else shutil.which("qemu-img")
    if not found:
        raise RefusedError("'qemu-img' is not installed", "install package qemu-utils", "qemu_img")
    return found


def guest_name(source: Source) -> str:
    """The original's -name, or its folder's."""
    for option in source.command.options():
        if option.name == "name":
            return Props("name", option.value).get("guest") or source.guest
    return source.guest
