# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest goes back to a snapshot, in place: new images beside the old ones while it runs; then it
stands still, its present is kept, its QEMU ends, images are exchanged, and it is brought back.

It runs in a process of its own, as snapshots do: from the end of the old QEMU on it does not matter
whether anybody waits for it.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils import _owner, _recover
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket import entry, faults, preflight
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.link import Link
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.spec import SnapshotSpec
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import outside
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
    RestoreError,
    StoreError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._helper import run_once
from ansible_collections.livesnap.qemu.plugins.module_utils._log import log
from ansible_collections.livesnap.qemu.plugins.module_utils._restore import images, journal, undo
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.journal import Journal
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.plan import (
    Plan,
    RestoreRequest,
    examine,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import listing, status
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store
from ansible_collections.livesnap.qemu.plugins.module_utils._store.locks import GuestLock

#: Where tests let the owner fail, in their order: each was just done.
FAULT_POINTS = tuple(
    f"restore-{each}" for each in ("begin", "hold", "keep", "end", "put", "bring", "back")
)
#: The slowest that RAM is read from the store and not counted as stuck, bytes a second.
_SLOWEST, _LIMIT = 20 << 20, 60.0


def plan_restore(request: RestoreRequest) -> dict[str, Any]:
    """What restore() would do: queries, and looks at the store and at images."""
    request = request.by_name()
    store = preflight.check_store(request.present)
    left = _recover.plan_recovery(request.present.store, request.present.guest)
    plan = examine(request, store, touch=False)
    pid = None if plan.process is None else plan.process.pid
    return _result(request, plan, pid, left, plan.warnings)


def restore(request: RestoreRequest) -> dict[str, Any]:
    """Do it, in a process of its own. RestoreError says what state things are in."""

    def work(_spec: SnapshotSpec, link: Link) -> dict[str, Any]:
        return apply(request, link)

    return _owner.follow(
        _owner.run_detached(request.present, work),
        "restored the guest",
        "the next run, or livesnap_recover, undoes what it had begun",
    )


def _result(
    request: RestoreRequest,
    plan: Plan,
    pid: Optional[int],
    recovered: list[str],
    warnings: list[str],
) -> dict[str, Any]:
    spec = request.present
    kept = spec.name if request.keep_current else None
    actions = [f"took {request.subject} back to snapshot '{request.snapshot}'"]
    if kept is not None:
        actions.insert(0, f"took snapshot '{kept}' of {request.subject}")
    return {
        "changed": True,
        "snapshot": listing.describe(plan.fields, status.read(plan.folder), str(plan.folder)),
        "kept": kept,
        "pid": pid,
        "running": plan.state.running,
        "actions": actions,
        "recovered": recovered,
        "warnings": warnings,
        "diff": {
            "before": {"state": f"of now, kept as '{kept}'" if kept else "of now"},
            "after": {"state": f"of snapshot '{request.snapshot}', {plan.fields['created']}"},
        },
    }


def apply(request: RestoreRequest, link: Link) -> dict[str, Any]:
    """The whole of it, in the owner process."""
    request = request.by_name()
    spec = request.present
    store = preflight.check_store(spec)
    about = {"guest": spec.guest, "snapshot": request.snapshot, "store": spec.store}
    limit = float(spec.lock_timeout)
    with GuestLock.acquire(undo.lock_key(spec.guest), about, limit, link.caller_gone):
        left = journal.cut_short(spec.store, spec.guest)
        recovered = [undo.recovered(each, spec.helper) for each in left]
        plan = examine(request, store, touch=True)
        running = plan.process
        key = undo.guest_key(
            spec.guest, [] if running is None else [running.pid, running.start_time]
        )
        with GuestLock.acquire(key, about, limit, link.caller_gone):
            recovered += _recover.recover_for(store, spec.guest, key, spec.helper)
            return _Restore(request, store, plan, link, recovered).run()


class _Restore:
    """One restore, everything checked and locked; run() once."""

    def __init__(
        self, request: RestoreRequest, store: Store, plan: Plan, link: Link, recovered: list[str]
    ) -> None:
        self.request = request
        self.spec = request.present
        self.store = store
        self.plan = plan
        self.link = link
        self.recovered = recovered
        self.warnings = list(plan.warnings)
        process = plan.process
        self.journal = Journal(
            store=self.spec.store,
            guest=self.spec.guest,
            snapshot=request.snapshot,
            id=plan.fields["id"],
            how=plan.guest.noted(),
            exchanges=[each.noted() for each in plan.exchanges],
            process=[] if process is None else [process.pid, process.start_time],
            was_running=plan.running,
        )

    def run(self) -> dict[str, Any]:
        """All stages; undone when one fails."""
        self._log("begins")
        self.journal.begin()
        try:
            faults.strike("restore-begin")
            self._copy()
            if self.plan.process is not None:
                self._hold()
            self._exchange()
        except LivesnapError as err:
            raise self._undone(err) from None
        except BaseException as err:
            raise self._undone(RestoreError(f"internal error: {err!r}")) from err
        self.journal.enter(journal.BACK)
        faults.strike("restore-back")
        try:
            undo.finish(self.journal)
        except (RefusedError, StoreError) as err:
            # The guest is back: this is no failure.
            self.warnings.append(f"{err.msg}; livesnap_recover tries again")
        self._log("is complete")
        pid = self.journal.brought[0] if self.journal.brought else None
        return _result(self.request, self.plan, pid, self.recovered, self.warnings)

    def _copy(self) -> None:
        """New images, and what else takes its time, while the guest runs on."""
        self._verify(self.plan.folder / self.plan.fields["memory"]["file"])
        fields = self.plan.fields
        for each, disk in zip(self.plan.exchanges, fields["disks"]):
            self._still_wanted()
            fetch = functools.partial(outside.fetch, fields, disk)
            images.make(each, self.plan.qemu_img, fetch)
        self.plan.guest.prepare(self.plan.state)
        self._still_wanted()

    def _verify(self, image: Path) -> None:
        """All of the RAM is read once: nobody wants to find it damaged when QEMU has ended."""
        expected = self.plan.fields["memory"]["checksum"]
        limit = _LIMIT + self.plan.state.bytes / _SLOWEST
        done = run_once(self.spec.helper, ["verify", str(image)], limit)
        if done.get("checksum") != expected:
            raise StoreError(
                f"'{image}' has checksum {done.get('checksum')}, and its manifest names {expected}",
                "use another snapshot",
            )

    def _hold(self) -> None:
        """The guest stands still, and its present is kept."""
        self.journal.enter(journal.HELD)
        if self.plan.running:
            self.plan.guest.hold()
        faults.strike("restore-hold")
        if not self.request.keep_current or self.plan.process is None:
            return
        spec = replace(self.spec, held=self.plan.running)
        taken = entry.take_new(spec, self.link, self.store, self.plan.process, [])
        self.warnings += taken["warnings"]
        self.journal.kept = spec.name
        faults.strike("restore-keep")
        self._still_wanted()

    def _exchange(self) -> None:
        """From here on nobody is asked any more."""
        self.journal.enter(journal.EXCHANGE)
        if self.plan.process is not None:
            self.plan.guest.end()
        faults.strike("restore-end")
        for each in self.plan.exchanges:
            images.put(each)
        faults.strike("restore-put")
        self.warnings += self.plan.guest.bring(self.plan.state, self._noted)
        faults.strike("restore-bring")

    def _noted(self, pid: int, started: int) -> None:
        self.journal.brought = [pid, started]
        self.journal.write()

    def _still_wanted(self) -> None:
        if self.link.caller_gone() or self.link.asked_to_end():
            raise RestoreError("it was cancelled", "nothing was changed: run it again")

    def _undone(self, err: LivesnapError) -> RestoreError:
        """Undo it; the error that says what state things are in."""
        self._log(f"failed: {err}", error=True)
        msg = f"{self.request.subject} was not taken back to snapshot '{self.request.snapshot}'"
        result = {"kept": self.journal.kept, "recovered": self.recovered}
        try:
            said = undo.undo(self.journal, self.spec.helper)
        except LivesnapError as again:
            return RestoreError(
                f"{msg}: {err.msg}; {undo.stuck(self.journal, again)}", err.hint, result
            )
        return RestoreError(f"{msg}: {err.msg}; {said}", err.hint, result)

    def _log(self, what: str, error: bool = False) -> None:
        about = f"restore to snapshot '{self.request.snapshot}' {what}"
        log(self.spec.guest, self.journal.id, about, error=error)
