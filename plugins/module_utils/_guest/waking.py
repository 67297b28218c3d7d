# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest that was restored is let go: run, thaw, clock, network. Whichever way it is reached."""

from __future__ import annotations

import contextlib
from typing import Callable, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    AgentCommandError,
    AgentError,
    LivesnapError,
    QmpCommandError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.agent_commands import (
    AgentCommands,
)

#: How long the agent of a frozen guest is waited for, and that of another one. Seconds.
AGENT_LIMIT = 30.0
_CLOCK_LIMIT = 5.0
#: How often switches are told where the guest is, in ms, as QEMU does after a migration.
_ROUNDS = {"initial": 50, "max": 550, "rounds": 5, "step": 100}


def wake(
    connection: Connection,
    agent: Optional[Callable[[float], AgentCommands]],
    frozen: bool,
    what: str,
) -> list[str]:
    """Let it run; thaw it first of all, then set its clock. Returns what is not as it should be.

    `agent` connects within so many seconds; None where the guest has no port for it. A guest that
    was frozen must thaw: LivesnapError. `what`: how messages call it, such as 'the clone'.
    """
    connection.cont()
    if connection.execute("query-status")["status"] != "running":
        raise LivesnapError(f"{what} does not run after 'cont'")
    if agent is None:
        if frozen:
            raise LivesnapError("the guest was frozen, and has no agent's port to thaw it by")
        return []
    try:
        with agent(AGENT_LIMIT if frozen else _CLOCK_LIMIT) as asked:
            if frozen:
                asked.thaw(AGENT_LIMIT)
            try:
                asked.set_time()
            except AgentCommandError as err:
                return [f"the clock of {what} may be behind: {err.desc}"]
    except AgentError as err:
        if frozen:
            raise LivesnapError(f"{what} cannot be thawed: {err.msg}") from None
        return [f"the clock of {what} was not set: {err.msg}"]
    return []


def stand_at_end(connection: Connection) -> None:
    """From now on a reset, a panic and a power off leave the guest standing, and QEMU says why."""
    actions = {"reboot": "shutdown", "shutdown": "pause", "panic": "pause", "watchdog": "pause"}
    connection.execute("set-action", actions)


def announce(connection: Connection) -> None:
    """Tell switches where the guest is now."""
    with contextlib.suppress(QmpCommandError):
        connection.execute("announce-self", _ROUNDS)
