# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rewriting of a domain's XML is told, and what it collects on its way. Pure."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Callable, Mapping


def random_mac() -> str:
    """An address of QEMU's and libvirt's own prefix, as libvirt gives them."""
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))


@dataclass(frozen=True)
class DomainPlan:
    """How a second domain is made. Paths are absolute.

    overlays: alias of a disk's device -> its overlay. variables: the copy of the firmware's
    variables, '' where the snapshot has none. folder: for empty disks. network: stay connected
    where the original is; otherwise no card leads anywhere.
    """

    name: str
    uuid: str
    about: str
    folder: str
    overlays: Mapping[str, str]
    variables: str = ""
    network: bool = False
    mac: Callable[[], str] = random_mac


@dataclass
class DomainFindings:
    """What came up. blockers: no clone can be made. warnings: one can, with a loss.

    blanks: (file of the original, empty disk as large as that). variables_format: of the copy.
    """

    blockers: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    matched: set[str] = field(default_factory=set)
    blanks: list[tuple[str, str]] = field(default_factory=list)
    variables_format: str = "raw"
