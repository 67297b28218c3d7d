# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of a snapshot: the options of module livesnap, checked. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Mapping, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils import _hooks
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.address import (
    Address,
    DomainAddress,
    SocketAddress,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import names, space
from ansible_collections.livesnap.qemu.plugins.module_utils._units import parse_size

#: Above this Windows' VSS gives up on a freeze.
DEADLINE_ADVISED = 9
#: The longest chain of copies that is made.
MAX_CHAIN = 64


@dataclass(frozen=True)
class SnapshotSpec:
    """All options of module livesnap, with its defaults. Times in seconds, sizes in bytes."""

    guest: str
    name: str
    store: str = "/var/lib/livesnap"
    qmp_socket: Optional[str] = None
    agent_socket: Optional[str] = None
    uri: str = "qemu:///system"
    when_off: str = "fail"
    memory: bool = True
    engine: str = "auto"
    allow_pause: bool = False
    disk_scheme: str = "auto"
    disks: list[dict[str, str]] = field(default_factory=list)
    disk_commands: Optional[dict[str, Any]] = None
    max_chain: int = 16
    when_chain_full: str = "refuse"
    foreign_bitmaps: str = "refuse"
    #: bytes per second; 0 is unlimited
    disk_bandwidth: int = 0
    disk_compression: str = "none"
    freeze: str = "auto"
    freeze_timeout: int = 5
    deadline: int = 9
    lock_timeout: int = 60
    timeout: int = 0
    #: snapshots at once, of the host and into the store; 0 is unlimited
    host_turns: int = 0
    store_turns: int = 0
    turn_timeout: int = 3600
    compression: str = "lz4"
    compression_level: Optional[int] = None
    #: bytes; 0 is auto
    staging: int = 0
    workers: int = 0
    #: bytes per second; 0 is unlimited
    bandwidth: int = 0
    #: see _store.space.reserved
    reserve: str = "0"
    ksm: str = "pause"
    #: see _hooks
    before: Optional[list[dict[str, Any]]] = None
    after: Optional[list[dict[str, Any]]] = None
    schedule: Optional[str] = None
    slot: Optional[str] = None
    #: None: leave what an existing snapshot has
    labels: Optional[list[str]] = None
    pinned: Optional[bool] = None
    #: path of livesnap-helper on this machine
    helper: str = ""
    #: The guest stands still only for whoever takes this snapshot: it counts as running.
    held: bool = False

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> SnapshotSpec:
        """From a module's params ('_livesnap_helper' becomes `helper`); raises LivesnapError."""
        known = {item.name for item in fields(cls)}
        values = {key: value for key, value in params.items() if key in known and value is not None}
        values["helper"] = params.get("_livesnap_helper") or values.get("helper") or ""
        staging = values.get("staging", 0)
        values["staging"] = 0 if staging in ("auto", "") else parse_size(staging, what="staging")
        for rate in ("bandwidth", "disk_bandwidth"):
            values[rate] = parse_size(values.get(rate, 0), what=rate)
        spec = cls(**values)
        spec.check()
        return spec

    @property
    def address(self) -> Address:
        """How the guest is reached: by its sockets, else through libvirt."""
        if self.qmp_socket is not None:
            return SocketAddress(self.qmp_socket, self.agent_socket)
        return DomainAddress(self.uri, self.guest)

    def check(self) -> None:
        """Everything that can be judged without looking at guest or store."""
        names.check(self.guest, "guest")
        names.check(self.name, "name")
        space.reserved(self.reserve, 0)
        if not self.store.startswith("/"):
            raise LivesnapError(f"store '{self.store}' is not an absolute path")
        if self.qmp_socket is None and self.agent_socket is not None:
            raise LivesnapError(
                f"guest '{self.guest}' has an agent_socket, and no qmp_socket",
                "give both, or neither for a libvirt domain, whose agent libvirt speaks to",
            )
        for what, value in (("qmp_socket", self.qmp_socket), ("agent_socket", self.agent_socket)):
            if value is not None and not value.startswith("/"):
                raise LivesnapError(f"{what} '{value}' is not an absolute path")
        for what, number, least in (
            ("freeze_timeout", self.freeze_timeout, 1),
            ("deadline", self.deadline, 2),
            ("lock_timeout", self.lock_timeout, 0),
            ("timeout", self.timeout, 0),
            ("host_turns", self.host_turns, 0),
            ("store_turns", self.store_turns, 0),
            ("turn_timeout", self.turn_timeout, 0),
            ("workers", self.workers, 0),
            ("max_chain", self.max_chain, 0),
        ):
            if number < least:
                raise LivesnapError(f"{what} '{number}' is too small", f"the least is {least}")
        if self.max_chain > MAX_CHAIN:
            raise LivesnapError(
                f"max_chain '{self.max_chain}' is too large",
                f"the most is {MAX_CHAIN}: QEMU has all images of a chain open",
            )
        if self.engine == "pause" and not self.allow_pause:
            raise LivesnapError(
                "engine 'pause' stops the guest for as long as its RAM is copied",
                "set allow_pause: true if it may stand still",
            )
        if self.freeze != "never" and self.freeze_timeout >= self.deadline:
            raise LivesnapError(
                f"freeze_timeout '{self.freeze_timeout}' leaves nothing of deadline"
                f" '{self.deadline}'",
                "the deadline counts from the freeze to the thaw: make it longer",
            )
        reachable = self.qmp_socket is None or self.agent_socket is not None
        _hooks.check(self.before, "before", reachable)
        _hooks.check(self.after, "after", reachable)
        for label in self.labels or []:
            names.check_label(label)
        for entry in self.disks:
            if not entry.get("match"):
                raise LivesnapError("an entry of disks has no 'match'")
        if self.disk_commands is not None:
            self._check_commands(self.disk_commands)

    def _check_commands(self, commands: Mapping[str, Any]) -> None:
        for name in ("create", "remove", "restore"):
            if not str(commands.get(name) or "").strip():
                raise LivesnapError(
                    f"disk_commands has no '{name}'", "docs/commands.md says what each has to do"
                )
        if not 1 <= commands["limit"] < self.deadline:
            raise LivesnapError(
                f"limit '{commands['limit']}' of disk_commands is not between 1 and deadline"
                f" '{self.deadline}'",
                "the guest stands still while 'create' runs",
            )

    def warnings(self) -> list[str]:
        """What is allowed, and probably not wanted."""
        if self.deadline > DEADLINE_ADVISED and self.freeze != "never":
            return [
                f"deadline {self.deadline} s is above {DEADLINE_ADVISED} s: a Windows guest gives"
                " up its freeze after 10 s"
            ]
        return []
