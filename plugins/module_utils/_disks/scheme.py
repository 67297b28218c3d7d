# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a scheme is: a way to capture disks, from the look beforehand to what comes back of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Mapping, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import Disk
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.process import QemuProcess
from ansible_collections.livesnap.qemu.plugins.module_utils._store import names


@dataclass(frozen=True)
class Subject:
    """Whose disks, and the store that their snapshot goes to."""

    guest: str
    store: str
    process: QemuProcess

    @property
    def owner(self) -> tuple[int, int]:
        """uid and gid of the guest's QEMU."""
        return self.process.uid, self.process.gid


@dataclass(frozen=True)
class Making:
    """A snapshot in the making. prefix: what all its names in QEMU begin with. folder: its own."""

    subject: Subject
    prefix: str
    folder: Path


@dataclass(frozen=True)
class Share:
    """A disk that a scheme is to capture. index: its place among all captured disks.

    estimate: the most that it can take in the store, bytes.
    """

    index: int
    disk: Disk
    estimate: int

    def file(self, kind: str) -> str:
        """Its image below the snapshot's folder."""
        return f"disks/{self.index}-{names.safe(self.disk.label)}.{kind}"


@dataclass(frozen=True)
class Image:
    """A disk of a snapshot as a file that QEMU opens below an overlay."""

    path: str
    format: str


class Scheme(ABC):
    """The disks of one snapshot that are captured in one way.

    prepare, commit, poll, finish come in this order; undo may come at any time. The guest stands
    still in commit alone, and for the transaction with the actions of all schemes right before it.
    """

    NAME: ClassVar[str]

    def __init__(self, making: Making, shares: Sequence[Share]) -> None:
        """Touches nothing yet."""
        self.making = making
        self.shares = shares

    @classmethod
    @abstractmethod
    def check(cls, subject: Subject, disks: Sequence[Disk]) -> None:
        """RefusedError when these disks cannot be captured like this. Touches nothing."""

    @classmethod
    @abstractmethod
    def estimate(cls, qmp: Connection, disks: Sequence[Disk]) -> dict[str, int]:
        """Node name -> the most that the disk can take in the store, bytes. Queries only."""

    @abstractmethod
    def prepare(self, qmp: Connection) -> None:
        """Everything that can be done before the guest stands still."""

    def actions(self) -> list[dict[str, Any]]:
        """What goes into the QMP transaction over all disks."""
        return []

    @abstractmethod
    def commit(self, qmp: Connection, timeout: float) -> None:
        """The guest is stopped, its writes are in its images: the disks of this instant."""

    def poll(self, qmp: Connection) -> tuple[bool, int, int]:
        """(all is done, bytes copied, bytes in all). Raises LivesnapError when a copy failed."""
        return True, 0, 0

    @abstractmethod
    def finish(self, qmp: Connection) -> list[dict[str, Any]]:
        """After poll() said all: durable, out of QEMU; disks[] of the manifest, in their order."""

    @abstractmethod
    def undo(self, qmp: Connection) -> str:
        """Take back what is outside of the snapshot's folder; '' or what went wrong."""

    @classmethod
    def image(cls, folder: Path, entry: Mapping[str, Any]) -> Image:
        """What a clone or restore reads, of a disk in a manifest that was checked. Pure."""
        return Image(str(folder / entry["file"]), entry["format"])


def entry(
    scheme: str, disk: Disk, file: str, kind: str, size: int, allocated: int
) -> dict[str, Any]:
    """disks[] of the manifest, of an image in the store. Pure."""
    return {
        "match": disk.label,
        "device": disk.device or None,
        "qdev": disk.qdev or None,
        "node": disk.node,
        "serial": disk.serial or None,
        "scheme": scheme,
        "file": file,
        "format": kind,
        "bytes": disk.virtual_bytes,
        "stored_bytes": allocated,
        "file_bytes": size,
        "source": {"file": disk.file, "format": disk.format},
    }
