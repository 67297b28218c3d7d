# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a guest is reached: by sockets of its own, or through libvirt. Connects nothing by itself."""

from __future__ import annotations

import contextlib
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Mapping, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._connection import _peer
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import (
    Domain,
    as_domain,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.qmp import Qmp
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    QmpConnectError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.agent import Agent
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.agent_commands import (
    AgentCommands,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.domain_agent import (
    DomainAgent,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.domain_xml import agent_state
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.facts import (
    GuestFacts,
    agent_listens,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.process import QemuProcess

#: Kinds of QmpConnectError that say that there is no QEMU.
_OFF = ("off", "missing", "refused")


class Address(ABC):
    """How one guest is reached."""

    @abstractmethod
    def process(self, timeout: float = 10.0) -> QemuProcess:
        """Its QEMU, without speaking to it. QmpConnectError where there is none."""

    @abstractmethod
    def connect(self, timeout: float = 10.0) -> Connection:
        """A conversation with its QEMU."""

    @abstractmethod
    def agent(self, timeout: float) -> AgentCommands:
        """A conversation with the agent in the guest, or AgentError."""

    @abstractmethod
    def no_agent(self, connection: Connection, facts: GuestFacts) -> Optional[str]:
        """Why nobody can be asked to freeze the guest, as far as queries tell."""

    @abstractmethod
    def check(self, connection: Connection, wait: float) -> None:
        """Refuse what stands in the way of any snapshot, waiting so long for what passes."""

    @abstractmethod
    def guard(self, connection: Connection, freeze: bool) -> dict[str, Any]:
        """The fields of GuardConfig that say how the guard reaches the guest."""

    @abstractmethod
    def noted(self) -> dict[str, Any]:
        """For the run folder; address_of() reads it."""


@dataclass(frozen=True)
class SocketAddress(Address):
    """A QEMU with a QMP socket of its own, and perhaps one of its agent's channel."""

    qmp_socket: str
    agent_socket: Optional[str] = None

    def process(self, timeout: float = 10.0) -> QemuProcess:
        path = self.qmp_socket
        # Another run may hold it: who listens is known without a greeting.
        with _peer.connect_unix(path, timeout) as sock:
            pid = _peer.qemu_of(sock, path)
        return QemuProcess.of(pid)

    def connect(self, timeout: float = 10.0) -> Connection:
        return Qmp.connect(self.qmp_socket, timeout)

    def agent(self, timeout: float) -> AgentCommands:
        if self.agent_socket is None:
            raise AssertionError
        return Agent.connect(self.agent_socket, timeout)

    def no_agent(self, connection: Connection, facts: GuestFacts) -> Optional[str]:
        if self.agent_socket is None:
            return "no agent_socket was given"
        if agent_listens(connection, self.agent_socket) is False:
            return "no agent has opened its port in the guest"
        return None

    def check(self, connection: Connection, wait: float) -> None:
        """Nothing: QEMU itself refuses what does not go together."""

    def guard(self, connection: Connection, freeze: bool) -> dict[str, Any]:
        return {
            "qmp_socket": self.qmp_socket,
            "agent_socket": self.agent_socket if freeze else None,
        }

    def noted(self) -> dict[str, Any]:
        return {"qmp_socket": self.qmp_socket, "agent_socket": self.agent_socket}


@dataclass(frozen=True)
class DomainAddress(Address):
    """A libvirt domain, by its name or UUID."""

    uri: str
    domain: str

    def process(self, timeout: float = 10.0) -> QemuProcess:
        with Domain.find(self.uri, self.domain, timeout) as domain:
            return QemuProcess.of(domain.qemu(timeout))

    def connect(self, timeout: float = 10.0) -> Connection:
        return Domain.connect(self.uri, self.domain, timeout)

    def agent(self, timeout: float) -> AgentCommands:
        return DomainAgent.connect(self.uri, self.domain, timeout)

    def no_agent(self, connection: Connection, facts: GuestFacts) -> Optional[str]:
        if facts.domain_xml is None:
            raise AssertionError
        state = agent_state(facts.domain_xml)
        if state == "absent":
            return "the domain has no channel for qemu-guest-agent"
        if state != "connected":
            return "no agent has opened its port in the guest"
        return None

    def check(self, connection: Connection, wait: float) -> None:
        if shutil.which("virsh") is None:
            raise RefusedError(
                "virsh is not installed, by which a guard lets a guest go on if livesnap dies",
                "install libvirt-clients",
                "virsh",
            )
        as_domain(connection).wait_idle(wait)

    def guard(self, connection: Connection, freeze: bool) -> dict[str, Any]:
        return {
            "qmp_socket": None,
            "agent_socket": None,
            "libvirt": {
                "uri": self.uri,
                "domain": as_domain(connection).uuid,
                "virsh": shutil.which("virsh"),
                "freeze": freeze,
            },
        }

    def noted(self) -> dict[str, Any]:
        return {"uri": self.uri, "domain": self.domain}


def address_of(about: Mapping[str, Any]) -> Optional[Address]:
    """From noted(); None where it says nothing that is known."""
    if about.get("qmp_socket"):
        return SocketAddress(str(about["qmp_socket"]), about.get("agent_socket") or None)
    if about.get("uri") and about.get("domain"):
        return DomainAddress(str(about["uri"]), str(about["domain"]))
    return None


@contextlib.contextmanager
def reached(whose: Mapping[str, Any]) -> Iterator[Optional[Connection]]:
    """The guest's QEMU, None where it is off; `whose` says how it is reached."""
    address = address_of(whose)
    with contextlib.ExitStack() as stack:
        qmp: Optional[Connection] = None
        if address is not None:
            try:
                qmp = stack.enter_context(address.connect())
            except QmpConnectError as err:
                if err.kind not in _OFF:
                    raise
        yield qmp
