# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies by block jobs of QEMU's, begun in one transaction.

QEMU gets each target as a descriptor (/dev/fdset/N): it needs no access to the store.
"""

from __future__ import annotations

from typing import Any, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import bitmaps, leftovers
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.target import FORMAT, Target
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    QmpCommandError,
)

#: Bytes a second while the guest stands still: QEMU, busy with copies, answers later. What the
#: guest overwrites is copied at once all the same.
STANDING = 1


class QemuJobs:
    """The copies of one snapshot of a guest that has no manager."""

    def __init__(self, prefix: str, targets: Sequence[Target]) -> None:
        """All names in QEMU begin with the prefix."""
        self._prefix = prefix
        self._targets = targets
        self._has_speed = False

    def prepare(self, qmp: Connection) -> None:
        """Open the targets in QEMU. Nothing is copied yet."""
        for target in self._targets:
            fdset = qmp.add_fd(target.fd, f"{self._prefix}{target.disk.node}"[:200])
            qmp.execute(
                "blockdev-add",
                {
                    "driver": FORMAT,
                    "node-name": target.node,
                    # What it stands on is never read here, and QEMU could not open it.
                    "backing": None,
                    "discard": "unmap",
                    "detect-zeroes": "unmap",
                    "file": {"driver": "file", "filename": f"/dev/fdset/{fdset}"},
                },
            )

    def actions(self) -> list[dict[str, Any]]:
        """Begin the copies: they are of the instant of the transaction, and new bitmaps count
        from it."""
        found = []
        for target in self._targets:
            if target.bitmap:
                found.append(bitmaps.enable(target.disk.node, target.bitmap))
            found.append(
                {
                    "type": "blockdev-backup",
                    "data": {
                        "job-id": f"{target.node}-job",
                        "device": target.disk.node,
                        "target": target.node,
                        **_sync(target),
                        "speed": STANDING,
                        "compress": target.compressed,
                        "auto-dismiss": False,
                    },
                }
            )
        return found

    def commit_frozen(self, qmp: Connection, timeout: float) -> None:
        """Nothing: the transaction takes no time to speak of."""

    def commit(self, qmp: Connection, timeout: float) -> None:
        """The transaction has done it all."""

    def set_speed(self, qmp: Connection) -> None:
        """As option disk_bandwidth says, or as fast as they can. Done once."""
        for target in [] if self._has_speed else self._targets:
            name = f"{target.node}-job"
            try:
                qmp.execute("block-job-set-speed", {"device": name, "speed": target.speed})
            except QmpCommandError:
                # One that has nothing to copy is done by now.
                jobs = leftovers.jobs(qmp, self._prefix)
                if any(job["id"] == name and job["status"] == "running" for job in jobs):
                    raise
        self._has_speed = True

    def poll(self, qmp: Connection) -> tuple[bool, int, int]:
        """(all are done, bytes copied, bytes in all). Raises LivesnapError when one failed."""
        self.set_speed(qmp)
        found = {str(job["id"]): job for job in leftovers.jobs(qmp, self._prefix)}
        finished, done, total = True, 0, 0
        for target in self._targets:
            job = found.get(f"{target.node}-job")
            if job is None:
                raise LivesnapError(
                    f"the copy of disk '{target.disk.label}' has disappeared from QEMU",
                    "somebody else dismissed block job '" + target.node + "-job'",
                )
            if job.get("error"):
                raise LivesnapError(
                    f"the copy of disk '{target.disk.label}' failed: {job['error']}",
                    "is there room in the store?",
                )
            size = int(job["total-progress"])
            if target.choice.base is None:
                # It grows when the job has looked at all of the disk.
                size = max(size, target.disk.virtual_bytes)
            total += size
            if job["status"] == "concluded":
                done += size
            else:
                finished = False
                done += min(size, int(job["current-progress"]))
        return finished, done, total

    def remove(self, qmp: Connection) -> None:
        """Take them out of QEMU, in every state."""
        leftovers.remove(qmp, self._prefix)


def _sync(target: Target) -> dict[str, Any]:
    """What of a disk is copied. A copy that fails leaves its base's bitmap as it is."""
    base = target.choice.base
    if base is None:
        return {"sync": "full"}
    return {"sync": "bitmap", "bitmap": base.bitmap, "bitmap-mode": "never"}
