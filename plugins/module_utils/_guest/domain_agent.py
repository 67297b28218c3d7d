# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest's agent through libvirt, which holds its channel and synchronises with it by itself.

Freeze and thaw go by the agent's own commands with a limit, not by virDomainFSFreeze: that waits
for the agent without one, and whoever wants to thaw meanwhile waits behind it.
"""

from __future__ import annotations

import json
import math
import time
from typing import Any, Mapping, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils import _deps
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import Domain
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    AgentAbsent,
    AgentBusy,
    AgentCommandError,
    AgentError,
    AgentHung,
    LibvirtError,
    QmpError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.agent_commands import (
    AgentCommands,
)

#: libvirt counts an agent's limit in whole seconds; so much longer its own answer may take.
_GRACE = 2.0


class DomainAgent(AgentCommands):
    """A conversation with the agent of a libvirt domain."""

    def __init__(self, domain: Domain) -> None:
        """Of a connection of its own, which close() closes: see connect()."""
        self._domain = domain

    @classmethod
    def connect(cls, uri: str, name: str, timeout: float = 5.0) -> DomainAgent:
        """Connect, and hear from it within `timeout` seconds.

        AgentAbsent: the domain has no channel for it, or nobody in the guest has opened it.
        AgentHung: the guest does not answer.
        """
        end = time.monotonic() + timeout
        try:
            agent = cls(Domain.find(uri, name, timeout))
        except QmpError as err:
            raise AgentError(err.msg, err.hint) from None
        try:
            agent.ping(max(1.0, end - time.monotonic()))
        except BaseException:
            agent.close()
            raise
        return agent

    def execute(
        self, command: str, arguments: Optional[Mapping[str, Any]] = None, timeout: float = 5.0
    ) -> Any:
        request: dict[str, Any] = {"execute": command}
        if arguments is not None:
            request["arguments"] = dict(arguments)
        text, seconds = json.dumps(request), max(1, math.ceil(timeout))
        try:
            reply = self._domain.call(
                command,
                lambda domain: _deps.libvirt_qemu.qemuAgentCommand(domain, text, seconds, 0),
                seconds + _GRACE,
            )
        except LibvirtError as err:
            raise self._failure(command, err) from None
        except QmpError as err:
            raise AgentError(err.msg, err.hint) from None
        return json.loads(reply).get("return")

    def _failure(self, command: str, err: LibvirtError) -> AgentError:
        libvirt = _deps.libvirt
        if err.code in (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED):
            return AgentHung(
                f"the guest's agent did not answer '{command}': {err.msg}",
                "is qemu-guest-agent running in the guest?",
            )
        if err.code == libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED:
            return AgentAbsent(err.msg, "give the domain a channel org.qemu.guest_agent.0")
        if err.code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
            return AgentBusy(err.msg, "somebody else is talking to the guest's agent")
        return AgentCommandError(command, "", err.msg)

    def close(self) -> None:
        self._domain.close()
