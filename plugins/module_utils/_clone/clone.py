# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A second QEMU from a snapshot, beside the original: made, looked at, removed.

It is the original's program with its command line rewritten (cmdline), as its user, fed with RAM
and device state by livesnap-helper through a pipe. A guest of libvirt's becomes a second domain
(domain_clone). Everything is bounded; a failure leaves nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils import _scope
from ansible_collections.livesnap.qemu.plugins.module_utils._clone import cmdline, launch, serving
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.domain_clone import DomainClone
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.overlays import Images
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.place import RUN_ROOT, Place
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.plan import (
    DiskImage,
    MappedRam,
    Plan,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.source import (
    Source,
    from_manifest,
    guest_name,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.standing import lock_key
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.qmp import Qmp
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    CloneError,
    LivesnapError,
    QmpError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.address import address_of
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.waking import (
    announce,
    stand_at_end,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.checks import check_machine
from ansible_collections.livesnap.qemu.plugins.module_utils._store import chain, rundir
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store
from ansible_collections.livesnap.qemu.plugins.module_utils._store.locks import GuestLock

LOCK_LIMIT = 60.0
#: How long a QEMU that closed its socket may take to end. Seconds.
_END_LIMIT = 5.0


@dataclass(frozen=True)
class CloneRequest:
    """What a user asks for. lazy: let it run before all of its RAM is read.

    drill: it is removed by recovery when this process has ended, and it stands still when its
    guest resets itself, panics or switches off.
    """

    store: str
    guest: str
    name: str
    snapshot: str = ""
    network: bool = False
    lazy: bool = True
    helper: str = ""
    drill: bool = False
    run_root: str = RUN_ROOT

    @property
    def place(self) -> Place:
        """Where it lies; raises LivesnapError for bad names."""
        return Place.of(self.store, self.guest, self.name, self.run_root)

    def lock(self) -> GuestLock:
        """One of us at a time."""
        about = {"guest": self.guest, "snapshot": self.snapshot, "clone": self.name}
        return GuestLock.acquire(lock_key(self.guest, self.name), about, LOCK_LIMIT)


def read_source(request: CloneRequest) -> Source:
    """The snapshot, everything about it checked that is cheap to check."""
    if not request.snapshot:
        raise LivesnapError(f"clone '{request.name}' needs a snapshot", "give 'snapshot'")
    store = Store(request.store)
    folder = store.snapshot(request.guest, request.snapshot)
    if not store.exists(request.guest, request.snapshot):
        raise RefusedError(
            f"snapshot '{request.guest}/{request.snapshot}' is not in store '{request.store}'",
            "livesnap_info lists what is there",
            "no_snapshot",
        )
    return from_manifest(folder, chain.read(folder))


def mapped_ram(source: Source, lazy: bool) -> Optional[MappedRam]:
    """RAM to map, where that can be done: uncompressed, and by root.

    QEMU opens the file for writing even for a private mapping, and nobody but root may write to a
    snapshot's image.
    """
    fits = source.compression == "none" and source.uid == 0 and source.main_bytes > 0
    # Ids with slashes are those of backends under their canonical path, which cannot be given.
    if not (lazy and fits and source.main_block and "/" not in source.main_block):
        return None
    return MappedRam(source.main_block, source.image, source.main_bytes)


def is_served(source: Source, lazy: bool, is_mapped: bool) -> bool:
    """Whether RAM is brought to QEMU as its guest asks for it."""
    return lazy and not is_mapped and source.main_bytes > 0


def make_plan(source: Source, request: CloneRequest, ram: Optional[MappedRam]) -> Plan:
    """The plan of the rewriting."""
    place = request.place
    return Plan(
        folder=str(place.sockets),
        disk_folder=str(place.overlays),
        name=f"{guest_name(source)}.{request.name}",
        machine=source.machine,
        disks=tuple(
            DiskImage(
                disk.device,
                disk.node,
                disk.qdev,
                disk.source,
                str(place.overlays / f"disk{number}.qcow2"),
                disk.below,
            )
            for number, disk in enumerate(source.disks)
        ),
        ram=ram,
        incoming="fd:@incoming@",
        network=request.network,
    )


def plan_clone(request: CloneRequest) -> dict[str, Any]:
    """What create_clone would return, with nothing touched: pid is null where one would start."""
    place = request.place
    source = read_source(request)
    existing = _existing(request, source)
    if existing is not None:
        return existing
    check_machine(source.needs)
    if source.domain is not None:
        return _plan_domain(request, source)
    plan = make_plan(source, request, mapped_ram(source, request.lazy))
    is_mapped = plan.ram is not None
    rewritten = _rewrite(source, plan)
    return {
        "changed": True,
        "pid": None,
        "domain": None,
        "uuid": None,
        "qmp_socket": plan.path(cmdline.QMP_SOCKET),
        "agent_socket": plan.path(rewritten.findings.agent_socket) or None,
        "overlays": [disk.overlay for disk in plan.disks],
        "consoles": [plan.path(each) for each in rewritten.findings.consoles],
        "running": source.was_running,
        "lazy": is_mapped or is_served(source, request.lazy, is_mapped),
        "warnings": rewritten.findings.warnings,
        "actions": _actions(request, place),
    }


def _plan_domain(request: CloneRequest, source: Source) -> dict[str, Any]:
    clone = DomainClone(source, request.place, request.network, request.drill)
    clone.check_name()
    actions = _actions(request, request.place)
    # Its UUID is made up anew each time.
    return {**_result(clone.state(), source.was_running, actions, changed=True), "uuid": None}


def _actions(request: CloneRequest, place: Place) -> list[str]:
    found = [f"removed what was left of clone '{request.name}'"] if place.left() else []
    return [
        *found,
        f"started clone '{request.name}' of guest '{request.guest}' from snapshot"
        f" '{request.snapshot}'",
    ]


def _existing(request: CloneRequest, source: Source) -> Optional[dict[str, Any]]:
    """The clone of that name that runs already, if any; refused if it is of something else."""
    state = request.place.living()
    if state is None:
        return None
    for key, ours in (("snapshot_id", source.id), ("network", request.network)):
        if state.get(key) != ours:
            raise CloneError(
                f"clone '{request.name}' of guest '{request.guest}' is there already, of snapshot"
                f" '{state.get('snapshot')}' with network {state.get('network')}",
                "remove it first (state: absent), or choose another name",
            )
    address = address_of({**state, "domain": state.get("uuid")})
    if address is None:
        raise AssertionError
    try:
        with address.connect() as qmp:
            running = bool(qmp.execute("query-status")["running"])
    except QmpError:
        if _ends(request.place):
            return None
        raise
    return _result(state, running, [], changed=False)


def _ends(place: Place) -> bool:
    """Whether a clone that does not answer is just ending."""
    end = time.monotonic() + _END_LIMIT
    while place.living() is not None:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _result(
    state: dict[str, Any], running: bool, actions: list[str], changed: bool
) -> dict[str, Any]:
    keys = ("pid", "qmp_socket", "agent_socket", "overlays", "consoles", "lazy", "warnings")
    found = {key: state[key] for key in keys}
    # A clone that an older version made does not have them.
    found.update((key, state.get(key)) for key in ("domain", "uuid"))
    return {**found, "running": running, "actions": actions, "changed": changed}


def _rewrite(source: Source, plan: Plan) -> cmdline.Rewritten:
    rewritten = cmdline.rewrite(source.command, plan)
    if rewritten.findings.blockers:
        raise RefusedError(
            f"no clone can be made of '{source.guest}/{source.snapshot}':"
            f" {'; '.join(rewritten.findings.blockers)}",
            reason="restore_blockers",
        )
    return rewritten


def create_clone(request: CloneRequest) -> dict[str, Any]:
    """Make it, or find it there: {changed, pid, qmp_socket, agent_socket, overlays, ...}."""
    place = request.place
    with request.lock():
        source = read_source(request)
        existing = _existing(request, source)
        if existing is not None:
            return existing
        check_machine(source.needs)
        if source.domain is not None:
            return _create_domain(request, source)
        ram = mapped_ram(source, request.lazy)
        plan = make_plan(source, request, ram)
        rewritten = _rewrite(source, plan)
        actions = _actions(request, place)
        place.remove()
        try:
            place.make(source.uid, source.gid)
            _make_overlays(source, plan, rewritten)
            return _start(request, source, plan, rewritten, actions)
        except BaseException:
            place.remove()
            raise


def _make_overlays(source: Source, plan: Plan, rewritten: cmdline.Rewritten) -> None:
    images = Images(source.exe, source.uid, source.gid)
    for number, disk in enumerate(plan.disks):
        images.overlay(disk.overlay, source.disks[number])
    for number, original in enumerate(rewritten.findings.blank_disks):
        images.blank(f"{plan.disk_folder}/blank{number}.qcow2", original)


def _noted(request: CloneRequest, source: Source) -> dict[str, Any]:
    """What the state of a clone says of it, whatever it is made of."""
    return {
        "stage": "loading",
        "guest": request.guest,
        "snapshot": request.snapshot,
        "snapshot_id": source.id,
        "store": request.store,
        "network": request.network,
        "maker": rundir.myself() if request.drill else None,
    }


def _create_domain(request: CloneRequest, source: Source) -> dict[str, Any]:
    place = request.place
    clone = DomainClone(source, place, request.network, request.drill)
    clone.check_name()
    actions = _actions(request, place)
    place.remove()
    try:
        place.make(source.uid, source.gid)
        state = {**_noted(request, source), **clone.state()}
        place.write(state)
        running = clone.make(request.helper, state)
        state.update(stage="complete")
        place.write(state)
        return _result(state, running, actions, changed=True)
    except BaseException:
        place.remove()
        raise


def _start(
    request: CloneRequest,
    source: Source,
    plan: Plan,
    rewritten: cmdline.Rewritten,
    actions: list[str],
) -> dict[str, Any]:
    place, findings = request.place, rewritten.findings
    running = launch.start(
        rewritten.argv,
        launch.Setting(
            exe=source.exe,
            cwd=str(place.sockets),
            uid=source.uid,
            gid=source.gid,
            log=str(place.private / "qemu.log"),
            export_log=str(place.private / "export.log"),
        ),
        findings.taps,
    )
    _scope.move(running.pid, f"livesnap-clone-{running.pid}", f"livesnap clone {plan.name}")
    try:
        agent = plan.path(findings.agent_socket)
        state: dict[str, Any] = {
            **_noted(request, source),
            "pid": running.pid,
            "start_time": running.start_time,
            "feeders": [],
            "lazy": False,
            "qmp_socket": plan.path(cmdline.QMP_SOCKET),
            "agent_socket": agent or None,
            "consoles": [plan.path(each) for each in findings.consoles],
            "overlays": [disk.overlay for disk in plan.disks],
            "argv": rewritten.argv,
        }
        place.write(state)
        with launch.connect(running, state["qmp_socket"]) as qmp:
            state["lazy"] = _feed(request, source, plan.ram is not None, running, qmp)
            state["feeders"] = running.feeders()
            place.write(state)
            launch.wait_loaded(running, qmp, source.image_bytes)
            if request.drill:
                stand_at_end(qmp)
            if source.was_running:
                launch.wake(running, qmp, agent, source.frozen)
            if request.network:
                announce(qmp)
            runs = bool(qmp.execute("query-status")["running"])
        state.update(stage="complete", warnings=findings.warnings + running.warnings)
        place.write(state)
        return _result(state, runs, actions, changed=True)
    except BaseException:
        running.kill()
        raise


def _feed(
    request: CloneRequest, source: Source, is_mapped: bool, running: launch.Running, qmp: Qmp
) -> bool:
    """Begin to give QEMU its snapshot; whether it runs before all of RAM is there."""
    lazy = is_mapped
    if is_served(source, request.lazy, is_mapped):
        log = request.place.server_log
        why = serving.serve(running, qmp, request.helper, source, request.drill, log)
        lazy = not why
        if why:
            running.warnings.append(f"all of RAM is read before the clone runs: {why}")
    export = [request.helper, "export", "--format", "qemu", "--pages", "none" if lazy else "all"]
    launch.feed(running, [*export, source.folder, "-"])
    return lazy


def remove_clone(request: CloneRequest, check_mode: bool = False) -> dict[str, Any]:
    """End it and leave nothing; also of one that was never finished."""
    place = request.place
    absent: dict[str, Any] = {
        "pid": None,
        "domain": None,
        "uuid": None,
        "qmp_socket": None,
        "agent_socket": None,
        "overlays": [],
        "consoles": [],
        "running": False,
        "lazy": False,
        "warnings": [],
    }
    if not place.left() and not launch.processes_in(str(place.sockets)):
        return {**absent, "changed": False, "actions": []}
    actions = [f"removed clone '{request.name}' of guest '{request.guest}'"]
    if not check_mode:
        with request.lock():
            place.remove()
    return {**absent, "changed": True, "actions": actions}
