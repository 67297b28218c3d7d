# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a scheme is: a way to capture disks, from the look beforehand to what comes back of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Mapping, Optional, Sequence

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
    #: Option disk_commands, as it was given.
    commands: Optional[Mapping[str, Any]] = None
    #: Option max_chain.
    max_chain: int = 0
    #: Option when_chain_full.
    when_chain_full: str = "refuse"
    #: Option disk_bandwidth: bytes a second for all disks together, 0 is unlimited.
    bandwidth: int = 0
    #: Option disk_compression.
    compression: str = "none"
    #: Option foreign_bitmaps.
    foreign_bitmaps: str = "refuse"

    @property
    def owner(self) -> tuple[int, int]:
        """uid and gid of the guest's QEMU."""
        return self.process.uid, self.process.gid


@dataclass(frozen=True)
class Making:
    """A snapshot in the making. prefix: what all its names in QEMU begin with. folder: its own.

    whose: id, guest and name, as its manifest will have them, and how the guest is reached.
    """

    subject: Subject
    prefix: str
    folder: Path
    whose: Mapping[str, Any]


@dataclass(frozen=True)
class Share:
    """A disk that a scheme is to capture. index: its place among all captured disks."""

    index: int
    disk: Disk

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

    prepare, commit_frozen, commit, set_speed, poll, finish come in this order; undo may come at any
    time. The guest stands still in commit alone, and for the transaction with the actions of all
    schemes right before it.
    """

    NAME: ClassVar[str]
    #: What everybody who takes such a snapshot has to know.
    WARNING: ClassVar[str] = ""

    def __init__(self, making: Making, shares: Sequence[Share]) -> None:
        """Touches nothing yet."""
        self.making = making
        self.shares = shares
        #: Whether commit_frozen has something to do.
        self.goes_first = False

    @classmethod
    def warning(cls, disks: Sequence[Disk]) -> str:
        """WARNING, where it is true of one of these disks; ''. Pure."""
        return cls.WARNING

    @classmethod
    @abstractmethod
    def check(cls, subject: Subject, qmp: Connection, disks: Sequence[Disk]) -> None:
        """RefusedError when these disks cannot be captured like this. Queries only."""

    @classmethod
    @abstractmethod
    def estimate(
        cls, subject: Subject, qmp: Connection, disks: Sequence[Disk]
    ) -> dict[str, int]:
        """Node name -> the most that the disk can take in the store, bytes. Queries only."""

    @abstractmethod
    def prepare(self, qmp: Connection) -> None:
        """Everything that can be done before the guest stands still."""

    def commit_frozen(self, qmp: Connection, timeout: float) -> None:  # noqa: B027 - most wait
        """The guest runs, and its file systems are frozen: what takes long can be done already, if
        commit() then proves that nothing was written since, and raises FrozenWriteError if it was.
        """

    def actions(self) -> list[dict[str, Any]]:
        """What goes into the QMP transaction over all disks."""
        return []

    @abstractmethod
    def commit(self, qmp: Connection, timeout: float) -> None:
        """The guest is stopped, its writes are in its images: the disks of this instant."""

    def set_speed(self, qmp: Connection) -> None:  # noqa: B027 - most copy nothing
        """The guest runs on: copies get their speed."""

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
    def image(cls, folder: Path, entry: Mapping[str, Any]) -> Optional[Image]:
        """The file that is read later; None if it has to be fetched first. Pure."""
        return Image(str(folder / entry["file"]), entry["format"])


class Outside(Scheme):
    """What it captures lies elsewhere than in the snapshot's folder, and takes nothing there.

    It is discarded with the folder, by what entries() said before the pause.
    """

    @classmethod
    def estimate(
        cls, subject: Subject, qmp: Connection, disks: Sequence[Disk]
    ) -> dict[str, int]:
        """Nothing in the store."""
        return dict.fromkeys((disk.node for disk in disks), 0)

    @abstractmethod
    def entries(self) -> list[dict[str, Any]]:
        """disks[] of the manifest, with all that is wanted later."""

    def prepare(self, qmp: Connection) -> None:
        """Nothing: it is made in the pause."""

    def finish(self, qmp: Connection) -> list[dict[str, Any]]:
        """As it was noted."""
        return self.entries()

    def undo(self, qmp: Connection) -> str:
        """Nothing: QEMU has nothing of it."""
        return ""

    @classmethod
    @abstractmethod
    def discard(cls, whose: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
        """Remove what there is of a disk; it may be half made, or not there at all."""

    @classmethod
    @abstractmethod
    def fetch(
        cls, whose: Mapping[str, Any], entry: Mapping[str, Any], path: str, limit: float
    ) -> None:
        """Copy a disk into an empty file, in the format of its entry. Seconds."""

    @classmethod
    def image(cls, folder: Path, entry: Mapping[str, Any]) -> Optional[Image]:
        """None. Pure."""
        return None


def entry(
    scheme: str, disk: Disk, file: Optional[str], kind: str, size: int = 0, allocated: int = 0
) -> dict[str, Any]:
    """disks[] of the manifest; file, size and what is allocated are those of the store. Pure."""
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
        "source": {"file": disk.file, "format": disk.format, "below": list(disk.below)},
        "base": None,
        "full_because": None,
        "covered": None,
        "overlay": None,
    }
