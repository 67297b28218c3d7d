# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain's monitor and agent through libvirt, which holds their sockets."""

from __future__ import annotations

import json
import math
from typing import Any

from .agent import Agent, AgentError
from .errors import LabError
from .libvirtd import Libvirtd
from .qmp import Monitor, QmpError


class VirshMonitor(Monitor):
    """The monitor that libvirt itself uses; commands of others come between."""

    def __init__(self, libvirtd: Libvirtd, domain: str, timeout: float = 10.0) -> None:
        self._libvirtd = libvirtd
        self._domain = domain
        self._timeout = timeout

    def execute(self, command: str, arguments: dict[str, Any] | None = None,
                timeout: float | None = None) -> Any:
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        answer = json.loads(self._libvirtd.virsh(
            "qemu-monitor-command", self._domain, json.dumps(request),
            limit=timeout if timeout is not None else self._timeout))
        if "error" in answer:
            raise QmpError(answer["error"]["class"], answer["error"]["desc"])
        return answer["return"]

    def close(self) -> None:
        """Nothing to end: each command is a virsh of its own."""


class VirshAgent(Agent):
    """The agent, once it answers."""

    def __init__(self, libvirtd: Libvirtd, domain: str, timeout: float = 10.0) -> None:
        self._libvirtd = libvirtd
        self._domain = domain
        self._timeout = timeout
        self.execute("guest-ping")

    def execute(self, command: str, timeout: float | None = None, **arguments: Any) -> Any:
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        seconds = math.ceil(timeout if timeout is not None else self._timeout)
        try:
            # libvirt waits as long as that for the agent's first word, too.
            answer = json.loads(self._libvirtd.virsh(
                "qemu-agent-command", self._domain, json.dumps(request),
                "--timeout", str(seconds), limit=2.0 * seconds + 5.0))
        except LabError as error:
            raise AgentError(f"{command}: {error}") from error
        return answer["return"]

    def close(self) -> None:
        """Nothing to end: each command is a virsh of its own."""
