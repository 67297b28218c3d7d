# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scheme backup: a copy-before-write copy of each disk into the store, of what was written since
an earlier snapshot where that is known, else of all of it.

It begins for all disks at once while the guest is stopped; those of libvirt's domains a little
earlier, if nothing is written to the disks in between. The guest's own chain, and with it its
command line, stays as it is.

The room that a copy can need is reserved beforehand. QEMU before 10.1 passes an error of the target
on to the guest's write (on-cbw-error is break-guest-write and cannot be chosen), so a store that
fills up must not fail a copy-before-write.
"""

from __future__ import annotations

import contextlib
import shutil
from typing import Any, Mapping, Optional, Sequence, Union

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import bitmaps, increment
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.domain_jobs import DomainJobs
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.increment import Choice
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.qemu_jobs import QemuJobs
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.scheme import (
    Making,
    Scheme,
    Share,
    Subject,
    entry,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.target import FORMAT, Target
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    QmpCommandError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import Disk
from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded
from ansible_collections.livesnap.qemu.plugins.module_utils._store import chain
from ansible_collections.livesnap.qemu.plugins.module_utils._store.space import qcow2_bytes

#: Room for what the guest allocates between the estimate and the instant, bytes.
_GROWTH = 64 << 20
#: Seconds that a look at a folder may take: storage may hang.
_TEST_LIMIT = 10.0
#: Seconds that looking at an image may take.
_INFO_LIMIT = 30.0
#: How long a removal in the same folder is waited for before a full copy is made. Seconds.
_CHAIN_LIMIT = 2.0


class Backup(Scheme):
    """The copies of one snapshot."""

    NAME = "backup"

    def __init__(self, making: Making, shares: Sequence[Share]) -> None:
        """Touches nothing yet."""
        super().__init__(making, shares)
        subject = making.subject
        # To QEMU and libvirt 0 is no limit.
        speed = max(1, subject.bandwidth // len(shares)) if subject.bandwidth else 0
        self._jobs: list[Union[QemuJobs, DomainJobs]] = []
        self._targets = []
        for share in shares:
            node, file = f"{making.prefix}d{share.index}", share.file(FORMAT)
            path, how = making.folder / file, subject.compression
            self._targets.append(Target(share.disk, node, file, path, speed=speed, compression=how))
        self.goes_first = any(share.disk.target for share in shares)

    @classmethod
    def check(cls, subject: Subject, qmp: Connection, disks: Sequence[Disk]) -> None:
        """Refuse when qemu-img is not there, or libvirt cannot copy disks of its like this."""
        if shutil.which("qemu-img") is None:
            raise RefusedError(
                "qemu-img is not installed", "install qemu-utils (qemu-img)", "qemu_img"
            )
        if any(disk.target for disk in disks):
            _check_compression(subject)
            _check_reach(subject)

    @classmethod
    def estimate(
        cls, subject: Subject, qmp: Connection, disks: Sequence[Disk]
    ) -> dict[str, int]:
        """Node name -> the most that the copy can take, bytes. Queries only."""
        nodes = bitmaps.of_nodes(qmp)
        choices = increment.choose(subject, disks, nodes)
        return {disk.node: size for disk, size in zip(disks, _most(nodes, disks, choices))}

    def prepare(self, qmp: Connection) -> None:
        """Make the targets, reserve their room, make QEMU ready. Nothing is copied yet."""
        disks = [target.disk for target in self._targets]
        nodes = bitmaps.of_nodes(qmp)
        choices = self._choose(disks, nodes)
        # Looked at again: what was to be an increment may have to be a full copy by now.
        for target, choice, size in zip(self._targets, choices, _most(nodes, disks, choices)):
            target.choice = choice
            target.make(size)
        # What libvirt has no name for it cannot copy: the firmware's variables.
        managed = [target for target in self._targets if target.disk.target]
        others = [target for target in self._targets if not target.disk.target]
        if managed:
            owner, prefix = self.making.subject.owner, self.making.prefix
            self._jobs.append(DomainJobs(managed, owner, prefix))
        if others:
            self._jobs.append(QemuJobs(self.making.prefix, others))
        for jobs in self._jobs:
            jobs.prepare(qmp)
        self._add_bitmaps(qmp, nodes)

    def _choose(
        self, disks: Sequence[Disk], nodes: Mapping[str, Mapping[str, Any]]
    ) -> list[Choice]:
        """What the copies stand on: it must not go from here on."""
        try:
            with chain.locked(self.making.folder.parent, _CHAIN_LIMIT, shared=True):
                choices = increment.choose(self.making.subject, disks, nodes)
                choices = [self._openable(choice) for choice in choices]
                bases = [each.base.name for each in choices if each.base is not None]
                chain.note_needs(self.making.folder, bases)
        except RefusedError as err:
            return [Choice(None, err.msg)] * len(disks)
        return choices

    def _openable(self, choice: Choice) -> Choice:
        """The same, if qemu-img can open the image that it stands on, and all below that."""
        if choice.base is None:
            return choice
        path = self.making.folder.parent / choice.base.name / choice.base.file
        argv = ["qemu-img", "info", "-U", "-f", FORMAT, "--backing-chain", str(path)]
        done = run_bounded(argv, _INFO_LIMIT)
        if done.code == 0:
            return choice
        why = done.problem or done.words
        return Choice(None, f"'{path}' cannot be opened by qemu-img: {why}")

    def _add_bitmaps(self, qmp: Connection, nodes: Mapping[str, Mapping[str, Any]]) -> None:
        """One that counts from this snapshot on for each disk; of older ones the base's stays."""
        subject = self.making.subject
        tag = bitmaps.tag(subject.store, subject.guest)
        for target in self._targets:
            node, base = nodes.get(target.disk.node, {}), target.choice.base
            older = [each.name for each in bitmaps.ours(node, tag)]
            bitmaps.remove(
                qmp,
                target.disk.node,
                [name for name in older if base is None or name != base.bitmap],
            )
            if subject.max_chain and not target.disk.target and not target.disk.read_only:
                name = bitmaps.name_of(self.making.whose["id"], tag)
                # A disk that cannot have one is copied in full each time, and it is said why.
                with contextlib.suppress(QmpCommandError):
                    bitmaps.add(qmp, node, name)
                    target.bitmap = name

    def actions(self) -> list[dict[str, Any]]:
        """The jobs that QEMU begins; none where libvirt does."""
        return [action for jobs in self._jobs for action in jobs.actions()]

    def commit_frozen(self, qmp: Connection, timeout: float) -> None:
        """What libvirt begins, which takes longer than the rest of the pause."""
        for jobs in self._jobs:
            jobs.commit_frozen(qmp, timeout)

    def commit(self, qmp: Connection, timeout: float) -> None:
        """What libvirt begins, or has begun: the copies are of this instant."""
        for jobs in self._jobs:
            jobs.commit(qmp, timeout)

    def set_speed(self, qmp: Connection) -> None:
        """As option disk_bandwidth says."""
        for jobs in self._jobs:
            jobs.set_speed(qmp)

    def poll(self, qmp: Connection) -> tuple[bool, int, int]:
        """(all are done, bytes copied, bytes in all). Raises LivesnapError when one failed."""
        every = [jobs.poll(qmp) for jobs in self._jobs]
        return (
            all(finished for finished, _done, _total in every),
            sum(done for _finished, done, _total in every),
            sum(total for _finished, _done, total in every),
        )

    def finish(self, qmp: Connection) -> list[dict[str, Any]]:
        """Take them out of QEMU, make them durable, give them their owner."""
        for jobs in self._jobs:
            jobs.remove(qmp)
        found = []
        for target in self._targets:
            info = target.complete(self.making.subject.owner)
            found.append(
                {
                    **entry(
                        self.NAME,
                        target.disk,
                        target.file,
                        FORMAT,
                        info.st_size,
                        info.st_blocks * 512,
                    ),
                    "base": None if target.choice.base is None else target.choice.base.noted(),
                    "full_because": target.choice.reason,
                }
            )
        return found

    def undo(self, qmp: Connection) -> str:
        """Take all of it out of QEMU; '' or what went wrong. The files go with the folder."""
        for target in self._targets:
            target.close()
        problem = ""
        for jobs in self._jobs:
            try:
                jobs.remove(qmp)
            except LivesnapError as err:
                problem = str(err)
        for target in self._targets:
            if target.bitmap:
                bitmaps.remove(qmp, target.disk.node, [target.bitmap])
        return problem


def _check_compression(subject: Subject) -> None:
    if subject.compression != "none":
        raise RefusedError(
            f"libvirt copies the disks of guest '{subject.guest}', and cannot compress them",
            "leave disk_compression at 'none' for this guest",
            "disk_compression",
        )


def _check_reach(subject: Subject) -> None:
    """libvirt lets QEMU open the targets by their names: its user must get to the store."""
    process = subject.process
    user = (process.uid, process.gid, process.groups)
    if run_bounded(["test", "-x", subject.store], _TEST_LIMIT, user).code != 0:
        raise RefusedError(
            f"store '{subject.store}' cannot be reached by user '{process.user}', which the QEMU"
            f" of guest '{subject.guest}' runs as",
            "give all folders above it mode 0711, or choose another store",
            "store",
        )


def _most(
    nodes: Mapping[str, Mapping[str, Any]], disks: Sequence[Disk], choices: Sequence[Choice]
) -> list[int]:
    """Bytes that the copy of each disk can take. Pure."""
    found = []
    for disk, choice in zip(disks, choices):
        if choice.base is not None:
            written = choice.base.dirty
        else:
            written = _allocated(nodes.get(disk.node, {}), disk.virtual_bytes)
        found.append(qcow2_bytes(written + _GROWTH, disk.virtual_bytes))
    return found


def _allocated(node: Mapping[str, Any], virtual: int) -> int:
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
