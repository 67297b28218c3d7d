# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Engine qemu: QEMU's own `background-snapshot`, for guests that the helper cannot attach to.

A migration of the stopped guest, with that capability, into a file (spool.py): QEMU saves device
state, protects RAM, and writes RAM and then device state. Before 9.0 it lets the guest go on by
itself; from then on it leaves that to whoever stopped it. Up to 8.0 a migration that fails or is
cancelled leaves the guest's RAM protected and its monitor dead; so it is never cancelled, and the
file cannot fail. `livesnap-helper convert` makes RAM image and device
state of it.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._capture.capture import (
    Capture,
    CaptureConfig,
    start_request,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._capture.spool import (
    Spool,
    stream_bytes,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._capture.subject import Subject
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    HelperError,
    QmpCommandError,
    QmpConnectError,
    QmpError,
    TimedOutError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest import process
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.engine_checks import (
    Reason,
    uffd_reasons,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.facts import GuestFacts
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.mtree import parse_ramblocks
from ansible_collections.livesnap.qemu.plugins.module_utils._helper import HelperProcess
from ansible_collections.livesnap.qemu.plugins.module_utils._store import rundir

NAME = "qemu"
CAPABILITY = "background-snapshot"
#: From this version on QEMU does not let a guest go on that was stopped before.
_LEAVES_IT_STOPPED = (9, 0)
#: Capabilities that do not change what is in the stream.
_HARMLESS = ("events",)
_CAP_SYS_PTRACE = 19
_ACTIVE = ("setup", "active", "device", "wait-unplug", "cancelling", "pre-switchover")
#: How often QEMU is asked in the pause, and later; how long it gets to end by itself. Seconds.
_POLL_PAUSED, _POLL, _END_LIMIT = 0.005, 0.25, 60.0


def reasons(subject: Subject) -> list[Reason]:
    """Why this engine must stand aside; an empty list: it can work."""
    facts = subject.facts
    return [*uffd_reasons(facts), *_own_reasons(facts), *subject.seen[NAME], *_asked(subject)]


def _own_reasons(facts: GuestFacts) -> list[Reason]:
    """What follows from how QEMU goes about it. Pure."""
    found = []
    if facts.domain_xml is not None:
        found.append(
            Reason("libvirt", "QEMU would migrate, and may let it go on, behind libvirt's back")
        )
    if not facts.running and facts.status == "paused" and _goes_on(facts):
        found.append(Reason("paused", "QEMU would let the guest go on, and it is paused"))
    return found


def _goes_on(facts: GuestFacts) -> bool:
    """Whether QEMU lets a guest go on that was stopped before. Pure."""
    return _version(facts) < _LEAVES_IT_STOPPED


def _asked(subject: Subject) -> list[Reason]:
    """What QEMU itself says: by queries, and if it may be touched by switching it on and off."""
    qmp = subject.qmp
    if qmp is None or not subject.touch:
        found = _foreseen(subject)
        if qmp is None or found:
            return found
    try:
        states = {
            str(each["capability"]): bool(each["state"])
            for each in qmp.execute("query-migrate-capabilities")
        }
        if CAPABILITY not in states:
            return [Reason("background_snapshot", "this QEMU has no background-snapshot")]
        on = sorted(name for name, state in states.items() if state and name not in _HARMLESS)
        if on:
            return [Reason("capabilities", f"migration capabilities are on: {', '.join(on)}")]
        if qmp.execute("query-migrate-parameters").get("tls-creds"):
            return [Reason("tls", "QEMU is told to encrypt migrations (tls-creds)")]
        if subject.touch:
            switch(qmp, True)
            switch(qmp, False)
    except QmpCommandError as err:
        return [Reason("background_snapshot", f"QEMU refuses it: {err.desc}")]
    return []


def _foreseen(subject: Subject) -> list[Reason]:
    """What it would most likely say. From 8.0 on it has /dev/userfaultfd as well, if it may."""
    if _version(subject.facts) >= (8, 0) or may_userfaultfd(subject.pid):
        return []
    return [
        Reason(
            "background_snapshot",
            "QEMU runs without privileges and vm.unprivileged_userfaultfd is 0: it would refuse"
            " background-snapshot",
        )
    ]


def _version(facts: GuestFacts) -> tuple[int, ...]:
    return tuple(int(part) for part in facts.qemu_version.split(".")[:2])


def may_userfaultfd(pid: int) -> bool:
    """Whether a process may call userfaultfd(2) for faults of the kernel, too (its man page)."""
    try:
        with open("/proc/sys/vm/unprivileged_userfaultfd", encoding="ascii") as file:
            if file.read().strip() != "0":
                return True
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        return bool(int(fields["CapEff"], 16) >> _CAP_SYS_PTRACE & 1)
    except (OSError, KeyError, ValueError):
        return True


def switch(qmp: Connection, on: bool) -> None:
    """The capability on or off; QmpCommandError with QEMU's words."""
    qmp.execute(
        "migrate-set-capabilities", {"capabilities": [{"capability": CAPABILITY, "state": on}]}
    )


def status_of(qmp: Connection) -> dict[str, Any]:
    """What QEMU says of the migration; `status` is there always."""
    said = dict(qmp.execute("query-migrate"))
    said.setdefault("status", "none")
    return said


def put_back(qmp: Connection, limit: float) -> bool:
    """The capability off, when a migration with it has ended by itself; whether it was on.

    Never cancels. TimedOutError when it takes longer than so many seconds.
    """
    states = {
        str(each["capability"]): bool(each["state"])
        for each in qmp.execute("query-migrate-capabilities")
    }
    if not states.get(CAPABILITY):
        return False
    end = time.monotonic() + limit
    while status_of(qmp)["status"] in _ACTIVE:
        if time.monotonic() > end:
            raise TimedOutError(
                f"QEMU's background snapshot did not end within {limit:g} s",
                "it must not be cancelled: wait until query-migrate says completed",
            )
        time.sleep(_POLL)
    switch(qmp, False)
    return True


class QemuCapture(Capture):
    """Lets QEMU write a stream, and makes a snapshot of it."""

    saves_devices = True

    def __init__(self, config: CaptureConfig, facts: GuestFacts) -> None:
        """Nothing happens yet."""
        super().__init__(config, facts)
        self.resumes = _goes_on(facts)
        self._spool: Optional[Spool] = None
        self._fd_name = ""
        self._switched = False
        self._began = 0.0

    def attach(self, qmp: Connection, fd_name: str, timeout: float) -> None:
        """Take room for the stream, and give it to QEMU. Nothing is written."""
        ram = sum(parse_ramblocks(self._facts.ramblock).values())
        folder = Path(self._config.image).parent
        self._spool = Spool(stream_bytes(ram), self._config.staging, folder)
        # Noted first: a refusal that comes too late is put back as well.
        self._switched = True
        switch(qmp, True)
        self._fd_name = fd_name
        qmp.getfd(fd_name, self._spool.fd)

    def prearm(self, timeout: float) -> None:
        """Nothing: QEMU protects RAM itself, in arm()."""

    def protect(self, ramblock: str, timeout: float) -> None:
        """QEMU knows its memory."""

    def arm(self, timeout: float) -> bool:
        """The instant: device state saved, RAM protected, and the guest goes on or may do so."""
        qmp = self._config.connect(2.0)
        self._began = time.monotonic()
        end = self._began + timeout
        qmp.execute("migrate", {"uri": f"fd:{self._fd_name}"}, timeout)
        self._fd_name = ""
        while not self._is_armed(qmp):
            if time.monotonic() > end:
                raise TimedOutError(f"QEMU did not protect its RAM within {timeout:g} s")
            time.sleep(_POLL_PAUSED)
        self.arm_ms = (time.monotonic() - self._began) * 1000
        self.armed = True
        return True

    def _is_armed(self, qmp: Connection) -> bool:
        """`active` alone says nothing. The first page is written when all of RAM is protected, and
        QEMU has put the guest's state back, by the answer to this question at the latest."""
        said = status_of(qmp)
        self._not_failed(said)
        if self.resumes:
            return bool(qmp.execute("query-status")["running"])
        ram = said.get("ram", {})
        return int(ram.get("normal", 0)) + int(ram.get("duplicate", 0)) > 0

    @staticmethod
    def _not_failed(said: dict[str, Any]) -> None:
        if said["status"] in ("failed", "cancelled"):
            why = said.get("error-desc", said["status"])
            raise HelperError(f"QEMU's background snapshot failed: {why}", word="torn")

    def poll(self, wait: float) -> bool:
        """Until QEMU has written all of it, ask now and then; then until it is converted."""
        if self.released is None:
            self._ask(wait)
            return False
        if not super().poll(wait):
            return False
        if self.done is not None and self._spool is not None:
            self.done.setdefault("staging_bytes", self._spool.size * self._spool.in_memory)
        return True

    def _ask(self, wait: float) -> None:
        begun = time.monotonic()
        try:
            qmp = self._config.connect(2.0)
            said = status_of(qmp)
            self._not_failed(said)
            ram = said.get("ram", {})
            self.progress = {
                "done_bytes": int(ram.get("total", 0)) - int(ram.get("remaining", 0)),
                "total_bytes": int(ram.get("total", 0)),
            }
            if said["status"] == "completed":
                switch(qmp, False)
                self._switched = False
                self._convert()
            elif qmp.exclusive and begun - self._began > 2.0:
                # Others need the socket, too.
                qmp.close()
        except QmpConnectError as err:
            if err.kind != "busy":
                raise
        if self.released is None:
            time.sleep(max(0.0, wait - (time.monotonic() - begun)))

    def _convert(self) -> None:
        if self._spool is None:
            raise AssertionError
        self.released = {"event": "released", "protected_s": time.monotonic() - self._began}
        self._helper = HelperProcess(self._config.helper, ["convert"], self._config.log)
        self._helper.send(
            {
                **start_request(self._config, self._facts),
                "spool": self._spool.path,
                "spool_bytes": self._spool.written(),
                "devices": self._devices(),
            }
        )

    def _devices(self) -> str:
        return os.path.join(os.path.dirname(self._config.image), "devices")

    def stopped(self) -> str:
        """The converter, if a signal has stopped it."""
        stopped = self._helper is not None and rundir.state_of(self._helper.pid) == "T"
        return "converter" if stopped else ""

    def finish(self) -> None:
        """After `done`: wait for its end."""
        super().finish()
        if self._spool is not None:
            self._spool.close()

    def abort(self, timeout: float = 5.0) -> None:
        """Throw away what there is. A migration that runs is left to end by itself, which the
        guest does not feel; LivesnapError when the capability could not be put back yet."""
        if self._spool is None:
            return
        if self._helper is not None:
            self._helper.end(min(timeout, 1.0))
        self.armed = False
        for path in (self._config.image, self._devices()):
            with contextlib.suppress(OSError):
                os.unlink(path)
        self._spool.close()
        if not self._switched or not process.is_alive(self._config.pid, self._config.start_time):
            return
        qmp = self._config.connect(2.0)
        if self._fd_name:
            with contextlib.suppress(QmpError):
                qmp.closefd(self._fd_name)
            self._fd_name = ""
        # A guest that stands still has to be let go on first: recovery does the rest.
        put_back(qmp, timeout if timeout < 2.0 else _END_LIMIT)
        self._switched = False


#: What carries it out.
CAPTURE = QemuCapture
