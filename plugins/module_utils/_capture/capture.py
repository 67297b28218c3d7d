# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drives `livesnap-helper capture`: what all engines have in common that it carries out.

States: new -> attached -> protected -> armed -> released -> done. Before `armed` the end of our
pipe makes the helper undo everything; after it, it carries on alone. An engine that holds the guest
is not past the instant before `released`: until then that end undoes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Callable, Mapping, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    HelperError,
    LivesnapError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest import process
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.facts import GuestFacts
from ansible_collections.livesnap.qemu.plugins.module_utils._helper import (
    Event,
    HelperProcess,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import rundir

IMAGE = "ram.lsnap"


@dataclass(frozen=True)
class CaptureConfig:
    """What `start` says, besides what the guest's facts say."""

    helper: str
    id: str
    guest: str
    pid: int
    start_time: int
    image: str
    compression: str
    level: int
    staging: int
    workers: int
    bandwidth: int
    ksm: str
    log: str
    #: A living connection to the guest's QEMU, within so many seconds.
    connect: Callable[[float], Connection]


class Capture(ABC):
    """One capture of a guest's RAM."""

    #: Whether the guest has to stand still from protect() until copied().
    holds = False
    #: Whether arm() also saves device state.
    saves_devices = False
    #: Whether arm() also lets the guest go on.
    resumes = False

    def __init__(self, config: CaptureConfig, facts: GuestFacts) -> None:
        """Nothing happens yet."""
        self._config = config
        self._facts = facts
        self._helper: Optional[HelperProcess] = None
        self.keeper = 0
        self.keeper_start_time = 0
        self.uffd = -1
        self.progress_fd = -1
        self.writer = 0
        self.writer_start_time = 0
        self.armed = False
        self.progress: Event = {}
        self.released: Optional[Event] = None
        self.done: Optional[Event] = None
        self.arm_ms = 0.0

    @abstractmethod
    def attach(self, qmp: Connection, fd_name: str, timeout: float) -> None:
        """Start the helper, which makes ready. `fd_name`: of what QEMU may be given meanwhile."""

    def _start(self, how: Mapping[str, Any], timeout: float) -> None:
        """The first request, with what the engine adds to it."""
        self._helper = HelperProcess(self._config.helper, ["capture"], self._config.log)
        self._helper.send({**start_request(self._config, self._facts), **how})
        event = self._helper.wait_for("attached", timeout)
        self.keeper = int(event["keeper"])
        self.keeper_start_time = process.start_time(self.keeper) or 0
        self.writer = int(event.get("writer", 0))
        self.writer_start_time = process.start_time(self.writer) or 0 if self.writer else 0
        self.uffd = int(event["uffd"])
        self.progress_fd = int(event["progress"])

    def _running(self) -> HelperProcess:
        if self._helper is None:
            raise HelperError("the capture was not started")
        return self._helper

    @abstractmethod
    def prearm(self, timeout: float) -> None:
        """While the guest runs: what would take long in the pause."""

    def protect(self, ramblock: str, timeout: float) -> None:
        """Protect all RAM, if it is to be. The guest is stopped; `ramblock` was read since."""
        helper = self._running()
        helper.send({"request": "protect", "ramblock": ramblock})
        self.arm_ms += float(helper.wait_for("protected", timeout, self._other)["ms"])

    def arm(self, timeout: float) -> bool:
        """From here on RAM is saved. False: it was written since protect()."""
        helper = self._running()
        helper.send({"request": "arm"})
        event = helper.wait_for("armed", timeout, self._other)
        self.arm_ms += float(event["ms"])
        self.armed = bool(event["clean"])
        return self.armed

    def _other(self, event: Event) -> None:
        name = event.get("event")
        if name == "progress":
            self.progress = event
        elif name == "released":
            self.released = event
        elif name == "done":
            self.done = event
        elif name == "aborted":
            raise HelperError("the capture of RAM was aborted", word="aborted", reason="aborted")

    def poll(self, wait: float) -> bool:
        """Take what the helper says, for so many seconds at most. True once the image is whole.

        Raises HelperError with its words when the capture failed.
        """
        return self._hear(lambda: self.done is not None, wait)

    def copied(self, wait: float) -> bool:
        """The same until all of RAM is copied, and the guest may change it: it is stored later."""
        return self._hear(lambda: self.released is not None, wait)

    def _hear(self, enough: Callable[[], bool], wait: float) -> bool:
        deadline = time.monotonic() + wait
        while not enough():
            event = self._running().event(max(0.0, deadline - time.monotonic()))
            if event is None:
                return False
            self._other(event)
        return True

    def stopped(self) -> str:
        """Which of its processes a signal has stopped; '' while both may work."""
        for name, pid in (("keeper", self.keeper), ("writer", self.writer)):
            if rundir.state_of(pid) == "T":
                return name
        return ""

    def finish(self) -> None:
        """After `done`: wait for its end."""
        if self._helper is not None:
            code = self._helper.end(10.0)
            if code != 0:
                raise HelperError(
                    f"livesnap-helper ended with code {code} after it was done",
                    word="internal",
                )

    def abort(self, timeout: float = 5.0) -> None:
        """Release the guest and throw the image away, in every state; may be called again.

        Asked first; then the keeper is killed, which releases the guest too.
        """
        if self._helper is None:
            return
        with contextlib.suppress(LivesnapError):
            self._helper.send({"request": "abort"}, 1.0)
        self._helper.end(timeout)
        kill(self.keeper, self.keeper_start_time)
        kill(self.writer, self.writer_start_time)
        with contextlib.suppress(OSError):
            os.unlink(self._config.image)
        self.armed = False


def start_request(config: CaptureConfig, facts: GuestFacts) -> dict[str, Any]:
    """What the helper's first request says whatever the engine is. Pure."""
    return {
        "request": "start",
        "id": config.id,
        "guest": config.guest,
        "pid": config.pid,
        "start_time": config.start_time,
        "ramblock": facts.ramblock,
        "gpa": gpa_list(facts),
        "machine": facts.machine,
        "qemu_version": facts.qemu_version,
        "image": config.image,
        "compression": config.compression,
        "level": config.level,
        "staging": config.staging,
        "workers": config.workers,
        "bandwidth": config.bandwidth,
        "ksm": config.ksm,
    }


def kill(pid: int, started: int) -> bool:
    """SIGKILL to that very process; whether it was there."""
    if pid <= 1 or not started or not process.is_alive(pid, started):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def gpa_list(facts: GuestFacts) -> list[dict[str, Any]]:
    """Where RAM lies in guest-physical addresses, as helper and manifest want it. Pure."""
    return [
        {"gpa": each.gpa, "block": each.block, "offset": each.offset, "length": each.length}
        for each in facts.gpa
    ]
