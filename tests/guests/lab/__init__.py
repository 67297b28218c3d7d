# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The laboratory: real test guests, and oracles that judge what was taken of them."""

from __future__ import annotations

from . import kept
from .agent import AgentClient, AgentError
from .domain import Domain, DomainReach
from .filesystem import FileSystem
from .guest import SANDBOX, DiskSpec, Guest, LabError, Options
from .images import images, kvm_works
from .incoming import Incoming
from .libvirtd import Libvirtd
from .oracle import DiskState, RamState, disk_state, judge, ram_state
from .qmp import QmpClient, QmpError
from .reach import Reach, Witnessed

__all__ = [
    "SANDBOX",
    "AgentClient",
    "AgentError",
    "DiskSpec",
    "DiskState",
    "Domain",
    "DomainReach",
    "FileSystem",
    "Guest",
    "Incoming",
    "LabError",
    "Libvirtd",
    "Options",
    "QmpClient",
    "QmpError",
    "RamState",
    "Reach",
    "Witnessed",
    "disk_state",
    "images",
    "judge",
    "kept",
    "kvm_works",
    "ram_state",
]
