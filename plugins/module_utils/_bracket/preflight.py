# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that can be refused, before anything is touched: queries, looks at the store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._bracket import prediction
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.spec import SnapshotSpec
from ansible_collections.livesnap.qemu.plugins.module_utils._capture import uffd
from ansible_collections.livesnap.qemu.plugins.module_utils._capture.choice import (
    Choice,
    choose,
    judge,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import captured
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.overlay import Overlay
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.scheme import Subject
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.select import Selection, select
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.table import SCHEMES
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    AgentError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.address import Address
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.facts import (
    GuestFacts,
    read_facts,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.process import QemuProcess
from ansible_collections.livesnap.qemu.plugins.module_utils._store import names, space
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store

_NO_UUID = "00000000-0000-0000-0000-000000000000"


@dataclass
class Plan:
    """What a run is going to do, and why."""

    facts: GuestFacts
    process: QemuProcess
    uuid: Optional[str]
    engine: Optional[str]
    #: a line for each engine that could not be taken
    passed_over: tuple[str, ...]
    selection: Selection
    #: node name -> bytes
    disk_estimates: dict[str, int]
    memory_estimate: int
    freeze: bool
    freeze_reason: Optional[str]
    block_nodes: list[dict[str, str]]
    warnings: list[str] = field(default_factory=list)

    @property
    def node_disks(self) -> list[Any]:
        """The disks that are captured, in QEMU's order."""
        return [disk for disk, _scheme in self.selection.chosen]

    @property
    def covered(self) -> list[str]:
        """The images that are to be covered by new ones."""
        return [disk.file for disk, scheme in self.selection.chosen if scheme == Overlay.NAME]


def guest_uuid(facts: GuestFacts) -> Optional[str]:
    """QEMU says all zeros where none was given. Pure."""
    value = facts.uuid.lower()
    return None if value == _NO_UUID or not names.is_uuid(value) else value


def check_store(spec: SnapshotSpec) -> Store:
    """The store, usable; refused before anybody asks the guest."""
    store = Store(spec.store)
    store.check()
    return store


def examine(
    spec: SnapshotSpec, address: Address, qmp: Connection, process: QemuProcess, touch: bool
) -> Plan:
    """Everything that a run has to know; raises RefusedError and its like with the reason.

    `touch`: the agent may be asked (check mode sends QMP queries only).
    """
    store = Store(spec.store)
    address.check(qmp, float(spec.lock_timeout))
    facts = read_facts(qmp, process)
    uuid = guest_uuid(facts)
    store.check_owner(spec.guest, uuid, facts.name or None)
    check_state(spec.guest, facts)
    whose = subject(spec, process)
    auto = captured.automatic(whose, qmp, facts.disks)
    selection = select(facts.disks, spec.disks, spec.disk_scheme, SCHEMES, auto)
    if not spec.memory and not selection.chosen:
        raise RefusedError(
            f"nothing of guest '{spec.guest}' is to be captured: no RAM and no disk",
            "set memory: true, or select a disk",
            "nothing",
        )
    captured.check(whose, qmp, selection.chosen)
    taken = choose_engine(spec, facts, process, qmp, touch)
    plan = Plan(
        facts=facts,
        process=process,
        uuid=uuid,
        engine=taken.engine,
        passed_over=taken.indications,
        selection=selection,
        disk_estimates=captured.estimate(whose, qmp, selection.chosen),
        memory_estimate=memory_bytes(facts, process.pid, taken.engine) if spec.memory else 0,
        freeze=False,
        freeze_reason=None,
        block_nodes=[
            {
                "node": str(node["node-name"]),
                "driver": str(node.get("drv", "")),
                "file": str(node.get("file", "")),
            }
            for node in qmp.execute("query-named-block-nodes", {"flat": True})
        ],
        warnings=[*spec.warnings(), *captured.warnings(selection.chosen), *taken.warnings],
    )
    space.check(
        store.root, plan.memory_estimate, sum(plan.disk_estimates.values()), spec.reserve
    )
    plan.freeze_reason = no_freeze(spec, address, facts, qmp, touch)
    plan.freeze = plan.freeze_reason is None
    if spec.freeze == "required" and not plan.freeze:
        raise RefusedError(
            f"guest '{spec.guest}' cannot be frozen, which is required: {plan.freeze_reason}",
            "start qemu-guest-agent in the guest, or set freeze: auto",
            "freeze",
        )
    return plan


def check_state(guest: str, facts: GuestFacts) -> None:
    """Refuse a guest in a state of which no snapshot is taken."""
    if facts.status not in ("running", "paused"):
        raise RefusedError(
            f"guest '{guest}' is '{facts.status}', neither running nor paused",
            "a snapshot of such a state would be of no use",
            "state",
        )


def subject(spec: SnapshotSpec, process: QemuProcess) -> Subject:
    """What schemes have to know of the guest and the store. Pure."""
    return Subject(
        spec.guest,
        spec.store,
        process,
        commands=spec.disk_commands,
        max_chain=spec.max_chain,
        when_chain_full=spec.when_chain_full,
        bandwidth=spec.disk_bandwidth,
        compression=spec.disk_compression,
        foreign_bitmaps=spec.foreign_bitmaps,
    )


def choose_engine(
    spec: SnapshotSpec, facts: GuestFacts, process: QemuProcess, qmp: Connection, touch: bool
) -> Choice:
    """The engine asked for, or the first that has no reason to stand aside."""
    if not spec.memory:
        return Choice(None, (), ())
    verdicts = judge(facts, process.pid, spec.helper, spec.ksm, touch, qmp, spec.engine)
    return choose(spec.guest, verdicts, spec.engine, spec.allow_pause)


def memory_bytes(facts: GuestFacts, pid: int, engine: Optional[str]) -> int:
    """The most that the RAM image can take: what the process has in memory, RAM's size at most.

    Other engines than uffd also read what a file has that the process does not have in memory.
    """
    total = facts.memory_bytes
    if engine != uffd.NAME:
        return total + (64 << 20) + total // 128
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        resident = sum(
            int(fields.get(key, "0 kB").split()[0]) << 10 for key in ("VmRSS", "VmSwap")
        ) + (int(fields.get("HugetlbPages", "0 kB").split()[0]) << 10)
    except (OSError, ValueError):
        return total
    # ROMs and video memory come on top of what counts as RAM; an image has an index as well.
    most = min(total + (64 << 20), resident)
    return most + most // 128


def no_freeze(
    spec: SnapshotSpec, address: Address, facts: GuestFacts, qmp: Connection, touch: bool
) -> Optional[str]:
    """Why the guest will not be frozen; None when it will be tried."""
    if spec.freeze == "never":
        return "not asked for"
    if not facts.running:
        return "not possible: guest is paused"
    reason = address.no_agent(qmp, facts)
    if reason is not None or not touch:
        return reason
    try:
        with address.agent(min(float(spec.freeze_timeout), 5.0)) as agent:
            if agent.status(float(spec.freeze_timeout)) != "thawed":
                return "the guest's file systems are frozen already, by somebody else"
    except AgentError as err:
        return err.msg
    return None


def predicted(spec: SnapshotSpec, plan: Plan) -> dict[str, Any]:
    """`snapshot` in check mode. Pure."""
    consistency = {
        "level": "filesystem" if plan.freeze else "crash",
        "indications": [
            f"fsfreeze: {plan.freeze_reason or 'will be tried'}",
            *plan.passed_over,
        ],
    }
    return prediction.predicted(
        spec,
        plan.uuid,
        consistency,
        plan.engine,
        plan.memory_estimate if spec.memory else None,
        plan.selection,
        plan.disk_estimates,
        plan.facts.restore_blockers,
    )
