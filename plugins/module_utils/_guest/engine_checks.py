# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why an engine must stand aside for a guest, as far as QEMU itself tells.

What has no device state of its own, or none that can be saved alone, cannot be captured by any
engine. Write protection sees what goes through QEMU's page tables: what writes past them, or takes
memory away while the guest runs, makes engine uffd impossible; a guest that stands still has none
of that. The helper adds what only the kernel knows (KSM, seccomp, mappings). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.livesnap.qemu.plugins.module_utils._guest.facts import (
    Device,
    GuestFacts,
)

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


def uffd_reasons(facts: GuestFacts) -> list[Reason]:
    """Every reason; an empty list means that QEMU has nothing against it."""
    return [*pause_reasons(facts), *_writers(facts), *_vanishing(facts)]


def pause_reasons(facts: GuestFacts) -> list[Reason]:
    """The same of an engine that reads RAM while the guest stands still."""
    return [*_state(facts), *_devices(facts), *_hidden(facts)]


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
        name = _named(device)
        if device.type in _NO_MIGRATION or device.type.startswith("ufs-"):
            found.append(Reason("unmigratable", f"{name} has no device state that can be saved"))
        elif device.type.startswith("vfio-"):
            found.append(Reason("vfio", f"{name} has state that is not saved with the others'"))
        elif device.type.startswith("ivshmem"):
            found.append(Reason("ivshmem", f"{name} shares memory with other processes"))
        elif device.type.startswith("virtio-mem"):
            found.append(Reason("virtio_mem", f"{name} changes how much memory the guest has"))
    return found


def _named(device: Device) -> str:
    return f"device '{device.id or device.path}' ({device.type})"


def _writers(facts: GuestFacts) -> list[Reason]:
    """What writes past QEMU's page tables while the guest runs."""
    found = []
    for device in facts.devices:
        if device.type.startswith("vhost-user-"):
            found.append(
                Reason("vhost_user", f"{_named(device)} lets another process write guest memory")
            )
        elif device.type.startswith("vhost-vdpa-"):
            found.append(
                Reason(
                    "vhost_vdpa", f"{_named(device)} writes to guest memory past its protection"
                )
            )
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


def _vanishing(facts: GuestFacts) -> list[Reason]:
    if not facts.free_page_reporting:
        return []
    return [Reason("free_page_reporting", "the balloon's free-page-reporting gives memory back")]


def _hidden(facts: GuestFacts) -> list[Reason]:
    return [
        Reason("confidential", f"object '{backend.id}' ({backend.type}) hides memory")
        for backend in facts.backends
        if backend.type == "memory-backend-epc" or backend.type.startswith(("sev-", "tdx-"))
    ]
