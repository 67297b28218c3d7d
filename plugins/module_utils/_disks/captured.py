# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All disks of one snapshot, each by the scheme that was chosen for it, at one instant."""

from __future__ import annotations

import functools
from typing import Any, Callable, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import outside
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.backup import Backup
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.overlay import Overlay
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.scheme import (
    Making,
    Outside,
    Scheme,
    Share,
    Subject,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.table import SCHEMES
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import Disk

Chosen = Sequence[tuple[Disk, str]]


def by_scheme(chosen: Chosen) -> dict[str, list[Disk]]:
    """Scheme -> its disks, both in the order in which they come. Pure."""
    found: dict[str, list[Disk]] = {}
    for disk, scheme in chosen:
        found.setdefault(scheme, []).append(disk)
    return found


def automatic(
    subject: Subject, qmp: Connection, disks: Sequence[Disk]
) -> Callable[[Disk], str]:
    """What scheme `auto` is for a disk: the one that copies nothing where libvirt starts the domain
    with the new image by itself and nothing stands in its way, elsewhere the one that any can.
    All of them are looked at, once, when the first one is asked for."""

    @functools.lru_cache(maxsize=1)
    def problems() -> dict[str, RefusedError]:
        usable = [disk for disk in disks if disk.target and disk.inserted and disk.node]
        return Overlay.problems(subject, qmp, usable)

    def choose(disk: Disk) -> str:
        covered = disk.target and disk.node not in problems()
        return Overlay.NAME if covered else Backup.NAME

    return choose


def check(subject: Subject, qmp: Connection, chosen: Chosen) -> None:
    """RefusedError when a disk cannot be captured as it was chosen. Queries only."""
    for name, disks in by_scheme(chosen).items():
        SCHEMES[name].check(subject, qmp, disks)


def estimate(subject: Subject, qmp: Connection, chosen: Chosen) -> dict[str, int]:
    """Node name -> the most that the disk can take in the store, bytes. Queries only."""
    found: dict[str, int] = {}
    for name, disks in by_scheme(chosen).items():
        found.update(SCHEMES[name].estimate(subject, qmp, disks))
    return found


def warnings(chosen: Chosen) -> list[str]:
    """What has to be known of the schemes that were chosen. Pure."""
    found = (SCHEMES[name].warning(disks) for name, disks in by_scheme(chosen).items())
    return [warning for warning in found if warning]


class CapturedDisks:
    """The disks of one snapshot in the making. What is to be done in which order: see Scheme."""

    def __init__(self, making: Making, chosen: Chosen) -> None:
        """Touches nothing yet."""
        shares: dict[str, list[Share]] = {}
        for index, (disk, name) in enumerate(chosen):
            shares.setdefault(name, []).append(Share(index, disk))
        self._schemes: list[Scheme] = [
            SCHEMES[name](making, theirs) for name, theirs in shares.items()
        ]
        self._making = making
        self._committed = False

    def prepare(self, qmp: Connection) -> None:
        """Everything that can be done before the guest stands still."""
        entries = [
            entry
            for scheme in self._schemes
            if isinstance(scheme, Outside)
            for entry in scheme.entries()
        ]
        if entries:
            outside.note(self._making.folder, self._making.whose, entries)
        for scheme in self._schemes:
            scheme.prepare(qmp)

    def commit_frozen(self, qmp: Connection, timeout: float) -> None:
        """The guest's file systems are frozen: what need not wait until it is stopped."""
        for scheme in self._schemes:
            if scheme.goes_first:
                self._committed = True
                scheme.commit_frozen(qmp, timeout)

    def commit(self, qmp: Connection, timeout: float) -> None:
        """The guest is stopped: all disks are captured as they are now."""
        self._committed = True
        actions = [action for scheme in self._schemes for action in scheme.actions()]
        if actions:
            qmp.execute("transaction", {"actions": actions}, timeout)
        for scheme in self._schemes:
            scheme.commit(qmp, timeout)

    def set_speed(self, qmp: Connection) -> None:
        """The guest runs on: copies get their speed."""
        for scheme in self._schemes:
            scheme.set_speed(qmp)

    def poll(self, qmp: Connection) -> tuple[bool, int, int]:
        """(all are done, bytes copied, bytes in all). Raises LivesnapError when one failed."""
        every = [scheme.poll(qmp) for scheme in self._schemes]
        return (
            all(finished for finished, _done, _total in every),
            sum(done for _finished, done, _total in every),
            sum(total for _finished, _done, total in every),
        )

    def finish(self, qmp: Connection) -> list[dict[str, Any]]:
        """After poll() said all: disks[] of the manifest, in the guest's order."""
        found: dict[int, dict[str, Any]] = {}
        for scheme in self._schemes:
            indices = [share.index for share in scheme.shares]
            found.update(zip(indices, scheme.finish(qmp)))
        return [found[index] for index in sorted(found)]

    def undo(self, qmp: Connection) -> str:
        """Take all of it back, the last first; '' or what went wrong.

        What lies outside of the snapshot's folder is discarded with the folder.
        """
        problems = []
        for scheme in reversed(self._schemes):
            try:
                problems.append(scheme.undo(qmp))
            except LivesnapError as err:
                problems.append(str(err))
        if not self._committed:
            outside.forget(self._making.folder)
        return "; ".join(filter(None, problems))
