# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest is, asked of its QEMU by queries only: nothing here changes anything."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, field
from typing import Any, Mapping, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._clone import cmdline
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import Domain
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import QmpCommandError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import Disk, parse_disks
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.domain_xml import (
    disk_targets,
    xml_blockers,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.firmware import (
    Firmware,
    firmware_of,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.mtree import (
    GpaRange,
    parse_mtree,
    parse_ramblocks,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.process import QemuProcess

_PERIPHERAL = "/machine/peripheral"
_ANONYMOUS = "/machine/peripheral-anon"


@dataclass(frozen=True)
class Device:
    """A device of the command line or of device_add. id is '' where it was given none."""

    path: str
    type: str
    id: str
    hotplugged: bool


@dataclass(frozen=True)
class Backend:
    """An object of /objects, such as a memory backend. mem_path is '' unless it is a file's."""

    id: str
    type: str
    mem_path: str
    share: bool


@dataclass(frozen=True)
class BlockNode:
    """A named node of the block graph."""

    node: str
    driver: str
    file: str


@dataclass(frozen=True)
class GuestFacts:
    """A guest at the moment of asking. Sizes in bytes. cpu is a QOM type ('qemu64-x86_64-cpu').

    blockers: why QEMU itself would not migrate this guest. restore_blockers: what would prevent a
    restore or a clone from what is recorded here.
    """

    name: str
    uuid: str
    status: str
    running: bool
    qemu_version: str
    qemu_package: str
    arch: str
    accel: str
    machine: str
    cpu: str
    cpus: int
    memory_bytes: int
    ramblock: str
    gpa: list[GpaRange]
    disks: list[Disk]
    devices: list[Device]
    backends: list[Backend]
    netdev_types: list[str]
    block_nodes: list[BlockNode]
    firmware: list[Firmware]
    migration_status: str
    balloon_bytes: Optional[int]
    free_page_reporting: bool
    blockers: list[str] = field(default_factory=list)
    restore_blockers: list[str] = field(default_factory=list)
    #: libvirt's, as it runs; None for a guest that is not libvirt's.
    domain_xml: Optional[str] = None


class _Asker:
    """Queries whose refusal means that there is nothing to know."""

    def __init__(self, qmp: Connection) -> None:
        self.qmp = qmp

    def get(self, path: str, name: str, default: Any = "") -> Any:
        with contextlib.suppress(QmpCommandError):
            return self.qmp.execute("qom-get", {"path": path, "property": name})
        return default

    def children(self, path: str) -> list[tuple[str, str]]:
        """(name, type) of the children of an object."""
        found = []
        with contextlib.suppress(QmpCommandError):
            for entry in self.qmp.execute("qom-list", {"path": path}):
                match = re.fullmatch(r"child<(.+)>", entry["type"])
                if match is not None:
                    found.append((str(entry["name"]), match.group(1)))
        return found

    def query(self, command: str, default: Any) -> Any:
        with contextlib.suppress(QmpCommandError):
            return self.qmp.execute(command)
        return default


def read_facts(qmp: Connection, process: QemuProcess) -> GuestFacts:
    """Ask all of it; some 20 ms for a guest of usual size. Raises QmpError when QEMU is gone."""
    xml = qmp.xml() if isinstance(qmp, Domain) else None
    ask = _Asker(qmp)
    status = qmp.execute("query-status")
    ramblock = qmp.hmp("info ramblock")
    cpus = ask.query("query-cpus-fast", [])
    arch = str(ask.query("query-target", {"arch": ""})["arch"])
    memory = ask.query("query-memory-size-summary", {})
    migration = ask.query("query-migrate", {})
    devices = read_devices(ask)
    backends = read_backends(ask)
    nodes = ask.query("query-named-block-nodes", [])
    balloon = ask.query("query-balloon", {}).get("actual")
    command = cmdline.parse(process.argv, process.cwd)
    return GuestFacts(
        name=str(ask.query("query-name", {}).get("name", "")),
        uuid=str(qmp.execute("query-uuid")["UUID"]),
        status=str(status["status"]),
        running=bool(status["running"]),
        qemu_version=".".join(str(part) for part in qmp.version),
        qemu_package=qmp.package,
        arch=arch,
        accel="kvm" if ask.query("query-kvm", {}).get("enabled") else "tcg",
        machine=re.sub(r"-machine$", "", str(ask.get("/machine", "type"))),
        cpu=str(ask.get(str(cpus[0]["qom-path"]), "type")) if cpus else "",
        cpus=len(cpus),
        memory_bytes=int(memory.get("base-memory", 0)) + int(memory.get("plugged-memory", 0)),
        ramblock=ramblock,
        gpa=parse_mtree(qmp.hmp("info mtree -f"), parse_ramblocks(ramblock)),
        disks=read_disks(qmp, process.cwd, {} if xml is None else disk_targets(xml)),
        devices=devices,
        backends=backends,
        netdev_types=parse_network(qmp.hmp("info network")),
        block_nodes=[
            BlockNode(str(node["node-name"]), str(node["drv"]), str(node.get("file", "")))
            for node in nodes
        ],
        firmware=firmware_of(command.machine_files(), f"/proc/{process.pid}/root"),
        migration_status=str(migration.get("status", "none")),
        balloon_bytes=None if balloon is None else int(balloon),
        free_page_reporting=any(
            bool(ask.get(device.path, "free-page-reporting", False))
            for device in devices
            if device.type.startswith("virtio-balloon")
        ),
        blockers=[str(reason) for reason in migration.get("blocked-reasons", [])],
        # libvirt makes a command line of the XML, in which plugged devices are.
        restore_blockers=command.restore_blockers() + plug_blockers(devices, command.device_ids())
        if xml is None
        else xml_blockers(xml),
        domain_xml=xml,
    )


def read_disks(qmp: Connection, cwd: str, targets: Mapping[str, str]) -> list[Disk]:
    """The guest's drives, with the serial numbers that their devices were given."""
    ask = _Asker(qmp)
    return parse_disks(
        qmp.execute("query-block"),
        cwd,
        lambda path: str(ask.get(path, "serial", "") or ""),
        targets,
    )


def read_devices(ask: _Asker) -> list[Device]:
    """Those of -device and device_add; what a machine has built in is not here."""
    found = []
    for folder in (_PERIPHERAL, _ANONYMOUS):
        for name, kind in ask.children(folder):
            path = f"{folder}/{name}"
            hotplugged = bool(ask.get(path, "hotplugged", False))
            found.append(Device(path, kind, name if folder == _PERIPHERAL else "", hotplugged))
    return found


def read_backends(ask: _Asker) -> list[Backend]:
    """The objects of -object, and the machine's own main memory."""
    found = []
    for name, kind in ask.children("/objects"):
        path = f"/objects/{name}"
        memory = kind.startswith("memory-backend-")
        file = ask.get(path, "mem-path") if kind == "memory-backend-file" else ""
        share = bool(ask.get(path, "share", False)) if memory else False
        found.append(Backend(name, kind, str(file), share))
    return found


def parse_network(text: str) -> list[str]:
    """Types of the network backends and cards of 'info network', each once. Pure."""
    return sorted(set(re.findall(r"\bindex=\d+,type=([\w-]+)", text)))


def plug_blockers(devices: list[Device], started_with: list[str]) -> list[str]:
    """Devices that came or went after the start: the command line does not know of them. Pure."""
    blockers = [
        f"device '{device.id or device.path}' ({device.type}) was plugged after QEMU was started:"
        " its command line lacks it"
        for device in devices
        if device.hotplugged
    ]
    present = {device.id for device in devices}
    blockers += [
        f"device '{name}' of the command line was unplugged after QEMU was started"
        for name in started_with
        if name not in present
    ]
    return blockers


def agent_listens(qmp: Connection, agent_socket: str) -> Optional[bool]:
    """Whether a program in the guest has the agent's port open; None when QEMU does not tell.

    A virtio-serial port is open or not ('frontend-open'); for other channels it says true always.
    """
    for chardev in qmp.execute("query-chardev"):
        match = re.search(r"unix:(.*?)(,server(=on)?)?( <.*)?$", str(chardev.get("filename", "")))
        # As on the command line: perhaps relative.
        if match is not None and os.path.basename(match.group(1)) == os.path.basename(agent_socket):
            return bool(chardev.get("frontend-open", True))
    return None
