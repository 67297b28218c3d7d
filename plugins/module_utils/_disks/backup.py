# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scheme backup: a full copy-before-write copy of each disk, into the store.

It begins for all disks at once while the guest is stopped. The guest's own chain, and with it its
command line, stays as it is.

The room that a copy can need is reserved beforehand. QEMU before 10.1 passes an error of the target
on to the guest's write (on-cbw-error is break-guest-write and cannot be chosen), so a store that
fills up must not fail a copy-before-write.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Optional, Sequence, Union

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.domain_jobs import DomainJobs
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.qemu_jobs import QemuJobs
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.target import FORMAT, Target
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import Disk
from ansible_collections.livesnap.qemu.plugins.module_utils._store import names
from ansible_collections.livesnap.qemu.plugins.module_utils._store.space import qcow2_bytes

NAME = "backup"
#: Room for what the guest allocates between the estimate and the instant, bytes.
_GROWTH = 64 << 20


class Backup:
    """The copies of one snapshot."""

    def __init__(
        self, prefix: str, disks: Sequence[Disk], folder: Path, owner: tuple[int, int]
    ) -> None:
        """`owner`: uid and gid of the guest's QEMU. `folder`: the snapshot in the making."""
        self._prefix = prefix
        self._owner = owner
        self._jobs: list[Union[QemuJobs, DomainJobs]] = []
        self._targets = []
        for index, disk in enumerate(disks):
            file = f"disks/{index}-{names.safe(disk.label)}.{FORMAT}"
            self._targets.append(Target(disk, f"{prefix}d{index}", file, folder / file))

    @staticmethod
    def estimate(qmp: Connection, disks: Sequence[Disk]) -> dict[str, int]:
        """Node name -> the most that the copy can take, bytes. Queries only."""
        nodes = {
            str(node["node-name"]): node
            for node in qmp.execute("query-named-block-nodes", {"flat": False})
        }
        return {
            disk.node: qcow2_bytes(
                _allocated(nodes.get(disk.node, {}), disk.virtual_bytes) + _GROWTH,
                disk.virtual_bytes,
            )
            for disk in disks
        }

    @staticmethod
    def check() -> None:
        """Refuse when qemu-img is not there."""
        if shutil.which("qemu-img") is None:
            raise RefusedError(
                "qemu-img is not installed", "install qemu-utils (qemu-img)", "qemu_img"
            )

    def prepare(self, qmp: Connection, estimates: dict[str, int]) -> None:
        """Make the targets, reserve their room, make QEMU ready. Nothing is copied yet."""
        for target in self._targets:
            target.make(estimates[target.disk.node])
        # What libvirt has no name for it cannot copy: the firmware's variables.
        managed = [target for target in self._targets if target.disk.target]
        others = [target for target in self._targets if not target.disk.target]
        if managed:
            self._jobs.append(DomainJobs(managed, self._owner))
        if others:
            self._jobs.append(QemuJobs(self._prefix, others))
        for jobs in self._jobs:
            jobs.prepare(qmp)

    def begin(self, qmp: Connection, timeout: float) -> None:
        """The guest is stopped: the copies are of this instant."""
        for jobs in self._jobs:
            jobs.begin(qmp, timeout)

    def poll(self, qmp: Connection) -> tuple[bool, int, int]:
        """(all are done, bytes copied, bytes in all). Raises LivesnapError when one failed."""
        every = [jobs.poll(qmp) for jobs in self._jobs]
        return (
            all(finished for finished, _done, _total in every),
            sum(done for _finished, done, _total in every),
            sum(total for _finished, _done, total in every),
        )

    def finish(self, qmp: Connection) -> list[dict[str, Any]]:
        """After poll() said all: take them out of QEMU, make them durable, give them their owner.

        Returns disks[] of the manifest.
        """
        for jobs in self._jobs:
            jobs.remove(qmp)
        found = []
        for target in self._targets:
            info = target.complete(self._owner)
            found.append(entry(target.disk, target.file, info.st_size, info.st_blocks * 512))
        return found

    def abort(self, qmp: Connection) -> str:
        """Take all of it out of QEMU; '' or what went wrong. The files go with the folder."""
        problem = ""
        for jobs in self._jobs:
            try:
                jobs.remove(qmp)
            except LivesnapError as err:
                problem = str(err)
        for target in self._targets:
            target.close()
        return problem


def entry(disk: Disk, file: str, size: int, allocated: int) -> dict[str, Any]:
    """disks[] of the manifest. Pure."""
    return {
        "match": disk.label,
        "device": disk.device or None,
        "qdev": disk.qdev or None,
        "node": disk.node,
        "serial": disk.serial or None,
        "scheme": NAME,
        "file": file,
        "format": FORMAT,
        "bytes": disk.virtual_bytes,
        "stored_bytes": allocated,
        "file_bytes": size,
        "source": {"file": disk.file, "format": disk.format},
    }


def _allocated(node: dict[str, Any], virtual: int) -> int:
    """Bytes that a node and what it stands on have allocated; all of it where that is unknown."""
    total = 0
    image: Optional[dict[str, Any]] = node.get("image")
    if image is None:
        return virtual
    while image is not None:
        if "actual-size" not in image:
            return virtual
        total += int(image["actual-size"])
        image = image.get("backing-image")
    # Protocols without files say 0, or nothing.
    return total or virtual
