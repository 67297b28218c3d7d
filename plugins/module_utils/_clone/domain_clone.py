# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A clone of a libvirt domain: a second, transient domain of the same libvirt.

Its XML is the original's of the instant, rewritten (domain_copy); libvirt restores it from a save
file that livesnap-helper writes, paused. Only when its network cards lead nowhere does it run.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
import uuid
from pathlib import Path
from typing import Any, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils import _deps
from ansible_collections.livesnap.qemu.plugins.module_utils._clone import domain_copy, launch
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.domain_plan import DomainPlan
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.overlays import Images
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.place import Place
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.source import (
    Source,
    SourceDomain,
    guest_name,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._connection import saved
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import Domain
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    AgentError,
    CloneError,
    QmpConnectError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest import process, waking
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.agent_commands import (
    AgentCommands,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.domain_agent import DomainAgent
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.domain_xml import agent_state
from ansible_collections.livesnap.qemu.plugins.module_utils._helper import HelperProcess
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files, space
from ansible_collections.livesnap.qemu.plugins.module_utils._units import format_size

_XML_LIMIT = 16 << 20
_SAVE = "ram.save"
_POLL = 0.1
#: The slowest that RAM may be written or read and not count as stuck, in bytes a second.
_SLOWEST = 20 << 20
#: How long the export may take to end when it has said that it is done, or has failed. Seconds.
_END_LIMIT = 2.0
_OLD_ADDRESSES = (
    "its network cards have new MAC addresses, which the guest's system takes when it next starts"
    " their drivers (a reboot does): until then it uses those of the original"
)


class DomainClone:
    """One clone in the making. Nothing is touched before make()."""

    def __init__(self, source: Source, place: Place, network: bool, drill: bool = False) -> None:
        """RefusedError, with all reasons, where no clone can be made of it."""
        if source.domain is None:
            raise AssertionError
        self.source = source
        self.domain: SourceDomain = source.domain
        self.place = place
        self.drill = drill
        xml = _read(self.domain)
        variables = domain_copy.variables_of(xml)
        disks = [disk for disk in source.disks if not variables or disk.source != variables]
        self.variables = next(
            (disk for disk in source.disks if variables and disk.source == variables), None
        )
        self.plan = DomainPlan(
            name=f"{guest_name(source)}.{place.name}",
            uuid=str(uuid.uuid4()),
            about=f"A clone of domain '{guest_name(source)}' from snapshot '{source.snapshot}',"
            f" made by livesnap_clone as '{place.name}'.",
            folder=str(place.overlays),
            overlays={
                disk.qdev: str(place.overlays / f"disk{number}.qcow2")
                for number, disk in enumerate(disks)
            },
            variables=str(place.overlays / "variables.fd") if self.variables else "",
            network=network,
        )
        self.disks = {disk.qdev: disk for disk in disks}
        self.rewritten = domain_copy.rewrite(xml, self.plan)
        findings = self.rewritten.findings
        if findings.blockers:
            raise RefusedError(
                f"no clone can be made of '{source.guest}/{source.snapshot}':"
                f" {'; '.join(findings.blockers)}",
                reason="restore_blockers",
            )
        self.warnings = [*findings.warnings, *([_OLD_ADDRESSES] if network else [])]

    def check_name(self) -> None:
        """RefusedError: libvirt has another domain of that name. QmpConnectError: no libvirt."""
        try:
            with Domain.find(self.domain.uri, self.plan.name) as found:
                if found.uuid == (self.place.state() or {}).get("uuid"):
                    # What is left of an earlier attempt.
                    return
        except QmpConnectError as err:
            if err.kind == "missing":
                return
            raise
        raise RefusedError(
            f"libvirt at '{self.domain.uri}' has a domain '{self.plan.name}' already, which is not"
            " this clone",
            "choose another name, or remove that domain",
            "domain",
        )

    def state(self) -> dict[str, Any]:
        """What is noted before anything is made: by it all of that can be found again."""
        return {
            "uri": self.domain.uri,
            "domain": self.plan.name,
            "uuid": self.plan.uuid,
            "pid": None,
            "qmp_socket": None,
            "agent_socket": None,
            "consoles": [],
            "overlays": list(self.plan.overlays.values()),
            "lazy": False,
            "warnings": self.warnings,
        }

    def make(self, helper: str, state: dict[str, Any]) -> bool:
        """Make it in an empty place; whether it runs. `state` is filled in, and noted meanwhile."""
        self._make_images()
        save = str(self.place.overlays / _SAVE)
        self._export(helper, save, state)
        saved.restore(self.domain.uri, save, self._limit())
        os.unlink(save)
        with Domain.connect(self.domain.uri, self.plan.uuid) as domain:
            state["pid"] = domain.peer_pid
            state["start_time"] = process.start_time(domain.peer_pid) or 0
            if not self.plan.network:
                self._cut_off(domain)
            xml = domain.xml()
            state["agent_socket"] = domain_copy.agent_path(xml)
            state["consoles"] = domain_copy.terminals(xml)
            self.place.write(state)
            if self.drill:
                waking.stand_at_end(domain)
            if self.source.was_running:
                self._wake(domain, xml)
            return bool(domain.execute("query-status")["running"])

    def _make_images(self) -> None:
        source, findings = self.source, self.rewritten.findings
        images = Images(source.exe, source.uid, source.gid)
        for alias, path in self.plan.overlays.items():
            images.overlay(path, self.disks[alias])
        for original, path in findings.blanks:
            images.blank(path, original)
        if self.variables is not None:
            kind = findings.variables_format
            images.copy(self.plan.variables, self.variables, kind)

    def _limit(self) -> float:
        """How long it may take to write or to read a file as large as RAM. Seconds."""
        return launch.START_LIMIT + self.source.image_bytes / _SLOWEST

    def _export(self, helper: str, save: str, state: dict[str, Any]) -> None:
        need = self.source.image_bytes - self.source.zero_bytes + space.SLACK
        free = space.free_bytes(self.place.overlays)
        if need > free:
            raise CloneError(
                f"store '{self.place.store}' is too full: RAM is written there for libvirt to"
                f" read, up to {format_size(need)}; free are {format_size(free)}",
                "make room for it; it is removed as soon as the clone has it",
            )
        xml = self.place.private / "domain.xml"
        files.write_whole(xml, self.rewritten.xml.encode(), durable=False)
        argv = ["export", "--format", "libvirt", "--xml", str(xml), self.source.folder, save]
        child = HelperProcess(helper, argv, str(self.place.private / "export.log"))
        try:
            # It goes on if we are killed: whoever removes what is left has to find it.
            state["feeders"] = [[child.pid, process.start_time(child.pid) or 0]]
            self.place.write(state)
            child.wait_for("done", self._limit())
        finally:
            child.end(_END_LIMIT)
        state["feeders"] = []

    def _cut_off(self, domain: Domain) -> None:
        """Pull the cable of each card, while the clone still stands still.

        In the XML it would do nothing: what the stream says of the link comes after it.
        """
        flags = _deps.libvirt.VIR_DOMAIN_AFFECT_LIVE
        for card in domain_copy.cards(domain.xml()):
            down = domain_copy.unplugged(card)
            domain.call(
                "update-device",
                functools.partial(lambda xml, each: each.updateDeviceFlags(xml, flags), down),
            )

    def _wake(self, domain: Domain, xml: str) -> None:
        agent: Optional[functools.partial[AgentCommands]] = None
        if agent_state(xml) != "absent":
            agent = functools.partial(_agent, self.domain.uri, self.plan.uuid)
        self.warnings += waking.wake(domain, agent, self.source.frozen, "the clone")


def _agent(uri: str, name: str, timeout: float) -> AgentCommands:
    """The agent of a domain that was just restored: libvirt hears of it a little later."""
    end = time.monotonic() + timeout
    while True:
        with contextlib.suppress(AgentError):
            return DomainAgent.connect(uri, name, max(1.0, end - time.monotonic()))
        if time.monotonic() + _POLL > end:
            return DomainAgent.connect(uri, name, 1.0)
        time.sleep(_POLL)


def _read(domain: SourceDomain) -> str:
    data = files.read_regular(Path(domain.xml), _XML_LIMIT)
    if hashlib.sha256(data).hexdigest() != domain.sha256:
        raise RefusedError(
            f"'{domain.xml}' does not have the checksum that its manifest names: it was edited",
            "a copy of it can be given to 'livesnap-helper export --xml'",
            "torn",
        )
    return data.decode()
