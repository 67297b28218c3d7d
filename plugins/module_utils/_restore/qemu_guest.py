# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest of its own QMP socket: its QEMU is told to quit, and started again as it was started."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Mapping, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils import _scope
from ansible_collections.livesnap.qemu.plugins.module_utils._clone import launch
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    QmpConnectError,
    QmpDisconnected,
    RefusedError,
    RestoreError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.address import SocketAddress
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.process import (
    QemuProcess,
    unit_of,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._restore import checks, command
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.guest import (
    END_LIMIT,
    Guest,
    Noted,
    State,
)

KIND = "qemu"


@dataclass(frozen=True)
class Start:
    """How a QEMU was started. log: where its output goes; '' is what the restore chooses."""

    argv: list[str]
    cwd: str
    exe: str
    uid: int
    gid: int
    groups: Optional[list[int]]
    umask: int
    env: dict[str, str]
    cgroup: str
    log: str

    @classmethod
    def of_process(cls, process: QemuProcess) -> Start:
        """Of one that runs."""
        base = f"/proc/{process.pid}"
        try:
            with open(f"{base}/environ", "rb") as raw:
                words = [os.fsdecode(word) for word in raw.read().split(b"\0") if b"=" in word]
            with open(f"{base}/status", encoding="utf-8", errors="replace") as file:
                status = dict(line.split(":", 1) for line in file if ":" in line)
            log = os.readlink(f"{base}/fd/1")
        except OSError:
            raise RestoreError(f"process {process.pid} ended while it was read") from None
        return cls(
            argv=list(process.argv),
            cwd=process.cwd,
            exe=checks.program_of(process.exe),
            uid=process.uid,
            gid=process.gid,
            groups=list(process.groups),
            umask=int(status["Umask"], 8),
            env=dict(word.split("=", 1) for word in words),
            cgroup=process.cgroup,
            log=log if os.path.isfile(log) else "",
        )

    @classmethod
    def of_manifest(cls, facts: Mapping[str, Any], now: Optional[Start]) -> Start:
        """Of the snapshot's; what that does not say is as it is `now`."""
        return cls(
            argv=facts["argv"],
            cwd=facts["cwd"],
            exe=checks.program_of(facts["exe"]),
            uid=facts["uid"],
            gid=facts["gid"],
            groups=now.groups if now is not None and now.uid == facts["uid"] else None,
            umask=now.umask if now is not None else 0o022,
            env=now.env if now is not None else launch.CLEAN_ENV,
            cgroup=now.cgroup if now is not None else facts["cgroup"],
            log=now.log if now is not None else "",
        )

    def same_machine(self, other: Start) -> bool:
        """Whether both start the same machine."""
        return command.again(self.argv, False) == command.again(other.argv, False)


def start_of(about: Optional[Mapping[str, Any]]) -> Optional[Start]:
    """From asdict()."""
    if about is None:
        return None
    return Start(**{each.name: about[each.name] for each in fields(Start)})


class QemuGuest(Guest):
    """Started as `then`, the snapshot's, and as `now`, if it runs."""

    def __init__(
        self,
        address: SocketAddress,
        name: str,
        helper: str,
        private: Path,
        then: Start,
        now: Optional[Start],
    ) -> None:
        """`now` is None for a guest that is off."""
        super().__init__(address, name, helper, private)
        self.sockets = address
        self.then = then
        self.now = now

    @classmethod
    def from_noted(cls, about: Mapping[str, Any], name: str, helper: str, private: Path) -> Guest:
        """From noted()."""
        then = start_of(about["then"])
        if then is None:
            raise AssertionError
        address = SocketAddress(about["qmp_socket"], about["agent_socket"])
        return cls(address, name, helper, private, then, start_of(about["now"]))

    def noted(self) -> dict[str, Any]:
        now = None if self.now is None else asdict(self.now)
        return {"kind": KIND, **self.sockets.noted(), "then": asdict(self.then), "now": now}

    def check(self) -> None:
        """Refuse what cannot be started again as it was started."""
        starts = [self.then] if self.now is None else [self.then, self.now]
        for start in starts:
            unit = unit_of(start.cgroup)
            if unit.endswith(".service"):
                raise RefusedError(
                    f"guest '{self.name}' belongs to systemd unit '{unit}', which would take"
                    " the end of its QEMU for a failure, and does not start it from a snapshot",
                    "stop the unit and make a clone of the snapshot",
                    "unit",
                )
            found = command.problems(start.argv)
            if found:
                raise RefusedError(
                    f"guest '{self.name}' cannot be started again as it was: {'; '.join(found)}",
                    "make a clone of the snapshot instead",
                    "descriptors",
                )

    def prepare(self, state: State) -> None:
        """Nothing: the stream goes from the store to QEMU by a pipe."""

    def end(self) -> None:
        process = self.address.process()
        with self.address.connect() as qmp:
            with contextlib.suppress(QmpDisconnected):
                qmp.execute("quit")
        deadline = time.monotonic() + END_LIMIT
        while process.alive():
            if time.monotonic() > deadline:
                raise RestoreError(
                    f"QEMU (pid {process.pid}) did not end within {END_LIMIT:g} s of 'quit'",
                    "storage under the guest's disks hangs",
                )
            time.sleep(0.02)

    def bring(self, state: State, noted: Noted) -> list[str]:
        return self._start(self.then, state, noted)

    def bring_back(self, state: Optional[State], noted: Noted) -> list[str]:
        return self._start(self.now or self.then, state, noted)

    def kill(self, brought: list[int]) -> None:
        if brought:
            launch.end(*brought)
        try:
            process = self.address.process()
        except QmpConnectError:
            return
        # It may have been started right before its maker died.
        found = Start.of_process(process)
        if not command.incoming(found.argv) or not found.same_machine(self.then):
            raise RestoreError(
                f"guest '{self.name}' runs (pid {process.pid}), and was not started by the restore",
                "end it first: what it writes is on images that go when the old ones are put back",
            )
        launch.end(process.pid, process.start_time)

    def has_no_agent(self, connection: Connection) -> bool:
        return self.sockets.agent_socket is None

    def _start(self, start: Start, state: Optional[State], noted: Noted) -> list[str]:
        root = command.drops_privileges(start.argv)
        running = launch.start(
            command.again(start.argv, state is not None),
            launch.Setting(
                exe=start.exe,
                cwd=start.cwd,
                uid=0 if root else start.uid,
                gid=0 if root else start.gid,
                log=start.log or str(self.private / "qemu.log"),
                export_log=str(self.private / "export.log"),
                groups=None if root or start.groups is None else tuple(start.groups),
                umask=start.umask,
                env=start.env,
                name=f"guest '{self.name}'",
            ),
        )
        try:
            noted(running.pid, running.start_time)
            if state is not None:
                export = [self.helper, "export", "--format", "qemu", str(state.folder), "-"]
                launch.feed(running, export)
            _scope.join(running.pid, start.cgroup, f"livesnap restore of {self.name}")
            with launch.connect(running, self.sockets.qmp_socket) as qmp:
                if qmp.peer_pid != running.pid:
                    raise RestoreError(
                        f"QMP socket '{self.sockets.qmp_socket}' belongs to process"
                        f" {qmp.peer_pid}, and not to the QEMU that was started"
                    )
                if state is None:
                    return []
                launch.wait_loaded(running, qmp, state.bytes)
                return self.woken(qmp, state)
        except BaseException:
            running.kill()
            raise
