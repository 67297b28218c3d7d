# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rewriting of a command line is told, and what it collects on its way. Pure."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import Optional


@dataclass(frozen=True)
class DiskImage:
    """A disk of the snapshot: what the guest's QEMU called it, and what the new one opens.

    Empty names match nothing. source: the file that the original has open; below: what that stands
    on, one of which it may have been started with.
    """

    device: str
    node: str
    qdev: str
    source: str
    overlay: str
    below: tuple[str, ...] = ()


@dataclass(frozen=True)
class MappedRam:
    """Main RAM as a private mapping of an uncompressed image."""

    block: str
    image: str
    bytes: int


@dataclass(frozen=True)
class Plan:
    """How to start a second QEMU. Paths are absolute.

    folder: for its sockets; also its working directory. disk_folder: for empty disks. machine: the
    versioned type, '' leaves it. keep_taps: leave tap devices as they are (when the original is
    gone). network: keep user-mode networks (otherwise every backend is isolated).
    """

    folder: str
    disk_folder: str = ""
    name: str = ""
    machine: str = ""
    disks: tuple[DiskImage, ...] = ()
    ram: Optional[MappedRam] = None
    incoming: str = ""
    stopped: bool = True
    network: bool = False
    keep_taps: bool = False

    def path(self, socket: str) -> str:
        """The absolute path of a socket of the new command line; '' stays.

        There it is relative to QEMU's working directory: a whole path may be too long for a socket
        (107 bytes), and its user may not be let through all of the folders above.
        """
        return os.path.join(self.folder, socket) if socket else ""


@dataclass(frozen=True)
class TapNeed:
    """A network backend that has to be a tap device, given as `queues` descriptors.

    A card that had a tap negotiated the virtio header with it, and refuses to be restored on a
    backend without (virtio_net_load). `marker` stands in the argv for the descriptors.
    """

    id: str
    queues: int
    marker: str


@dataclass
class Findings:
    """What came up. blockers: this guest cannot be brought back. warnings: it can, with a loss."""

    blockers: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    taps: list[TapNeed] = field(default_factory=list)
    blank_disks: list[str] = field(default_factory=list)
    matched: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    agent_socket: str = ""
    consoles: list[str] = field(default_factory=list)

    def block(self, message: str) -> None:
        """Add a blocker once."""
        if message not in self.blockers:
            self.blockers.append(message)


def short_hash(*parts: str) -> str:
    """Eight hexadecimal digits of some names."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]
