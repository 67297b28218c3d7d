# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Level drill: an isolated clone goes on from the snapshot, is asked how it is, and is gone again.

It has no network and overlays of its own. What the guest does to itself (a reset, a panic that is
told, power off) leaves it standing, so that it is seen however late one looks.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from typing import Any, Mapping

from ansible_collections.livesnap.qemu.plugins.module_utils._clone import launch
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.clone import (
    CloneRequest,
    create_clone,
    read_source,
    remove_clone,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.source import Source
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    AgentCommandError,
    AgentError,
    CloneError,
    HelperError,
    LivesnapError,
    QmpError,
    RefusedError,
    TimedOutError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest import process, waking
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.address import (
    Address,
    address_of,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.agent_commands import (
    AgentCommands,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._verify import room
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.guardian import Guardian
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.request import (
    BadSnapshot,
    Check,
    Command,
)

#: How long the agent is waited for, and how far the clock may be off. Seconds.
_AGENT_LIMIT, _CLOCK_LIMIT = 30.0, 5.0
#: The guest has to go on so long after all was asked, seconds.
_SETTLE, _POLL = 2.0, 0.1


def check(about: Check) -> dict[str, Any]:
    """Evidence; BadSnapshot says what did not work. RefusedError where no drill can be made."""
    request = CloneRequest(
        store=about.request.store,
        guest=about.request.guest,
        name=f"drill-{os.getpid()}",
        snapshot=about.request.snapshot,
        helper=about.request.helper,
        drill=True,
    )
    source = read_source(request)
    cpus = int(about.fields["guest_facts"]["vcpus"])
    room.take(about, source.image_bytes + room.OVERHEAD, cpus)
    try:
        with Guardian(request.place, float(about.request.drill_timeout)) as guardian:
            try:
                return _drill(about, request, source)
            except BadSnapshot as err:
                _blame_server(about, request)
                if not guardian.expired:
                    raise
                raise BadSnapshot(
                    f"the drill was not over within {about.request.drill_timeout} s; it was at:"
                    f" {err.msg}"
                ) from None
            finally:
                remove_clone(request)
    finally:
        room.give_back(about)


def _blame_server(about: Check, request: CloneRequest) -> None:
    """HelperError if the clone ended for want of its RAM, which says nothing of the snapshot."""
    state = request.place.state()
    if state is None or not os.path.exists(request.place.server_log):
        return
    deadline = time.monotonic() + launch.SERVER_END
    while any(process.is_alive(*each) for each in state["feeders"]):
        # One ends a moment after the other.
        if process.is_alive(state["pid"], state["start_time"]) or time.monotonic() > deadline:
            return
        time.sleep(_POLL / 10)
    error = launch.server_error(launch.tail(request.place.server_log))
    if error is not None and error.word != "torn":
        error.msg = f"the drill of {about.request.subject} was cut short: {error.msg}"
        raise error from None


def _drill(about: Check, request: CloneRequest, source: Source) -> dict[str, Any]:
    begun = time.monotonic()
    about.tell("drill", 0.0)
    try:
        made = create_clone(request)
    except (RefusedError, TimedOutError):
        raise
    except HelperError as err:
        if err.word != "torn":
            raise
        raise BadSnapshot(f"it does not come back: {err.msg}") from None
    except (CloneError, QmpError, AgentError) as err:
        raise BadSnapshot(f"it does not come back: {err.msg}") from None
    except LivesnapError as err:
        raise BadSnapshot(f"it came back, and {err.msg}") from None
    about.tell("drill", 50.0)
    running = time.monotonic() - begun
    address = address_of({**made, "domain": made["uuid"], "uri": _uri(source)})
    if address is None:
        raise AssertionError
    evidence: dict[str, Any] = {"running_s": round(running, 3), "lazy": made["lazy"]}
    try:
        if not made["running"]:
            _wake(address, source, made)
        evidence.update(_Questions(about, address, made).ask())
        evidence["peak_bytes"] = _peak(made["pid"])
    except BadSnapshot:
        raise
    except AgentError as err:
        raise BadSnapshot(_ask(address) or f"its agent does not answer: {err.msg}") from None
    except QmpError as err:
        raise BadSnapshot(f"its QEMU is gone, or hangs: {err.msg}") from None
    evidence["seconds"] = round(time.monotonic() - begun, 3)
    return evidence


def _uri(source: Source) -> str:
    return "" if source.domain is None else source.domain.uri


def _wake(address: Address, source: Source, made: Mapping[str, Any]) -> None:
    """One that was paused at the instant was not let go by the clone."""
    agent = address.agent if made["agent_socket"] else None
    try:
        with address.connect() as connection:
            waking.wake(connection, agent, source.frozen, "the clone")
    except (QmpError, AgentError):
        raise
    except LivesnapError as err:
        raise BadSnapshot(f"it came back, and {err.msg}") from None


def _ask(address: Address) -> str:
    """What is wrong with the guest, as its QEMU says; '' if it runs."""
    try:
        with address.connect() as connection:
            return _condition(connection)
    except QmpError as err:
        return f"its QEMU is gone, or hangs: {err.msg}"


def _condition(connection: Connection) -> str:
    """What the guest did to itself, '' if it runs. QmpError."""
    status = str(connection.execute("query-status")["status"])
    if status == "running":
        return ""
    words = {
        "guest-panicked": "its kernel panicked",
        "shutdown": "it reset itself or switched itself off",
        "watchdog": "its watchdog struck",
        "io-error": "a disk failed",
    }
    return f"{words.get(status, 'it does not run')} (QEMU says '{status}')"


def _peak(pid: int) -> int:
    """The most memory that its QEMU had, bytes; what it shares with the RAM image counts."""
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            found = re.search(r"^VmHWM:\s+(\d+) kB", file.read(), re.M)
        if found:
            return int(found.group(1)) << 10
    return 0


@dataclass
class _Questions:
    """What a guest that was brought back is asked."""

    about: Check
    address: Address
    made: Mapping[str, Any]

    def ask(self) -> dict[str, Any]:
        """Ping, clock, commands; then it has to go on. AgentError, QmpError, BadSnapshot."""
        found: dict[str, Any] = {"clock_ms": None, "commands": []}
        if not self.made["agent_socket"]:
            if self.about.request.commands:
                raise RefusedError(
                    f"{self.about.request.subject} is of a guest without a port for an agent, by"
                    " which commands are run",
                    "leave out commands",
                    "no_agent",
                )
            self.about.not_done.append("agent and clock: the guest has no port for an agent")
        else:
            with self._agent() as agent:
                agent.ping(_AGENT_LIMIT)
                found["clock_ms"] = self._clock(agent)
                for command in self.about.request.commands:
                    found["commands"].append(_run(agent, command))
        self._goes_on()
        return found

    def _agent(self) -> AgentCommands:
        return self.address.agent(_AGENT_LIMIT)

    def _clock(self, agent: AgentCommands) -> float:
        said = float(agent.execute("guest-get-time")) / 1e9
        off = said - time.time()
        if abs(off) > _CLOCK_LIMIT:
            raise BadSnapshot(f"its clock is {off:.0f} s off, and cannot be set")
        return round(off * 1000, 1)

    def _goes_on(self) -> None:
        end = time.monotonic() + _SETTLE
        with self.address.connect() as connection:
            while time.monotonic() < end:
                wrong = _condition(connection)
                if wrong:
                    raise BadSnapshot(wrong)
                time.sleep(_POLL)
        if self.made["agent_socket"]:
            with self._agent() as agent:
                agent.ping(_AGENT_LIMIT)


def _run(agent: AgentCommands, command: Command) -> dict[str, Any]:
    """Run one in the guest, and compare."""
    what = f"'{' '.join(command.argv)}' in the clone"
    try:
        code, out, err = agent.run(command.argv[0], command.argv[1:], float(command.timeout))
    except AgentCommandError as failed:
        raise BadSnapshot(f"{what} cannot be run: {failed.desc}") from None
    text = out.decode("utf-8", "replace")
    if code != command.code:
        said = (err.decode("utf-8", "replace") or text).strip()[-200:]
        raise BadSnapshot(f"{what} ended with {code}, not {command.code}: {said}")
    if command.stdout is not None and not re.search(command.stdout, text, re.M):
        raise BadSnapshot(
            f"{what} printed '{text.strip()[-200:]}', in which '{command.stdout}' is not found"
        )
    return {"argv": list(command.argv), "code": code}
