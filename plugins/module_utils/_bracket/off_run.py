# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The snapshot of a libvirt guest that is off: its disks, copied while nothing runs.

No bracket and no engine. The instant is the moment when all of its images are locked against
writers and libvirt still says that it is off; from then on the copy goes on without its caller.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from pathlib import Path
from typing import Any, Iterator, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._bracket import faults, publish
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.link import (
    Aborted,
    Limit,
    Link,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.off import (
    OffPlan,
    consistency,
    plan,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.spec import SnapshotSpec
from ansible_collections.livesnap.qemu.plugins.module_utils._connection import _peer
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import Domain
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import resting
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.backup import Backup
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.image_lock import ImageLock
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.scheme import Share, entry
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.target import FORMAT, Target
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import Disk
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.off import read_off
from ansible_collections.livesnap.qemu.plugins.module_utils._log import log
from ansible_collections.livesnap.qemu.plugins.module_utils._store import (
    listing,
    manifest,
    rundir,
    status,
    sums,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store

#: Seconds between looks for a QEMU that was started, and between notes of progress.
_POLL = 0.5


def take(spec: SnapshotSpec, link: Link, store: Store, key: str) -> dict[str, Any]:
    """Copy and publish; `snapshot` as it is returned. The guest's lock, named `key`, is held."""
    started, begun = rundir.utc(), time.monotonic()
    planned = plan(spec)
    run = _Run(spec, str(uuid.uuid4()), link, planned, rundir.RunDir(key))
    run.rundir.begin(run.id, str(store.root), spec.guest, spec.name, **spec.address.noted())
    log(spec.guest, run.id, f"snapshot '{spec.name}' of a guest that is off begins")
    try:
        snapshot = _make(run, store, started, begun)
    except BaseException as err:
        if run.folder is not None:
            store.discard(run.folder)
        run.rundir.remove()
        if isinstance(err, LivesnapError):
            log(spec.guest, run.id, str(err), error=True)
            err.msg = f"snapshot '{spec.name}' of guest '{spec.guest}' failed: {err.msg}"
            err.args = (err.msg,)
        raise
    run.rundir.remove()
    log(spec.guest, run.id, f"snapshot '{spec.name}' is complete")
    return snapshot


def _make(run: _Run, store: Store, started: str, begun: float) -> dict[str, Any]:
    spec = run.spec
    run.step("folder")
    run.folder = store.begin(spec.guest, spec.name)
    timings: dict[str, Any] = dict.fromkeys(manifest.TIMINGS)
    with _locked(run.plan.disks) as locks:
        run.fix(locks)
        created, copied = rundir.utc(), time.monotonic()
        run.step("copy")
        disks = run.copy(run.folder, locks)
        timings["disk_copy_s"] = round(time.monotonic() - copied, 3)
        run.unchanged(locks)
    disks = run.with_checksums(run.folder, disks)
    run.step("publish")
    timings["total_s"] = round(time.monotonic() - begun, 3)
    fields = run.fields(run.folder, disks)
    fields.update(created=created, started=started, timings=timings)
    first = status.changed(status.default(), spec.labels, spec.pinned)
    final = store.publish(run.folder, fields, first)
    run.folder = None
    return listing.describe(fields, first, str(final))


@contextlib.contextmanager
def _locked(disks: list[Disk]) -> Iterator[list[ImageLock]]:
    """All images, each against writers."""
    with contextlib.ExitStack() as stack:
        locks = []
        for disk in disks:
            locks.append(ImageLock(disk.file))
            stack.callback(locks[-1].release)
        yield locks


class _Run:
    """One such snapshot in the making."""

    def __init__(
        self, spec: SnapshotSpec, snapshot: str, link: Link, planned: OffPlan, run: rundir.RunDir
    ) -> None:
        self.spec = spec
        self.id = snapshot
        self.rundir = run
        self._link = link
        self.plan = planned
        self.folder: Optional[Path] = None
        self._instant = False
        self._limit = Limit(None, "")
        self._looked = 0.0
        self._states: list[Any] = []

    def step(self, name: str) -> None:
        """Write down what comes next."""
        self._check()
        self.rundir.note({"step": name})
        faults.strike(name)

    def fix(self, locks: Sequence[ImageLock]) -> None:
        """The images are locked, and the guest is off still: the instant."""
        self._states = [lock.state() for lock in locks]
        self._still_off()
        self._instant = True
        self._limit = Limit(
            float(self.spec.timeout) or None, f"the copy of guest '{self.spec.guest}' (timeout)"
        )

    def _check(self) -> None:
        if self._link.asked_to_end():
            raise Aborted("it was aborted on request")
        if not self._instant and self._link.caller_gone():
            raise Aborted("the module that asked for the snapshot is gone")

    def _still_off(self) -> None:
        with Domain.find(self.spec.uri, self.spec.guest) as domain:
            again = read_off(domain)
        if again.xml != self.plan.guest.xml:
            raise RefusedError(
                f"domain '{again.name}' was defined anew meanwhile", "run again", "redefined"
            )

    def copy(self, folder: Path, locks: Sequence[ImageLock]) -> list[dict[str, Any]]:
        """All disks into the store; disks[] of the manifest."""
        total = sum(disk.virtual_bytes for disk in self.plan.disks)
        found, done = [], 0
        for index, disk in enumerate(self.plan.disks):
            file = Share(index, disk).file(FORMAT)
            target = Target(disk, "", file, folder / file, compression=self.spec.disk_compression)

            def watch(percent: float, before: int = done, size: int = disk.virtual_bytes) -> None:
                self._watch(locks, before + int(size * percent / 100), total)

            try:
                target.make(self.plan.estimates[disk.node])
                resting.copy(
                    disk.file,
                    disk.format,
                    str(target.path),
                    watch,
                    speed=self.spec.disk_bandwidth,
                    compressed=target.compressed,
                )
                info = target.complete(self.plan.guest.owner)
            finally:
                target.close()
            size, allocated = info.st_size, info.st_blocks * 512
            found.append(entry(Backup.NAME, disk, file, FORMAT, size, allocated))
            done += disk.virtual_bytes
        return found

    def with_checksums(self, folder: Path, disks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """disks[] of the manifest with the checksums of the copies."""
        with sums.of_disks(folder, disks) as digests:
            while not digests.finished():
                self._check()
                self._limit.left(1.0)
                time.sleep(_POLL / 10)
            return sums.added(disks, digests)

    def _watch(self, locks: Sequence[ImageLock], done: int, total: int) -> None:
        self._check()
        self._limit.left(1.0)
        now = time.monotonic()
        if now - self._looked < _POLL:
            return
        self._looked = now
        self._not_started(locks)
        about = {"guest": self.spec.guest, "name": self.spec.name, "id": self.id}
        self.rundir.progress(about, "copy", 100.0 * done / max(1, total), done, total)

    def _not_started(self, locks: Sequence[ImageLock]) -> None:
        """Where locks keep no QEMU from writing, see whether there was one."""
        guest = self.plan.guest
        if not all(lock.kept for lock in locks) and _peer.domain_processes(guest.name, guest.uuid):
            raise LivesnapError(
                f"domain '{guest.name}' was started while its disks were copied",
                "the copy was thrown away: run again, and it is captured while it runs",
            )

    def unchanged(self, locks: Sequence[ImageLock]) -> None:
        """Whatever locks are worth here: nobody has written."""
        self._not_started(locks)
        for lock, before in zip(locks, self._states):
            if lock.state() != before:
                raise LivesnapError(
                    f"disk image '{lock.path}' was written to while it was copied",
                    "the copy was thrown away: look for who writes to the disks of a guest that is"
                    " off",
                )

    def fields(self, folder: Path, disks: list[dict[str, Any]]) -> dict[str, Any]:
        """The manifest, without its times."""
        spec, guest = self.spec, self.plan.guest
        return {
            "livesnap": publish.LIVESNAP,
            "id": self.id,
            "guest": spec.guest,
            "name": spec.name,
            "uuid": guest.uuid,
            "complete": True,
            "was_running": False,
            "was_off": True,
            "engine": None,
            "consistency": consistency(guest, spec.freeze),
            "memory": None,
            "devices": None,
            "disks": disks,
            "excluded_disks": [
                {"match": disk.label, "node": disk.node} for disk in self.plan.selection.excluded
            ],
            "guest_facts": guest.facts(),
            "restore_blockers": list(guest.blockers),
            "schedule": spec.schedule,
            "slot": spec.slot,
            "bracket": {"attempts": 0, "deadline_s": spec.deadline, "warnings": []},
            "domain": publish.write_domain(folder, guest.xml, spec.uri),
            "parent": None,
            "encryption": None,
        }
