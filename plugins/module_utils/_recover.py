# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What earlier runs left behind: lists it, and removes it.

A run writes down who it is before it does anything (owner.json of its run dir) and each step before
it takes it (journal). Left behind is what has no living owner: its helper, its guard if that still
works, jobs, nodes and descriptors in QEMU, a pause, a freeze, its folder in the making. A snapshot
whose owner died is never finished: its instant may be good, but nobody watched its proofs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils import _guard, _hooks, _remove
from ansible_collections.livesnap.qemu.plugins.module_utils._capture import qemu
from ansible_collections.livesnap.qemu.plugins.module_utils._capture.capture import kill
from ansible_collections.livesnap.qemu.plugins.module_utils._clone import standing
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import Domain
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import (
    bitmaps,
    leftovers,
    outside,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.domain_jobs import end_backup
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    AgentError,
    LivesnapError,
    QmpCommandError,
    TimedOutError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest import process
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.address import (
    Address,
    address_of,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._helper import run_once
from ansible_collections.livesnap.qemu.plugins.module_utils._restore import undo as restore_undo
from ansible_collections.livesnap.qemu.plugins.module_utils._store import listing, rundir
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store
from ansible_collections.livesnap.qemu.plugins.module_utils._store.locks import GuestLock

#: How long a guard that still works is waited for. Seconds.
_GUARD_LIMIT = 20.0
#: How long QEMU may take to end a background snapshot, which must not be cancelled. Seconds.
_MIGRATION_LIMIT = 60.0
_KSM = "ksm"


def plan_recovery(store: str, guest: Optional[str] = None) -> list[str]:
    """What recover() would do, one sentence each. Touches nothing and asks no guest."""
    said = []
    for run, owner in abandoned(guest):
        said.append(f"would undo {_what(owner)}, whose process is gone (run folder '{run.key}')")
    place = Store(store)
    named = {
        (owner.get("store"), owner.get("guest"), owner.get("snapshot"))
        for _run, owner in abandoned(guest)
    }
    for name, snapshot in orphans(place, guest):
        if (str(place.root), name, snapshot) not in named:
            said.append(f"would remove unfinished snapshot '{snapshot}' of guest '{name}'")
    said += _remove.planned(place, guest)
    said += restore_undo.planned(store, guest)
    for clone in standing.unfinished(store, guest):
        said.append(f"would remove unfinished clone '{clone.name}' of guest '{clone.guest}'")
    if _ksm_left():
        said.append("would put KSM back, which was paused by a process that is gone")
    return said


def recover(store: str, guest: Optional[str] = None, helper: str = "") -> list[str]:
    """Remove what a crash or reboot left, of one guest or of all; one sentence each.

    What is still being made by a living run is left alone. Raises LivesnapError when something
    could not be put right; what was is in its result as `recovered`.
    """
    said: list[str] = []
    failed: list[str] = []
    for run, owner in abandoned(guest):
        try:
            # Threads of one that was killed may hold its lock for a moment longer.
            with GuestLock.acquire(run.key, _about(owner), 1.0):
                said += undo_run(run, owner)
        except TimedOutError:
            # Somebody began a new run just now: that one recovers.
            continue
        except LivesnapError as err:
            failed.append(str(err))
    try:
        said += remove_orphans(Store(store), guest)
    except LivesnapError as err:
        said += err.result["recovered"]
        failed.append(str(err))
    try:
        said += _remove.finish(Store(store), guest)
    except LivesnapError as err:
        said += err.result["recovered"]
        failed.append(str(err))
    try:
        said += restore_undo.recover_left(store, guest, helper)
    except LivesnapError as err:
        failed.append(str(err))
    for clone in standing.remove_unfinished(store, guest):
        said.append(f"removed unfinished clone '{clone.name}' of guest '{clone.guest}'")
    said += put_ksm_back(helper)
    if failed:
        raise LivesnapError(
            "recovery is not complete: " + "; ".join(failed),
            "remove the cause and run livesnap_recover again",
            {"recovered": said},
        )
    return said


def recover_for(store: Store, guest: str, key: str, helper: str) -> list[str]:
    """The same before a run of this guest, which holds the lock of its QEMU process."""
    said: list[str] = []
    for run, owner in abandoned(None):
        if run.key == key:
            said += undo_run(run, owner)
        elif owner.get("guest") == guest:
            with contextlib.suppress(TimedOutError):
                with GuestLock.acquire(run.key, _about(owner), 1.0):
                    said += undo_run(run, owner)
    said += restore_undo.recover_left(str(store.root), guest, helper)
    said += remove_orphans(store, guest) + _remove.finish(store, guest)
    return said + put_ksm_back(helper)


def abandoned(guest: Optional[str]) -> list[tuple[rundir.RunDir, dict[str, Any]]]:
    """Run dirs (of a guest, or all) whose owner is gone, with their owner.json, or {}."""
    found = []
    for run in rundir.all_run_dirs():
        owner = run.read("owner.json") or {}
        if rundir.is_process(owner) or (guest is not None and owner.get("guest") != guest):
            continue
        found.append((run, owner))
    return found


def orphans(store: Store, guest: Optional[str]) -> list[tuple[str, str]]:
    """(guest, snapshot) of the folders in the making that nobody works on."""
    return [
        (name, snapshot)
        for name in ([guest] if guest is not None else store.guests())
        for snapshot in store.entries(name)[1]
        if listing.in_progress(store, name, snapshot) is None
    ]


def remove_orphans(store: Store, guest: Optional[str]) -> list[str]:
    """Remove them; one sentence each."""
    said: list[str] = []
    failed: list[str] = []
    for name, snapshot in orphans(store, guest):
        folder = store.partial(name, snapshot)
        try:
            outside.discard(folder)
        except LivesnapError as err:
            failed.append(str(err))
            continue
        store.discard(folder)
        said.append(f"removed unfinished snapshot '{snapshot}' of guest '{name}'")
    if failed:
        raise LivesnapError("; ".join(failed), "", {"recovered": said})
    return said


def undo_run(run: rundir.RunDir, owner: dict[str, Any]) -> list[str]:
    """Everything of a run whose owner is gone; its lock is held. Its run dir goes last."""
    what = _what(owner)
    steps = [line["step"] for line in run.journal() if "step" in line]
    # In the sweep the guard undoes nothing: it only watches the keeper.
    said = _await_guard(run, what, 0.0 if "sweep" in steps else _GUARD_LIMIT)
    pid, started = _key(run.key)
    alive = process.is_alive(pid, started)
    for role, about in (run.read("helper.json") or {}).items():
        if isinstance(about, dict) and kill(
            int(about.get("pid") or 0), int(about.get("start_time") or 0)
        ):
            said.append(f"ended the {role} of {what}")
    address = address_of(owner)
    if alive and address is not None:
        said += _undo_in_qemu(address, owner, pid, steps, what)
    if alive and address is not None and owner.get("freeze") and "freeze" in steps:
        said += _thaw(address, what)
    said += _run_after(owner, steps, address if alive else None, what)
    # Only now that the guest is thawed; and before anybody freezes it again, because a guard that
    # still tries would thaw that.
    _end_guard(run)
    said += _remove_folder(owner)
    run.remove()
    return said or [f"removed what {what} had noted in '{run.path}'"]


def _run_after(
    owner: dict[str, Any], steps: list[str], address: Optional[Address], what: str
) -> list[str]:
    """The operator's commands that undo what his commands before the snapshot have begun."""
    owed = _hooks.left_to_run(owner, steps)
    if not owed:
        return []
    about = _hooks.about_run(str(owner.get("guest")), str(owner.get("snapshot")))
    problems = _hooks.run_all(owed, address, about)
    said = f"ran {len(owed)} commands after {what}"
    return [said + "".join(f"; {problem}" for problem in problems)]


def _await_guard(run: rundir.RunDir, what: str, limit: float) -> list[str]:
    """Wait for a guard that works, then tell what it had to undo."""
    path = str(run.path / "guard.json")
    guard = (run.read("guard-process.json") or {}).get("pid")
    end = time.monotonic() + limit
    while isinstance(guard, int) and time.monotonic() < end:
        report = _guard.read_report(path)
        if not _is_guard(guard) or (report is not None and report.get("finished", True)):
            break
        time.sleep(0.1)
    report = _guard.read_report(path)
    if report is None:
        return []
    done = [
        text
        for key, text in (
            ("released", "released its RAM"),
            ("resumed", "resumed it"),
            ("thawed", "thawed it"),
        )
        if report.get(key)
    ]
    return [
        f"the guard ended {what} ({report.get('reason', 'reason unknown')}) at"
        f" {report.get('at', 'an unknown time')}: "
        + (", ".join(done) if done else "nothing had to be undone")
    ]


def _end_guard(run: rundir.RunDir) -> None:
    """End a guard that still tries, or that somebody has stopped."""
    guard = (run.read("guard-process.json") or {}).get("pid")
    if isinstance(guard, int) and guard > 1 and _is_guard(guard):
        with contextlib.suppress(ProcessLookupError):
            os.kill(guard, signal.SIGKILL)


def _is_guard(pid: int) -> bool:
    try:
        return b"guard" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _undo_in_qemu(
    address: Address, owner: dict[str, Any], pid: int, steps: list[str], what: str
) -> list[str]:
    """Jobs, nodes and descriptors of ours, and a pause of ours."""
    said = []
    prefix = leftovers.prefix_of(str(owner.get("id", "")))
    with address.connect() as qmp:
        if qmp.peer_pid != pid:
            return []
        # The pause first: a guest that stands still hurts most.
        if "stop" in steps and "thaw" not in steps and owner.get("was_running"):
            status = qmp.execute("query-status")
            if not status["running"] and status["status"] in ("paused", "prelaunch"):
                qmp.cont()
                said.append(f"resumed the guest, which {what} had paused")
        folder = _partial(owner)
        if isinstance(qmp, Domain) and folder is not None and end_backup(qmp, folder):
            said.append(f"ended the backup job of {what}")
        removed = leftovers.remove(qmp, prefix)
        if folder is not None and os.path.lexists(folder):
            # There will be no such snapshot to count from.
            removed += bitmaps.remove_all(qmp, prefix)
        if removed:
            said.append(f"removed from QEMU what {what} left: " + ", ".join(removed))
        with contextlib.suppress(QmpCommandError):
            qmp.closefd(prefix + leftovers.UFFD_NAME)
        if owner.get("engine") == qemu.NAME and qemu.put_back(qmp, _MIGRATION_LIMIT):
            said.append(f"switched off background-snapshot, which {what} had switched on")
    return said


def _thaw(address: Address, what: str) -> list[str]:
    """A freeze of ours that may still hold."""
    try:
        with address.agent(5.0) as agent:
            if agent.status() == "thawed":
                return []
            agent.thaw()
    except AgentError as err:
        raise LivesnapError(
            f"the guest may still be frozen by {what}, and cannot be thawed: {err.msg}"
        ) from None
    return [f"thawed the guest, which {what} had frozen"]


def _partial(owner: dict[str, Any]) -> Optional[Path]:
    """Its folder in the making, wherever its store is, if it said."""
    names = (owner.get("store"), owner.get("guest"), owner.get("snapshot"))
    if not all(isinstance(each, str) and each for each in names):
        return None
    store, guest, snapshot = (str(each) for each in names)
    return Store(store).partial(guest, snapshot)


def _remove_folder(owner: dict[str, Any]) -> list[str]:
    """That folder, if it is there."""
    folder = _partial(owner)
    if folder is None or not os.path.lexists(folder):
        return []
    outside.discard(folder)
    Store(str(owner["store"])).discard(folder)
    return [f"removed unfinished {_what(owner)}"]


def _ksm_holders() -> list[str]:
    try:
        names = os.listdir(rundir.root() / _KSM)
    except OSError:
        return []
    return names


def _ksm_left() -> bool:
    """Whether KSM was paused for somebody, and all of them are dead."""
    names = _ksm_holders()
    if "was" not in names:
        return False
    holders = [name for name in names if name not in ("was", "lock")]
    return not any(process.is_alive(*_key(name)) for name in holders)


def put_ksm_back(helper: str) -> list[str]:
    """KSM as it was, if all who needed it paused are dead."""
    if not helper or not _ksm_left():
        return []
    run_once(helper, ["ksm"])
    return ["put KSM back, which was paused by a process that is gone"]


def _key(text: str) -> tuple[int, int]:
    pid, _sep, started = text.partition("-")
    return (int(pid), int(started)) if pid.isdigit() and started.isdigit() else (0, 0)


def _what(owner: dict[str, Any]) -> str:
    return (
        f"snapshot '{owner['snapshot']}' of guest '{owner.get('guest')}'"
        if owner.get("snapshot")
        else "an unknown run"
    )


def _about(owner: dict[str, Any]) -> dict[str, Any]:
    return {"guest": owner.get("guest"), "snapshot": f"recovery of {owner.get('snapshot')}"}
