# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies by libvirt's own backup job, so that libvirt knows of them.

While it runs, libvirt refuses what does not go together with it (a migration, a save). libvirt
opens the targets for QEMU, and gives them back to root at the end.

libvirt takes tens of milliseconds to begin one, which the guest need not wait for: while its file
systems are frozen the copies can begin, and dirty bitmaps tell later whether anything was written
to the disks between that and the pause.
"""

from __future__ import annotations

import contextlib
import os
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, Iterable, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils import _deps
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import (
    Domain,
    as_domain,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import bitmaps
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.qemu_jobs import STANDING
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.target import FORMAT, Target
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    FrozenWriteError,
    LibvirtError,
    LivesnapError,
    TimedOutError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.domain_xml import disk_targets
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files

_POLL = 0.05
#: Seconds that requests under way are waited for before the pause, which waits for them as well.
_SETTLE_LIMIT = 0.5
#: Seconds without one that ends, after which there are none.
_SETTLED = 0.01
#: Seconds that libvirt may take to hear of the end of a copy.
_SPEED_LIMIT = 5.0
#: Seconds between looks while the guest waits, or its copies stand still.
_TURN = 0.003


class DomainJobs:
    """The copies of one snapshot of a libvirt domain."""

    def __init__(self, targets: Sequence[Target], owner: tuple[int, int], prefix: str) -> None:
        """Of disks that libvirt has names for. owner: uid and gid of their QEMU. prefix: of what is
        made inside of it.
        """
        self._targets = targets
        self._owner = owner
        self._xml = ""
        self._watch = f"{prefix}watch"
        self._is_watched = False
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

    def commit_frozen(self, qmp: Connection, timeout: float) -> None:
        """The guest runs, and is not to write: the copies are of the pause, too, if it does not."""
        self._is_watched = True
        for target in self._targets:
            bitmaps.watch(qmp, target.disk.node, self._watch)
        self._begin(as_domain(qmp), timeout)
        self._settle(as_domain(qmp))

    def _settle(self, domain: Domain) -> None:
        """QEMU waits for all requests, and flushes all images, when it stops the guest."""
        begun = changed = time.monotonic()
        before: list[Optional[int]] = []
        while changed + _SETTLED > time.monotonic() and begun + _SETTLE_LIMIT > time.monotonic():
            copied = [_copied(domain, target.disk.target) for target in self._targets]
            if copied != before:
                before, changed = copied, time.monotonic()
            time.sleep(_TURN)
        for target in self._targets:
            with files.as_store_error(f"'{target.path}' cannot be written"):
                os.fdatasync(target.fd)

    def commit(self, qmp: Connection, timeout: float) -> None:
        """The guest is stopped: the copies are of this instant."""
        if not self._is_watched:
            self._begin(as_domain(qmp), timeout)
            return
        written = bitmaps.seen(qmp, self._watch)
        labels = [each.disk.label for each in self._targets if each.disk.node in written]
        if labels:
            raise FrozenWriteError(
                f"disks {', '.join(labels)} were written to between the beginning of their copies"
                " and the pause, although the guest's file systems are frozen"
            )

    def _begin(self, domain: Domain, timeout: float) -> None:
        libvirt = _deps.libvirt
        flags = libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL
        xml = self._xml
        domain.call("backupBegin", lambda each: each.backupBegin(xml, None, flags), timeout)
        # QEMU would be slow to answer in the pause, between requests of copies at full speed.
        for target in self._targets:
            # One that has nothing to copy is done by now.
            with contextlib.suppress(LibvirtError):
                _set_speed(domain, target.disk.target, STANDING)

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
        """As option disk_bandwidth says, or as fast as they can. Done once."""
        if self._has_speed:
            return
        domain, deadline = as_domain(qmp), time.monotonic() + _SPEED_LIMIT
        for target in self._targets:
            _let_go(domain, target.disk.target, target.speed, deadline)
        self._unwatch(qmp)
        self._has_speed = True

    def _unwatch(self, qmp: Connection) -> None:
        if self._is_watched:
            for target in self._targets:
                bitmaps.remove(qmp, target.disk.node, [self._watch])

    def remove(self, qmp: Connection) -> None:
        """End the job, if it is ours and runs. Of one that ended libvirt leaves nothing."""
        self._unwatch(qmp)
        end_backup(as_domain(qmp), self._targets[0].path.parent.parent)


def _set_speed(domain: Domain, target: str, speed: int) -> None:
    """Bytes a second of the copy of a disk; 0 is unlimited."""
    flags = _deps.libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES
    domain.call("blockJobSetSpeed", lambda each: each.blockJobSetSpeed(target, speed, flags))


def _let_go(domain: Domain, target: str, speed: int, deadline: float) -> None:
    """The same of a copy that may be done, which libvirt hears of a little later."""
    while True:
        try:
            _set_speed(domain, target, speed)
            return
        except LibvirtError:
            if _copied(domain, target) is None:
                return
            if time.monotonic() > deadline:
                raise
            time.sleep(_TURN)


def _copied(domain: Domain, target: str) -> Optional[int]:
    """Bytes of a disk; None where libvirt has no copy of it under way."""
    about = domain.call("blockJobInfo", lambda each: each.blockJobInfo(target))
    return int(about["cur"]) if about else None


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
