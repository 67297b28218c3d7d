# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a request to a result: lock, recovery, what exists already, then the bracket."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils import _recover, _remove
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket import (
    full,
    off,
    off_run,
    preflight,
    steps,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.link import Link
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.run import Run
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.spec import SnapshotSpec
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import Domain
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    FrozenWriteError,
    LivesnapError,
    QmpConnectError,
    RefusedError,
    StoreError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.process import QemuProcess
from ansible_collections.livesnap.qemu.plugins.module_utils._log import log
from ansible_collections.livesnap.qemu.plugins.module_utils._restore import undo as restore_undo
from ansible_collections.livesnap.qemu.plugins.module_utils._store import (
    listing,
    manifest,
    names,
    rundir,
    status,
    turns,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store
from ansible_collections.livesnap.qemu.plugins.module_utils._store.locks import GuestLock

#: How long one that was asked to end may take: undoing waits for block jobs. Seconds.
_END_LIMIT = 120.0


def by_name(spec: SnapshotSpec) -> SnapshotSpec:
    """The same with a libvirt domain's name for its UUID: the store knows guests by name."""
    if spec.qmp_socket is not None or not names.is_uuid(spec.guest):
        return spec
    with Domain.find(spec.uri, spec.guest) as domain:
        names.check(domain.name, "name of the domain")
        return replace(spec, guest=domain.name)


def result(
    snapshot: Optional[dict[str, Any]],
    actions: list[str],
    recovered: list[str],
    warnings: Optional[list[str]] = None,
    diff: tuple[dict[str, Any], dict[str, Any]] = ({}, {}),
    skip_reason: Optional[str] = None,
) -> dict[str, Any]:
    """What a module returns; changed and diff follow from the same facts. Pure."""
    return {
        "changed": bool(actions or recovered),
        "snapshot": snapshot,
        "skip_reason": skip_reason,
        "actions": actions,
        "recovered": recovered,
        "warnings": warnings or [],
        "diff": {"before": diff[0], "after": diff[1]},
    }


def existing(spec: SnapshotSpec, store: Store, recovered: list[str], apply: bool) -> dict[str, Any]:
    """A snapshot of that name is there: bring labels and pin up to date, and nothing else."""
    folder = store.snapshot(spec.guest, spec.name)
    try:
        fields = manifest.read(folder)
        state = status.read(folder)
    except StoreError as err:
        raise StoreError(
            f"snapshot '{spec.name}' of guest '{spec.guest}' exists, but is not sound: {err.msg}",
            "it is never replaced: remove it with state: absent, or choose another name",
            {"recovered": recovered},
        ) from None
    lacks = []
    # Of a guest that was off there was no RAM to have, and nothing to freeze in clean disks.
    was_off = spec.when_off == "disks" and fields.get("was_off", False)
    clean = was_off and fields["consistency"]["level"] == "clean"
    if spec.memory and fields["memory"] is None and not was_off:
        lacks.append("memory: true (it has no RAM)")
    if spec.freeze == "required" and not fields["consistency"]["freeze"]["achieved"] and not clean:
        why = fields["consistency"]["freeze"]["reason"]
        lacks.append(f"freeze: required (it was taken without: {why})")
    if lacks:
        raise RefusedError(
            f"snapshot '{spec.name}' of guest '{spec.guest}' exists and is less than what is"
            f" asked: {', '.join(lacks)}",
            "a snapshot is never replaced: choose another name, or remove it first",
            "less",
            {"recovered": recovered},
        )
    wanted = status.changed(state, spec.labels, spec.pinned)
    actions = []
    for key in ("labels", "pinned"):
        if wanted[key] != state[key]:
            actions.append(f"set {key} of snapshot '{spec.name}' to {wanted[key]!r}")
    if actions and apply:
        status.write(folder, wanted)
    found = listing.describe(fields, wanted, str(folder))
    keys = ("labels", "pinned")
    before, after = ({key: each[key] for key in keys} for each in (state, wanted))
    if not actions:
        before = after = {}
    return result(found, actions, recovered, [], (before, after))


def _taken(spec: SnapshotSpec) -> list[str]:
    return [f"took snapshot '{spec.name}' of guest '{spec.guest}'"]


_ABSENT = {"state": "absent"}
_PRESENT = {"state": "present"}
_APPEARS = (_ABSENT, _PRESENT)


def take(spec: SnapshotSpec, link: Link) -> dict[str, Any]:
    """The whole of it, in the owner process."""
    spec = by_name(spec)
    store = preflight.check_store(spec)
    # Before the guest's lock: who waits for a turn keeps no other run from a guest, and finds its
    # snapshot made if that was another run's.
    with _turn(spec, link, turns.of_host(), spec.host_turns, "host"):
        with _turn(spec, link, turns.of_store(spec.store), spec.store_turns, "store"):
            return _take(spec, link, store)


def _turn(
    spec: SnapshotSpec, link: Link, folder: Path, count: int, what: str
) -> contextlib.AbstractContextManager[Any]:
    if not count:
        return contextlib.nullcontext()
    return turns.take(
        folder,
        count,
        float(spec.turn_timeout),
        what,
        lambda: link.caller_gone() or link.asked_to_end(),
    )


def _take(spec: SnapshotSpec, link: Link, store: Store) -> dict[str, Any]:
    process = None
    try:
        process = spec.address.process()
    except LivesnapError as err:
        cut_short = restore_undo.planned(spec.store, spec.guest)
        if cut_short:
            err.hint = "a restore of it was cut short: run livesnap_recover"
        if store.exists(spec.guest, spec.name):
            # A guest that is switched off changes nothing about what is there.
            recovered = _recover.recover(spec.store, spec.guest, spec.helper)
            return existing(spec, store, recovered, True)
        if cut_short or not is_off(err):
            raise
    if process is None:
        return _take_off(spec, link, store)
    with _lock(spec, link, process.key):
        recovered = _recover.recover_for(store, spec.guest, process.key, spec.helper)
        if store.exists(spec.guest, spec.name):
            return existing(spec, store, recovered, True)
        try:
            return take_new(spec, link, store, process, recovered)
        except LivesnapError as err:
            err.result.setdefault("recovered", recovered)
            raise


def _lock(spec: SnapshotSpec, link: Link, key: str) -> GuestLock:
    about = {"guest": spec.guest, "snapshot": spec.name, "store": spec.store}
    return GuestLock.acquire(
        key,
        about,
        float(spec.lock_timeout),
        lambda: link.caller_gone() or link.asked_to_end(),
    )


def is_off(err: LivesnapError) -> bool:
    """Whether a guest could not be reached because it is libvirt's, and off. Pure."""
    return isinstance(err, QmpConnectError) and err.kind == "off"


def unless_disks(spec: SnapshotSpec) -> Optional[dict[str, Any]]:
    """What becomes of a guest that is off, None where its disks are to be captured. Pure."""
    if spec.when_off == "disks":
        return None
    if spec.when_off == "skip":
        return result(None, [], [], skip_reason=f"guest '{spec.guest}' is off (when_off: skip)")
    raise RefusedError(
        f"guest '{spec.guest}' is off",
        "start it first, or set when_off: disks (its disks alone) or when_off: skip",
        "off",
    )


def _taken_off(spec: SnapshotSpec) -> list[str]:
    return [f"took snapshot '{spec.name}' of guest '{spec.guest}', which is off: its disks alone"]


def _take_off(spec: SnapshotSpec, link: Link, store: Store) -> dict[str, Any]:
    """The whole of it, of a libvirt guest that is off."""
    settled = unless_disks(spec)
    if settled is not None:
        return settled
    key = off.lock_key(spec)
    with _lock(spec, link, key):
        recovered = _recover.recover_for(store, spec.guest, key, spec.helper)
        if store.exists(spec.guest, spec.name):
            return existing(spec, store, recovered, True)
        try:
            snapshot = off_run.take(spec, link, store, key)
        except LivesnapError as err:
            err.result.setdefault("recovered", recovered)
            raise
    return result(snapshot, _taken_off(spec), recovered, [], _APPEARS)


def take_new(
    spec: SnapshotSpec, link: Link, store: Store, process: QemuProcess, recovered: list[str]
) -> dict[str, Any]:
    """One of a name that is free, by the holder of the guest's lock."""
    try:
        snapshot, warnings = _bracketed(spec, link, store, process, early=True)
    except FrozenWriteError:
        snapshot, warnings = _bracketed(spec, link, store, process, early=False)
    covered = [disk["covered"] for disk in snapshot["disks"] if disk["covered"] is not None]
    merged, said = full.merge_oldest(spec, store, covered, True)
    actions = [*_taken(spec), *merged]
    return result(snapshot, actions, recovered, [*warnings, *said], _APPEARS)


def _bracketed(
    spec: SnapshotSpec, link: Link, store: Store, process: QemuProcess, early: bool
) -> tuple[dict[str, Any], list[str]]:
    """A snapshot and the warnings about it, or everything undone. early: see Run.

    FrozenWriteError if it is for another try without.
    """
    started, started_at = rundir.utc(), time.monotonic()
    address = spec.address
    with address.connect() as qmp:
        plan = preflight.examine(spec, address, qmp, process, touch=True)
        run = Run(
            spec=spec,
            id=str(uuid.uuid4()),
            process=process,
            store=store,
            rundir=rundir.RunDir(process.key),
            link=link,
            address=address,
            qmp=qmp,
            plan=plan,
            early=early,
            started=started,
            started_at=started_at,
            warnings=list(plan.warnings),
        )
        run.rundir.begin(
            run.id,
            str(store.root),
            spec.guest,
            spec.name,
            **address.noted(),
            freeze=plan.freeze,
            was_running=plan.facts.running,
            engine=plan.engine,
            after=spec.after or [],
        )
        log(spec.guest, run.id, f"snapshot '{spec.name}' begins")
        try:
            snapshot = steps.execute(run)
        except LivesnapError as err:
            log(spec.guest, run.id, str(err), error=True)
            if run.problems and isinstance(err, FrozenWriteError):
                raise LivesnapError(err.msg, err.hint, err.result) from err
            raise
        finally:
            if run.qmp is not qmp:
                run.qmp.close()
            # What could not be undone is for recovery, which finds it by this folder.
            if not run.problems:
                run.rundir.remove()
        log(spec.guest, run.id, f"snapshot '{spec.name}' is complete")
        return snapshot, run.warnings


def plan_take(spec: SnapshotSpec) -> dict[str, Any]:
    """The same in check mode: QMP queries, looks at the store, and nothing else."""
    spec = by_name(spec)
    store = preflight.check_store(spec)
    left = _recover.plan_recovery(spec.store, spec.guest)
    if store.exists(spec.guest, spec.name):
        return existing(spec, store, left, False)
    making = listing.in_progress(store, spec.guest, spec.name)
    if making is not None:
        found = [
            each
            for each in listing.list_snapshots(spec.store, spec.guest)
            if each["name"] == spec.name
        ]
        return result(found[0] if found else None, [], left)
    process = None
    try:
        process = spec.address.process()
    except LivesnapError as err:
        if restore_undo.planned(spec.store, spec.guest) or not is_off(err):
            raise
    if process is None:
        predicted = None if spec.when_off != "disks" else off.predicted(spec, off.plan(spec))
        return unless_disks(spec) or result(predicted, _taken_off(spec), left, [], _APPEARS)
    with spec.address.connect() as qmp:
        plan = preflight.examine(spec, spec.address, qmp, process, touch=False)
    merged, said = full.merge_oldest(spec, store, plan.covered, False)
    snapshot, warnings = preflight.predicted(spec, plan), [*plan.warnings, *said]
    return result(snapshot, [*_taken(spec), *merged], left, warnings, _APPEARS)


def remove(spec: SnapshotSpec, apply: bool) -> dict[str, Any]:
    """state: absent. Aborts one in progress; a complete one loses its name before its files."""
    spec = by_name(spec)
    store = Store(spec.store)
    store.check()
    actions: list[str] = []
    making = listing.in_progress(store, spec.guest, spec.name)
    if making is not None:
        actions.append(f"aborted snapshot '{spec.name}' of guest '{spec.guest}' in progress")
        if apply:
            _end(store, spec)
    recovered = (
        _recover.recover(spec.store, spec.guest, spec.helper)
        if apply
        else _recover.plan_recovery(spec.store, spec.guest)
    )
    before: Optional[dict[str, Any]] = None
    if store.exists(spec.guest, spec.name):
        before = listing.look(store, spec.guest, spec.name)
        actions.append(_remove.remove_complete(store, spec.guest, spec.name, apply))
    return result(before, actions, recovered, [], (_PRESENT if actions else _ABSENT, _ABSENT))


def _end(store: Store, spec: SnapshotSpec) -> None:
    """SIGTERM to the process that makes it, and wait until it has undone everything."""
    end = time.monotonic() + _END_LIMIT
    asked = False
    while True:
        making = listing.in_progress(store, spec.guest, spec.name)
        if making is None:
            return
        if not asked:
            asked = True
            try:
                os.kill(making["owner"]["pid"], signal.SIGTERM)
            except ProcessLookupError:
                return
        if time.monotonic() > end:
            raise LivesnapError(
                f"snapshot '{spec.name}' of guest '{spec.guest}' did not end within"
                f" {_END_LIMIT:g} s of being asked to",
                f"look at process {making['owner']['pid']}",
            )
        time.sleep(0.1)
