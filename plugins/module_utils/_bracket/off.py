# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A libvirt guest that is off: what of it can be captured, and what is known of its disks then."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.livesnap.qemu.plugins.module_utils._bracket import prediction
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.spec import SnapshotSpec
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import Domain
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import resting
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.backup import Backup
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.select import (
    Selection,
    select,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.table import SCHEMES
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import RefusedError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import Disk
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.off import OffGuest, read_off
from ansible_collections.livesnap.qemu.plugins.module_utils._store import space
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store

_NOT_FROZEN = "not needed: guest is off"


@dataclass(frozen=True)
class OffPlan:
    """What is going to be copied. estimates: node -> the most that its copy can take, bytes."""

    guest: OffGuest
    selection: Selection
    estimates: dict[str, int]

    @property
    def disks(self) -> list[Disk]:
        """The disks that are captured, in libvirt's order."""
        return [disk for disk, _scheme in self.selection.chosen]


def lock_key(spec: SnapshotSpec) -> str:
    """The name of the lock and the run folder of a guest that has no process to be named by."""
    with Domain.find(spec.uri, spec.guest) as domain:
        return f"off-{domain.uuid}"


def plan(spec: SnapshotSpec) -> OffPlan:
    """Everything that can be refused; asks libvirt, looks at images and store, touches nothing."""
    store = Store(spec.store)
    with Domain.find(spec.uri, spec.guest) as domain:
        guest = read_off(domain)
    store.check_owner(spec.guest, guest.uuid, guest.name)
    if guest.migrated:
        raise RefusedError(
            f"guest '{spec.guest}' is off here because it was migrated: it may run elsewhere",
            "undefine it here, or set when_off: skip",
            "migrated",
        )
    if guest.saved and spec.freeze == "required":
        raise RefusedError(
            f"guest '{spec.guest}' is off, and saved: its disks are not clean without its RAM, and"
            " freeze is required",
            "start it first",
            "freeze",
        )
    selection = select(
        guest.disks, spec.disks, spec.disk_scheme, SCHEMES, lambda _disk: Backup.NAME
    )
    if not selection.chosen:
        raise RefusedError(
            f"nothing of guest '{spec.guest}' is to be captured: it is off, and there is no disk",
            "select a disk",
            "nothing",
        )
    check_schemes(spec.guest, selection)
    resting.check()
    chosen, estimates = [], {}
    for disk, scheme in selection.chosen:
        check_disk(spec.guest, guest, disk)
        size, allocated = resting.measure(disk.file, disk.format)
        chosen.append((replace(disk, virtual_bytes=size), scheme))
        estimates[disk.node] = space.qcow2_bytes(allocated, size)
    space.check(store.root, 0, sum(estimates.values()), spec.reserve)
    return OffPlan(guest, Selection(chosen, selection.excluded), estimates)


def check_schemes(name: str, selection: Selection) -> None:
    """Refuse schemes that need a QEMU, or do not know what to do without. Pure."""
    for disk, scheme in selection.chosen:
        if scheme != Backup.NAME:
            raise RefusedError(
                f"disk '{disk.label}' of guest '{name}', which is off, cannot be captured by scheme"
                f" '{scheme}'",
                "choose scheme 'backup' for guests that may be off, or set when_off: skip",
                "scheme_off",
            )


def check_disk(name: str, guest: OffGuest, disk: Disk) -> None:
    """Refuse a disk that nobody but its own QEMU can read."""
    why = ""
    if not disk.file.startswith("/"):
        why = f"is of type '{disk.file}', and without a QEMU only files and devices can be read"
    elif disk.target in guest.encrypted:
        why = "is encrypted, and only its QEMU is given the key"
    if why:
        raise RefusedError(
            f"disk '{disk.label}' of guest '{name}', which is off, {why}",
            "leave it out by 'disks' (scheme: none), or set when_off: skip",
            "disk_off",
        )


def consistency(guest: OffGuest, freeze: str) -> dict[str, Any]:
    """What is known of the disks' state, and why. Pure."""
    said = [f"guest is off: {guest.ended}", "RAM: none: guest is off"]
    if guest.saved:
        said.append("not clean: libvirt has saved the guest's RAM, which is not in the snapshot")
    return {
        "level": "crash" if guest.saved else "clean",
        "indications": said,
        "freeze": {"asked": freeze, "achieved": False, "reason": _NOT_FROZEN, "filesystems": 0},
    }


def predicted(spec: SnapshotSpec, planned: OffPlan) -> dict[str, Any]:
    """`snapshot` in check mode. Pure."""
    guest = planned.guest
    return prediction.predicted(
        spec,
        guest.uuid,
        consistency(guest, spec.freeze),
        None,
        None,
        planned.selection,
        planned.estimates,
        guest.blockers,
    )
