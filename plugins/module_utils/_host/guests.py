# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is possible for a guest of this host, and why the rest is not: asked of preflight's parts.

Queries only: the guest's agent is not spoken to, and nothing is attached to.
"""

from __future__ import annotations

from typing import Any, Callable, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._bracket import off, preflight
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.spec import SnapshotSpec
from ansible_collections.livesnap.qemu.plugins.module_utils._capture.choice import judge
from ansible_collections.livesnap.qemu.plugins.module_utils._capture.table import ENGINES
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import captured
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.backup import Backup
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.select import select
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.table import SCHEMES
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.domains import Listed
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.facts import (
    GuestFacts,
    read_facts,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.process import QemuProcess
from ansible_collections.livesnap.qemu.plugins.module_utils._store import names
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store

LIBVIRT, QMP = "libvirt", "qmp"


def of_domain(listed: Listed) -> dict[str, Any]:
    """A domain as it is listed. Pure."""
    return {**listed.as_dict(), "manager": LIBVIRT}


def of_socket(name: str) -> dict[str, Any]:
    """A guest of its own QMP socket, of which nothing is known before it is asked. Pure."""
    nothing = Listed(name, "", "unknown", False, False, 0, "", "", [])
    unknown = dict.fromkeys(("uuid", "autostart", "persistent", "memory_bytes"))
    return {**nothing.as_dict(), **unknown, "manager": QMP}


def examine(guest: dict[str, Any], spec: SnapshotSpec) -> dict[str, Any]:
    """The same guest with what is possible for it; whatever is wrong with it is said in there."""
    wrong = names.problem(spec.guest)
    if wrong:
        return {**guest, **nothing_possible(wrong)}
    if guest["state"] == "off":
        return {**guest, **_off(spec)}
    try:
        process = spec.address.process()
        with spec.address.connect() as qmp:
            return {**guest, **_ask(guest, spec, qmp, process)}
    except LivesnapError as err:
        return {**guest, **nothing_possible(str(err))}


def _ask(
    guest: dict[str, Any], spec: SnapshotSpec, qmp: Connection, process: QemuProcess
) -> dict[str, Any]:
    facts = read_facts(qmp, process)
    uuid = preflight.guest_uuid(facts)
    no_freeze = preflight.no_freeze(spec, spec.address, facts, qmp, touch=False)
    found: dict[str, Any] = {
        "problem": "; ".join(
            said(
                lambda: spec.address.check(qmp, 0.0),
                lambda: preflight.check_state(spec.guest, facts),
                lambda: Store(spec.store).check_owner(spec.guest, uuid, facts.name or None),
            )
        )
        or None,
        "qemu_version": facts.qemu_version,
        "machine": facts.machine,
        "engines": {
            each.engine: verdict([reason.message for reason in each.reasons])
            for each in judge(facts, process.pid, spec.helper, qmp=qmp)
        },
        "schemes": {name: verdict(_scheme(spec, qmp, process, facts, name)) for name in SCHEMES},
        "freeze": {"possible": no_freeze is None, "reason": no_freeze},
        "restore_blockers": list(facts.restore_blockers),
    }
    if guest["manager"] == QMP:
        found.update(state=facts.status, uuid=uuid, memory_bytes=facts.memory_bytes)
    return found


def _off(spec: SnapshotSpec) -> dict[str, Any]:
    """Of a domain that is off there are the disks (when_off: disks), copied in the one way."""
    found = nothing_possible("guest is off")
    plan: Optional[off.OffPlan] = None
    reasons = []
    try:
        plan = off.plan(spec)
    except LivesnapError as err:
        reasons.append(str(err))
    found["schemes"] = {
        name: verdict(reasons if name == Backup.NAME else ["guest is off"]) for name in SCHEMES
    }
    if plan is not None:
        found.update(problem=None, restore_blockers=plan.guest.blockers)
    return found


def _scheme(
    spec: SnapshotSpec, qmp: Connection, process: QemuProcess, facts: GuestFacts, name: str
) -> list[str]:
    """Why this scheme cannot capture the disks that are captured unless something else is asked."""

    def check() -> None:
        whose = preflight.subject(spec, process)
        auto = captured.automatic(whose, qmp, facts.disks)
        chosen = select(facts.disks, spec.disks, name, SCHEMES, auto).chosen
        captured.check(whose, qmp, chosen)

    return said(check)


def said(*checks: Callable[[], None]) -> list[str]:
    """What each check that refuses has to say."""
    found = []
    for check in checks:
        try:
            check()
        except LivesnapError as err:
            found.append(str(err))
    return found


def verdict(reasons: Sequence[str]) -> dict[str, Any]:
    """Something is possible where nothing speaks against it. Pure."""
    return {"possible": not reasons, "reasons": list(reasons)}


def nothing_possible(problem: str) -> dict[str, Any]:
    """Of a guest that cannot be asked. Pure."""
    return {
        "problem": problem,
        "qemu_version": None,
        "machine": None,
        "engines": {name: verdict([problem]) for name in ENGINES},
        "schemes": {name: verdict([problem]) for name in SCHEMES},
        "freeze": {"possible": False, "reason": problem},
        "restore_blockers": [],
    }
