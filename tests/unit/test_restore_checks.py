# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this machine can bring a snapshot back: what is missing is refused by its name."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import RefusedError
from ansible_collections.livesnap.qemu.plugins.module_utils._restore import checks

QEMU = shutil.which("qemu-system-x86_64")
if QEMU is None:
    pytest.skip("qemu-system-x86_64 is not installed", allow_module_level=True)

NEEDS = checks.Needs(
    subject="snapshot 'web1/one'",
    exe=QEMU,
    qemu_version="7.2.0",
    qemu_package="",
    machine="pc",
    cpu="qemu64",
    accel="tcg",
    firmware=(),
    blockers=(),
)


def refused(**changes: Any) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        checks.check_machine(dataclasses.replace(NEEDS, **changes))
    assert caught.value.msg.startswith("snapshot 'web1/one' ")
    return caught.value


def test_what_is_here_is_enough() -> None:
    checks.check_machine(NEEDS)
    checks.check_machine(dataclasses.replace(NEEDS, cpu="", machine="q35"))


@pytest.mark.parametrize(
    ("reason", "words", "changes"),
    [
        ("restore_blockers", "the domain has a TPM", {"blockers": ("the domain has a TPM",)}),
        ("qemu", "'/nowhere/qemu'", {"exe": "/nowhere/qemu"}),
        ("qemu_version", "of QEMU 99.1.0; .* is older: QEMU emulator", {"qemu_version": "99.1.0"}),
        ("machine", "machine type 'pc-i440fx-99.1'", {"machine": "pc-i440fx-99.1"}),
        ("cpu", "CPU model 'Nonesuch-v2'", {"cpu": "Nonesuch-v2"}),
        ("firmware", "'/nowhere/bios', which is gone", {"firmware": (("/nowhere/bios", "0"),)}),
    ],
)
def test_what_is_missing_is_named(reason: str, words: str, changes: dict[str, Any]) -> None:
    error = refused(**changes)
    assert error.reason == reason
    assert re.search(words, error.msg), error.msg


def test_firmware_that_was_replaced(tmp_path: Path) -> None:
    bios = tmp_path / "bios"
    bios.write_bytes(b"old")
    needs = dataclasses.replace(
        NEEDS, firmware=((str(bios), hashlib.sha256(b"old").hexdigest()),)
    )
    checks.check_machine(needs)
    bios.write_bytes(b"new")
    assert "is another than then" in refused(firmware=needs.firmware).msg


def test_variables_that_are_a_disk_are_no_firmware() -> None:
    fields = {
        "guest": "web1",
        "name": "one",
        "disks": [{"source": {"file": "/vm/vars.fd", "format": "raw"}}],
        "restore_blockers": [],
        "guest_facts": {
            "exe": "/usr/bin/qemu-system-x86_64 (deleted)",
            "qemu_version": "7.2.22",
            "qemu_package": "Debian",
            "machine": "pc-q35-7.2",
            "accelerator": "kvm",
            "argv": ["qemu", "-cpu", "EPYC,x2apic=on", "-smp", "2"],
            "firmware": [
                {"path": "/vm/code.fd", "sha256": "1"},
                {"path": "/vm/vars.fd", "sha256": "2"},
            ],
        },
    }
    needs = checks.needs_of(fields)
    assert needs.firmware == (("/vm/code.fd", "1"),)
    assert (needs.cpu, needs.exe) == ("EPYC", "/usr/bin/qemu-system-x86_64")


@pytest.mark.parametrize(
    ("argv", "model"),
    [
        (["qemu"], ""),
        (["qemu", "-cpu", "host"], "host"),
        (["qemu", "-cpu", "qemu64", "-cpu", "max,-vmx"], "max"),
    ],
)
def test_cpu_model(argv: list[str], model: str) -> None:
    assert checks.cpu_model(argv) == model
