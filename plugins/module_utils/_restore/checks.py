# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this machine can bring a snapshot back: asked of its QEMU, before anything is touched."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from typing import Any, Mapping

from ansible_collections.livesnap.qemu.plugins.module_utils._clone.argv import parse_options
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import CloneError, RefusedError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.firmware import firmware_of
from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded

_PROGRAM_LIMIT = 20.0


@dataclass(frozen=True)
class Needs:
    """What a snapshot needs of the machine that it comes back on.

    `subject` is how messages call it. cpu: as -cpu takes it, without flags; '' is QEMU's default.
    firmware: (path, SHA-256) of the files that the machine is made from, and that no disk of the
    snapshot brings back.
    """

    subject: str
    exe: str
    qemu_version: str
    qemu_package: str
    machine: str
    cpu: str
    accel: str
    firmware: tuple[tuple[str, str], ...]
    blockers: tuple[str, ...]


def needs_of(fields: Mapping[str, Any]) -> Needs:
    """Of a manifest that was read and checked; of a libvirt domain's as well. Pure."""
    facts = fields["guest_facts"]
    restored = {disk["source"]["file"] for disk in fields["disks"]}
    return Needs(
        subject=f"snapshot '{fields['guest']}/{fields['name']}'",
        exe=program_of(facts["exe"]),
        qemu_version=facts["qemu_version"],
        qemu_package=facts["qemu_package"],
        machine=facts["machine"],
        cpu=cpu_model(facts["argv"]),
        accel=facts["accelerator"],
        # A flash chip with variables is both: what it held at the instant is in its disk image.
        firmware=tuple(
            (each["path"], each["sha256"])
            for each in facts["firmware"]
            if each["path"] not in restored
        ),
        blockers=tuple(fields["restore_blockers"]),
    )


def program_of(exe: str) -> str:
    """The path of /proc/PID/exe; one that was replaced by a newer file has a note behind it."""
    return re.sub(r" \(deleted\)$", "", exe)


def cpu_model(argv: list[str]) -> str:
    """The model of the last -cpu, '' where there is none. Pure."""
    models = [option.value or "" for option in parse_options(argv) if option.name == "cpu"]
    return models[-1].split(",")[0] if models else ""


def check_machine(needs: Needs) -> None:
    """RefusedError that names what is missing here, or is other than it was."""
    if needs.blockers:
        raise RefusedError(
            f"{needs.subject} cannot be brought back: {'; '.join(needs.blockers)}",
            reason="restore_blockers",
        )
    if not os.access(needs.exe, os.X_OK):
        raise RefusedError(
            f"{needs.subject} was taken of '{needs.exe}', which is not here", "install it", "qemu"
        )
    _check_kvm(needs)
    _check_program(needs)
    _check_firmware(needs)


def _check_kvm(needs: Needs) -> None:
    if needs.accel == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise RefusedError(
            f"{needs.subject} was taken of a guest under KVM, and /dev/kvm cannot be used here",
            "load the kernel's kvm module",
            "kvm",
        )


def _check_program(needs: Needs) -> None:
    """Version, machine type and CPU model."""
    version = ask(needs.exe, "--version").splitlines()[0]
    if parse_version(version)[:2] < parse_version(needs.qemu_version)[:2]:
        raise RefusedError(
            f"{needs.subject} is of QEMU {needs.qemu_version}; '{needs.exe}' is older: {version}",
            "install that version or a newer one",
            "qemu_version",
        )
    if needs.qemu_package and f"{needs.qemu_version} ({needs.qemu_package})" in version:
        # The same build has what it had.
        return
    names = {line.split()[0] for line in ask(needs.exe, "-machine", "help").splitlines() if line}
    if needs.machine not in names:
        raise RefusedError(
            f"{needs.subject} needs machine type '{needs.machine}', which {version} does not have",
            "use a QEMU that still has it",
            "machine",
        )
    known = set(re.findall(r"[\w.+-]+", ask(needs.exe, "-cpu", "help"))) if needs.cpu else set()
    if needs.cpu and needs.cpu not in known:
        raise RefusedError(
            f"{needs.subject} needs CPU model '{needs.cpu}', which {version} does not have",
            "use a QEMU that has it",
            "cpu",
        )


def _check_firmware(needs: Needs) -> None:
    now = {each.path: each.sha256 for each in firmware_of(path for path, _sum in needs.firmware)}
    for path, digest in needs.firmware:
        if now.get(path) != digest:
            state = "is gone" if path not in now else "is another than then"
            raise RefusedError(
                f"{needs.subject} needs firmware file '{path}', which {state}",
                "put back the file that it was taken with",
                "firmware",
            )


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


def qemu_img(exe: str) -> str:
    """The qemu-img of this QEMU, or the one in PATH."""
    beside = os.path.join(os.path.dirname(exe), "qemu-img")
    found = beside if os.access(beside, os.X_OK) else shutil.which("qemu-img")
    if not found:
        raise RefusedError("'qemu-img' is not installed", "install package qemu-utils", "qemu_img")
    return found
