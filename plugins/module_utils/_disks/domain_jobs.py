# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies by libvirt's own backup job, so that libvirt knows of them.

While it runs, libvirt refuses what does not go together with it (a migration, a save). libvirt
opens the targets for QEMU, and gives them back to root at the end.
"""

from __future__ import annotations

import functools
import os
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, Iterable, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils import _deps
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import (
    Domain,
    as_domain,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.target import FORMAT, Target
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LibvirtError,
    LivesnapError,
    TimedOutError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.domain_xml import disk_targets
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files

_POLL = 0.05


class DomainJobs:
    """The copies of one snapshot of a libvirt domain."""

    def __init__(self, targets: Sequence[Target], owner: tuple[int, int]) -> None:
        """Of disks that libvirt has names for. `owner`: uid and gid of their QEMU."""
        self._targets = targets
        self._owner = owner
        self._xml = ""
        self._has_speed = False

    def prepare(self, qmp: Connection) -> None:
        """Write down what is asked of libvirt. Nothing is copied yet."""
        for target in self._targets:
            # libvirt does the same, unless it is told to leave owners alone.
            with files.as_store_error(f"'{target.path}' cannot be given to QEMU's user"):
                os.fchown(target.fd, *self._owner)
        copied = {target.disk.target: target.path for target in self._targets}
        self._xml = backup_xml(copied, disk_targets(as_domain(qmp).xml()).values())

    def actions(self) -> list[dict[str, Any]]:
        """libvirt begins a job of its own, and takes no transaction."""
        return []

    def commit(self, qmp: Connection, timeout: float) -> None:
        """The guest is stopped: the copies are of this instant from the reply on."""
        flags = _deps.libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL
        as_domain(qmp).call(
            "backupBegin", lambda domain: domain.backupBegin(self._xml, None, flags), timeout
        )

    def poll(self, qmp: Connection) -> tuple[bool, int, int]:
        """(all are done, bytes copied, bytes in all). Raises LivesnapError when it failed."""
        self.set_speed(qmp)
        domain, libvirt = as_domain(qmp), _deps.libvirt
        total = sum(target.disk.virtual_bytes for target in self._targets)
        stats: dict[str, Any] = domain.call("jobStats", lambda each: each.jobStats())
        if stats.get("type"):
            return False, int(stats.get("disk_processed", 0)), int(stats.get("disk_total", total))
        flags = libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED
        stats = domain.call("jobStats", lambda each: each.jobStats(flags))
        ours = stats.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP
        if not ours or stats.get("type") != libvirt.VIR_DOMAIN_JOB_COMPLETED:
            why = stats.get("errmsg") or "libvirt does not say that it was completed"
            raise LivesnapError(
                f"the copy of the disks of domain '{domain.name}' failed: {why}",
                "is there room in the store? did somebody abort the job?",
            )
        return True, total, total

    def set_speed(self, qmp: Connection) -> None:
        """A backup job of libvirt's cannot begin with a speed. Done once."""
        libvirt, domain = _deps.libvirt, as_domain(qmp)
        flags = libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES
        # This disk is copied already: QEMU's job has ended, or libvirt has forgotten it, too.
        ended = (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_INVALID_ARG)
        for target in [] if self._has_speed else [each for each in self._targets if each.speed]:
            try:
                given = (target.disk.target, target.speed, flags)
                domain.call("blockJobSetSpeed", functools.partial(_set_speed, given=given))
            except LibvirtError as err:
                if err.code not in ended:
                    raise
        self._has_speed = True

    def remove(self, qmp: Connection) -> None:
        """End the job, if it is ours and runs. Of one that ended libvirt leaves nothing."""
        end_backup(as_domain(qmp), self._targets[0].path.parent.parent)


def _set_speed(domain: Any, given: tuple[str, int, int]) -> None:
    domain.blockJobSetSpeed(*given)


def backup_xml(copied: dict[str, Path], every: Iterable[str]) -> str:
    """The <domainbackup> that copies these disks (name -> file) and none of the others. Pure."""
    root = ET.Element("domainbackup", mode="push")
    disks = ET.SubElement(root, "disks")
    for name in every:
        if name not in copied:
            ET.SubElement(disks, "disk", name=name, backup="no")
            continue
        disk = ET.SubElement(disks, "disk", name=name, type="file", backupmode="full")
        ET.SubElement(disk, "driver", type=FORMAT)
        ET.SubElement(disk, "target", file=str(copied[name]))
    return ET.tostring(root, encoding="unicode")


def end_backup(domain: Domain, folder: Path, timeout: float = 30.0) -> bool:
    """End a backup job whose targets lie in a snapshot's folder; whether there was one."""
    try:
        xml = domain.call("backupGetXMLDesc", lambda each: each.backupGetXMLDesc())
    except LibvirtError as err:
        if err.code == _deps.libvirt.VIR_ERR_NO_DOMAIN_BACKUP:
            return False
        raise
    paths = [each.get("file", "") for each in ET.fromstring(xml).iterfind("./disks/disk/target")]
    if not any(folder in Path(path).parents for path in paths):
        return False
    domain.call("abortJob", lambda each: each.abortJob())
    end = time.monotonic() + timeout
    while domain.call("jobInfo", lambda each: each.jobInfo())[0]:
        if time.monotonic() > end:
            raise TimedOutError(
                f"the backup job of domain '{domain.name}' did not end within {timeout:g} s of"
                " being aborted",
                "storage under the guest's disks or the store hangs",
            )
        time.sleep(_POLL)
    return True
