# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a hypervisor has: versions, what its kernel can do, memory. Reads only."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
from typing import Any, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils import _deps
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.publish import LIVESNAP
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._helper import run_once
from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded
from ansible_collections.livesnap.qemu.plugins.module_utils._store import space
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store

_PROGRAM_LIMIT = 10.0
#: Where distributions put the emulator, %s being the machine's architecture.
_EMULATORS = ("qemu-system-%s", "/usr/libexec/qemu-kvm", "qemu-kvm", "kvm")
_VERSION = re.compile(r"version (\d+(?:\.\d+)+)")
_MEMORY = re.compile(r"^(\w+):\s+(\d+) kB$", re.MULTILINE)


def kernel(helper: str) -> dict[str, Any]:
    """What `livesnap-helper features` says, and what of it an unprivileged QEMU may use itself."""
    found = run_once(helper, ["features"])
    return {
        "release": found.pop("kernel"),
        **found,
        "unprivileged_userfaultfd": number("/proc/sys/vm/unprivileged_userfaultfd"),
    }


def versions(helper: str, release: str, libvirt: Optional[str]) -> dict[str, Any]:
    """Of all that has a part in a snapshot; None for what is not there."""
    return {
        "livesnap": LIVESNAP,
        "helper": said([helper, "--version"]) or None,
        "kernel": release,
        "qemu": _emulator(),
        "qemu_img": version_in(said(["qemu-img", "--version"])),
        "libvirt": libvirt,
        "python": platform.python_version(),
        "packages": {
            **{name: package(pip) for name, pip in _deps.PACKAGES.items()},
            "libvirt": package("libvirt-python"),
        },
    }


def _emulator() -> Optional[str]:
    arch = platform.machine()
    for name in _EMULATORS:
        path = shutil.which(name % arch if "%s" in name else name)
        if path is not None:
            return version_in(said([path, "--version"]))
    return None


def said(argv: list[str]) -> str:
    """The first line that a program prints, '' where it fails or is not there."""
    done = run_bounded(argv, _PROGRAM_LIMIT)
    return done.text.partition("\n")[0].strip() if done.code == 0 else ""


def version_in(text: str) -> Optional[str]:
    """'7.2.22' of 'QEMU emulator version 7.2.22 (Debian ...)'. Pure."""
    match = _VERSION.search(text)
    return match.group(1) if match else None


def package(name: str) -> Optional[str]:
    """The version of a Python package that this interpreter has."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def number(path: str) -> Optional[int]:
    """The number in a file of one, None where it is not there."""
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def memory() -> dict[str, int]:
    """Of the host, bytes: all of it, and what can be had without swapping."""
    with open("/proc/meminfo", encoding="ascii") as file:
        found = parse_meminfo(file.read())
    return {
        "total_bytes": found.get("MemTotal", 0),
        "available_bytes": found.get("MemAvailable", 0),
    }


def parse_meminfo(text: str) -> dict[str, int]:
    """Name -> bytes. Pure."""
    return {name: int(kib) << 10 for name, kib in _MEMORY.findall(text)}


def store(path: str) -> dict[str, Any]:
    """Whether snapshots can be put there, and how much room there is, bytes."""
    place = Store(path)
    try:
        place.check()
    except LivesnapError as err:
        return {"path": path, "problem": str(err), "free_bytes": None}
    return {"path": path, "problem": None, "free_bytes": space.free_bytes(place.root)}
