# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the steps of one run share: its plan, what it has made so far, its times and limits."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.link import (
    Aborted,
    Limit,
    Link,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.preflight import Plan
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.spec import SnapshotSpec
from ansible_collections.livesnap.qemu.plugins.module_utils._capture.capture import Capture
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import leftovers
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.captured import (
    CapturedDisks,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError, QmpError
from ansible_collections.livesnap.qemu.plugins.module_utils._guard import Guard
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.address import Address
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.agent_commands import (
    AgentCommands,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.process import QemuProcess
from ansible_collections.livesnap.qemu.plugins.module_utils._store import manifest, rundir
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store

#: The owner's own limit in the bracket comes before the guard's: its own undo gets its chance.
MARGIN = 0.15


@dataclass
class Run:
    """One snapshot in the making. Times are of the monotonic clock unless named otherwise."""

    spec: SnapshotSpec
    id: str
    process: QemuProcess
    store: Store
    rundir: rundir.RunDir
    link: Link
    address: Address
    qmp: Connection
    plan: Plan
    #: Whether disks may be captured while the guest runs on, frozen.
    early: bool
    started: str = ""
    started_at: float = field(default_factory=time.monotonic)
    folder: Optional[Path] = None
    capture: Optional[Capture] = None
    disks: Optional[CapturedDisks] = None
    guard: Optional[Guard] = None
    agent: Optional[AgentCommands] = None
    limit: Limit = field(default_factory=lambda: Limit(None, ""))
    #: We sent `stop` and have not seen the guest run since.
    stopped: bool = False
    #: A freeze was sent and no thaw has been confirmed since.
    frozen: bool = False
    frozen_at: float = 0.0
    froze: int = 0
    freeze_achieved: bool = False
    freeze_reason: Optional[str] = None
    #: From here on the death of the caller changes nothing.
    instant: bool = False
    #: The commands of 'after' were run.
    hooked: bool = False
    created: str = ""
    attempts: int = 0
    devices_fd: int = -1
    devices_file: str = ""
    ramblock: str = ""
    stop_event: Optional[float] = None
    disk_entries: list[dict[str, Any]] = field(default_factory=list)
    timings: dict[str, Optional[float]] = field(
        default_factory=lambda: dict.fromkeys(manifest.TIMINGS)
    )
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    #: As it is returned, once it is published.
    snapshot: Optional[dict[str, Any]] = None

    @property
    def prefix(self) -> str:
        """What all names of this snapshot inside QEMU begin with."""
        return leftovers.prefix_of(self.id)

    @property
    def log(self) -> str:
        """The file that helper and guard log to."""
        return str(self.rundir.path / "helper.log")

    def place(self) -> Path:
        """The folder in the making."""
        if self.folder is None:
            raise LivesnapError("the snapshot has no folder yet")
        return self.folder

    def check(self) -> None:
        """Raise when the run was asked to end, or its caller is gone before the instant."""
        if self.link.asked_to_end():
            raise Aborted(f"snapshot '{self.spec.name}' was aborted on request")
        if not self.instant and self.link.caller_gone():
            raise Aborted("the module that asked for the snapshot is gone")

    @contextlib.contextmanager
    def timed(self, name: str, factor: float = 1000.0) -> Iterator[None]:
        """Note how long the block took under a name of the manifest's timings."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.timings[name] = round((time.monotonic() - begun) * factor, 3)

    def progress(self, phase: str, percent: float, done: int = 0, total: int = 0) -> None:
        """For livesnap_info and the action plugin."""
        about = {"guest": self.spec.guest, "name": self.spec.name, "id": self.id}
        self.rundir.progress(about, phase, percent, done, total)

    def reconnect(self, timeout: float) -> Connection:
        """A living connection, the old one or a new one within the time."""
        if self.qmp.dead:
            self.qmp.close()
            fresh = self.address.connect(timeout)
            if fresh.peer_pid != self.process.pid or not self.process.alive():
                fresh.close()
                raise LivesnapError("the guest's QEMU is gone; another one has taken its place")
            self.qmp = fresh
        return self.qmp

    def until(self, seconds: float, what: Callable[[], None]) -> str:
        """Try an undo, again and again, for so many seconds; '' or what went wrong at last."""
        end = time.monotonic() + seconds
        while True:
            try:
                what()
                return ""
            except LivesnapError as err:
                problem = str(err)
                if time.monotonic() >= end or not self.process.alive():
                    return problem
                if isinstance(err, QmpError):
                    with contextlib.suppress(LivesnapError):
                        self.reconnect(1.0)
            time.sleep(0.1)
