# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why the uffd engine must stand aside for a guest, as far as QEMU itself tells.

Write protection sees what goes through QEMU's page tables. What writes past them, takes memory away
or cannot be protected makes a capture impossible; what does not migrate cannot be restored from the
device state. The helper adds what only the kernel knows (KSM, seccomp, mappings). Pure but for
`read_mounts`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ansible_collections.livesnap.qemu.plugins.module_utils._guest.facts import GuestFacts

#: Anonymous memory behind them: can be write-protected.
PROTECTABLE = ("tmpfs", "hugetlbfs", "devtmpfs")
#: xen-save-devices-state skips iterable sections, which other architectures have.
ARCHES = ("x86_64", "aarch64")
_MIGRATING = ("none", "completed", "cancelled", "failed")
_NO_MIGRATION = ("nvme", "ufs", "usb-uas")
_PINNED_DRIVERS = ("nvme", "nvme-io_uring", "virtio-blk-vhost-vdpa", "virtio-blk-vfio-pci")


@dataclass(frozen=True)
class Reason:
    """A reason for programs, and for people."""

    reason: str
    message: str


@dataclass(frozen=True)
class Mount:
    """A mount point as the QEMU process sees it, and its file system's type."""

    point: str
    type: str


def uffd_reasons(facts: GuestFacts, mounts: list[Mount]) -> list[Reason]:
    """Every reason; an empty list means that QEMU has nothing against it."""
    return [
        *_state(facts),
        *_devices(facts),
        *_writers(facts),
        *_memory(facts, mounts),
    ]


def _state(facts: GuestFacts) -> list[Reason]:
    found = []
    if facts.status not in ("running", "paused"):
        found.append(Reason("state", f"the guest is '{facts.status}', neither running nor paused"))
    if facts.migration_status not in _MIGRATING:
        found.append(Reason("migration", f"a migration of the guest is '{facts.migration_status}'"))
    if facts.arch not in ARCHES:
        found.append(Reason("arch", f"device state of '{facts.arch}' cannot be saved on its own"))
    found += [
        Reason("migration_blocked", f"QEMU cannot migrate it: {why}") for why in facts.blockers
    ]
    return found


def _devices(facts: GuestFacts) -> list[Reason]:
    found = []
    for device in facts.devices:
        name = f"device '{device.id or device.path}' ({device.type})"
        if device.type in _NO_MIGRATION or device.type.startswith("ufs-"):
            found.append(Reason("unmigratable", f"{name} has no device state that can be saved"))
        elif device.type.startswith("vfio-"):
            found.append(Reason("vfio", f"{name} writes to guest memory past its protection"))
        elif device.type.startswith("vhost-user-"):
            found.append(Reason("vhost_user", f"{name} lets another process write guest memory"))
        elif device.type.startswith("vhost-vdpa-"):
            found.append(Reason("vhost_vdpa", f"{name} writes to guest memory past its protection"))
        elif device.type.startswith("ivshmem"):
            found.append(Reason("ivshmem", f"{name} shares memory with other processes"))
        elif device.type.startswith("virtio-mem"):
            found.append(Reason("virtio_mem", f"{name} takes memory away while it is captured"))
    if facts.free_page_reporting:
        found.append(
            Reason("free_page_reporting", "the balloon's free-page-reporting gives memory back")
        )
    return found


def _writers(facts: GuestFacts) -> list[Reason]:
    found = []
    for kind in ("vhost-user", "vhost-vdpa"):
        if kind in facts.netdev_types:
            found.append(
                Reason(
                    kind.replace("-", "_"),
                    f"a network backend of type '{kind}' writes guest memory past its protection",
                )
            )
    found += [
        Reason("pinned_blockdev", f"disk '{node.node}' ({node.driver}) writes to pinned memory")
        for node in facts.block_nodes
        if node.driver in _PINNED_DRIVERS
    ]
    return found


def _memory(facts: GuestFacts, mounts: list[Mount]) -> list[Reason]:
    found = []
    for backend in facts.backends:
        if backend.type == "memory-backend-file":
            kind = file_system(backend.mem_path, mounts)
            if kind not in PROTECTABLE:
                found.append(
                    Reason(
                        "file_backed",
                        f"memory '{backend.id}' is a file on {kind or 'an unknown file system'}"
                        f" ('{backend.mem_path}'), which cannot be write-protected",
                    )
                )
            elif kind != "hugetlbfs" and not backend.share:
                found.append(
                    Reason(
                        "file_backed",
                        f"memory '{backend.id}' is a private mapping of a file on {kind}"
                        f" ('{backend.mem_path}'), which cannot be write-protected; share=on can",
                    )
                )
        elif backend.type == "memory-backend-epc" or backend.type.startswith(("sev-", "tdx-")):
            found.append(
                Reason("confidential", f"object '{backend.id}' ({backend.type}) hides memory")
            )
    return found


def file_system(path: str, mounts: list[Mount]) -> str:
    """The type of the file system that a path lies on, '' if none fits. The last mount wins."""
    best = Mount("", "")
    for mount in mounts:
        inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if inside and len(mount.point) >= len(best.point):
            best = mount
    return best.type


def parse_mounts(text: str) -> list[Mount]:
    """The lines of /proc/PID/mounts, in order; blanks are '\\040' there."""
    found = []
    for line in text.splitlines():
        field = line.split(" ")
        if len(field) >= 3:
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), field[1])
            found.append(Mount(point, field[2]))
    return found


def read_mounts(pid: int) -> list[Mount]:
    """The mounts of a process's own namespace; none if it is gone."""
    try:
        with open(f"/proc/{pid}/mounts", encoding="utf-8", errors="surrogateescape") as file:
            return parse_mounts(file.read())
    except OSError:
        return []
