# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of a restore in place, and everything that can be refused before it touches."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._bracket import entry, preflight
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.spec import SnapshotSpec
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    QmpConnectError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.address import (
    DomainAddress,
    SocketAddress,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.facts import (
    GuestFacts,
    read_facts,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.process import QemuProcess
from ansible_collections.livesnap.qemu.plugins.module_utils._restore import (
    checks,
    disks,
    journal,
    places,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.domain_guest import (
    DomainGuest,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.guest import Guest, State
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.images import Exchange
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.qemu_guest import (
    QemuGuest,
    Start,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import (
    chain,
    files,
    manifest,
    names,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store

#: Kinds of QmpConnectError that say that there is no QEMU: of a domain, and of a socket.
_OFF_DOMAIN, _OFF_SOCKET = ("off",), ("missing", "refused")


@dataclass(frozen=True)
class RestoreRequest:
    """What a user asks for. `present` is the snapshot of the present, which has all else."""

    present: SnapshotSpec
    snapshot: str
    keep_current: bool = True
    force: bool = False

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> RestoreRequest:
        """From a module's params; raises LivesnapError."""
        names.check(params["snapshot"], "snapshot")
        # The images that are to be exchanged must stay what the guest runs on.
        own = {"name": kept_name(params["snapshot"], time.time()), "disk_scheme": "backup"}
        present = SnapshotSpec.of({**params, **own})
        return cls(present, params["snapshot"], params["keep_current"], params["force"])

    def by_name(self) -> RestoreRequest:
        """The same with a libvirt domain's name for its UUID."""
        return replace(self, present=entry.by_name(self.present))

    @property
    def subject(self) -> str:
        """For messages."""
        return f"guest '{self.present.guest}'"


def kept_name(snapshot: str, moment: float) -> str:
    """Of the snapshot of the present: 'before-NAME-TIME', in UTC. Pure."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(moment))
    return f"before-{snapshot[:100]}-{stamp}"


@dataclass
class Plan:
    """What a restore is going to do. process and facts are None for a guest that is off."""

    fields: dict[str, Any]
    folder: Path
    guest: Guest
    exchanges: list[Exchange]
    process: Optional[QemuProcess]
    running: bool
    qemu_img: str
    warnings: list[str] = field(default_factory=list)

    @property
    def state(self) -> State:
        """The snapshot, to come back from."""
        return State.of(self.folder, self.fields)


def examine(request: RestoreRequest, store: Store, touch: bool) -> Plan:
    """Everything that has to be known; RefusedError and its like with the reason.

    `touch`: the agent may be asked (check mode sends QMP queries only).
    """
    spec = request.present
    folder, fields = read_snapshot(store, spec.guest, request.snapshot)
    checks.check_machine(checks.needs_of(fields))
    process, facts, need, warnings = _look(request, store, touch)
    where = _places(spec, store, fields["disks"])
    if facts is not None:
        disks.check_places(fields["disks"], where, facts.disks)
    image_tool = checks.qemu_img(checks.program_of(fields["guest_facts"]["exe"]))
    exchanges, lost = disks.exchanges_of(
        folder, fields["disks"], where, uuid.uuid4().hex[:8], image_tool, in_use=facts is not None
    )
    if facts is not None:
        lost += disks.not_in(where, facts.disks)
    warnings += disks.refuse_lost(lost, request.force)
    moved = places.moved(fields["disks"], where)
    guest, said = _guest(request, store, folder, fields, process, moved)
    if isinstance(guest, DomainGuest):
        need += fields["memory"]["bytes"]
    disks.check_space(store.root, need, exchanges)
    running = facts is not None and facts.running
    return Plan(fields, folder, guest, exchanges, process, running, image_tool, [*warnings, *said])


def _places(
    spec: SnapshotSpec, store: Store, snapshot: Sequence[Mapping[str, Any]]
) -> list[places.Place]:
    if isinstance(spec.address, DomainAddress):
        xml = DomainGuest.definition(spec.address)
        return places.of_definition(store, spec.guest, snapshot, xml)
    return places.of_command_line(store, spec.guest, snapshot)


def read_snapshot(store: Store, guest: str, name: str) -> tuple[Path, dict[str, Any]]:
    """(folder, manifest) of a snapshot with RAM, its files of their sizes, checksums as said."""
    folder = store.snapshot(guest, name)
    if not store.exists(guest, name):
        raise RefusedError(
            f"snapshot '{guest}/{name}' is not in store '{store.root}'",
            "livesnap_info lists what is there",
            "no_snapshot",
        )
    fields = chain.read(folder)
    if fields["memory"] is None or fields["devices"] is None:
        raise RefusedError(
            f"snapshot '{guest}/{name}' has no RAM: a guest cannot go on from it",
            f"switch the guest off, and copy its disks from '{folder / 'disks'}'",
            "no_memory",
        )
    manifest.check_contents(folder, fields)
    return folder, fields


def _look(
    request: RestoreRequest, store: Store, touch: bool
) -> tuple[Optional[QemuProcess], Optional[GuestFacts], int, list[str]]:
    """(process, facts, bytes that keeping the present takes, warnings); Nones where it is off."""
    spec = request.present
    process = _process(request)
    if process is None:
        return None, None, 0, []
    with spec.address.connect() as connection:
        if request.keep_current:
            plan = preflight.examine(spec, spec.address, connection, process, touch)
            need = plan.memory_estimate + sum(plan.disk_estimates.values())
            return process, plan.facts, need, list(plan.warnings)
        spec.address.check(connection, float(spec.lock_timeout))
        facts = read_facts(connection, process)
    store.check_owner(spec.guest, preflight.guest_uuid(facts), facts.name or None)
    if facts.status not in ("running", "paused"):
        raise RefusedError(
            f"{request.subject} is '{facts.status}', neither running nor paused",
            "let it get out of this state first, or switch it off",
            "state",
        )
    return process, facts, 0, []


def _process(request: RestoreRequest) -> Optional[QemuProcess]:
    """Its QEMU; None for a guest that is off, if nothing of its present has to be kept."""
    address = request.present.address
    try:
        return address.process()
    except QmpConnectError as err:
        off = _OFF_DOMAIN if isinstance(address, DomainAddress) else _OFF_SOCKET
        if err.kind not in off:
            raise
        if request.keep_current:
            raise RefusedError(
                f"{request.subject} does not run, so that its present cannot be kept: {err.msg}",
                "start it, or set keep_current: false to give up what is on its disks now",
                "off",
            ) from None
        return None


def _guest(
    request: RestoreRequest,
    store: Store,
    folder: Path,
    fields: Mapping[str, Any],
    process: Optional[QemuProcess],
    moved: Mapping[str, Sequence[str]],
) -> tuple[Guest, list[str]]:
    """How it is ended and brought back, checked; and warnings."""
    spec = request.present
    private = journal.folder_of(str(store.root), spec.guest)
    about = fields.get("domain")
    if isinstance(spec.address, DomainAddress):
        if about is None:
            raise _other_kind(request, "a QMP socket of its own", "libvirt")
        domain = DomainGuest(spec.address, spec.guest, spec.helper, private, moved)
        domain.check(files.read_regular(folder / about["file"], 16 << 20).decode())
        return domain, []
    if not isinstance(spec.address, SocketAddress):
        raise AssertionError
    if about is not None:
        raise _other_kind(request, "libvirt", "its QMP socket")
    now = None if process is None else Start.of_process(process)
    then = Start.of_manifest(fields["guest_facts"], now)
    guest = QemuGuest(spec.address, spec.guest, spec.helper, private, then, now)
    guest.check()
    said = []
    if now is not None and not now.same_machine(then):
        said.append(
            f"{request.subject} was started with another command line than at the snapshot: it now"
            " has that of the snapshot, until it is started anew"
        )
    return guest, said


def _other_kind(request: RestoreRequest, then: str, now: str) -> RefusedError:
    return RefusedError(
        f"snapshot '{request.present.guest}/{request.snapshot}' was taken by {then}, and the guest"
        f" is to be reached by {now}",
        "say where the guest is as it was said when the snapshot was taken",
        "other_kind",
    )
