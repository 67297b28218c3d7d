# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the inventory says of a test guest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab import Guest

# Options of a guest that does nearly nothing.
SMALL: dict[str, Any] = {"memory": 128}
MODULE = "livesnap.qemu.livesnap"
INFO = "livesnap.qemu.livesnap_info"
HOST_INFO = "livesnap.qemu.livesnap_host_info"
CLONE = "livesnap.qemu.livesnap_clone"
PRUNE = "livesnap.qemu.livesnap_prune"
RECOVER = "livesnap.qemu.livesnap_recover"
VERIFY = "livesnap.qemu.livesnap_verify"


def entry(guest: Guest, name: str, **options: Any) -> dict[str, Any]:
    """Its entry in livesnap_guests."""
    return {
        "name": name,
        "qmp_socket": str(guest.qmp_path),
        "agent_socket": str(guest.agent_path),
        **options,
    }


def snapshot(
    guest: Guest, guest_name: str, name: str, store: Path, **options: Any
) -> dict[str, Any]:
    """A task that takes a snapshot of it."""
    given = entry(guest, guest_name, **options)
    del given["name"]
    return {
        "name": "Snapshot",
        MODULE: {"guest": guest_name, "name": name, "store": str(store), **given},
    }


def info(store: Path, **options: Any) -> dict[str, Any]:
    """A task that lists a store."""
    return {"name": "List", INFO: {"store": str(store), **options}}


def files(root: Path) -> dict[str, float]:
    """Everything below a folder and when it changed last."""
    return {str(path): path.lstat().st_mtime for path in root.rglob("*")} if root.exists() else {}
