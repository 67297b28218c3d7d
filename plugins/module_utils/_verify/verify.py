# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks a snapshot, level by level, and keeps the verdict with it.

The snapshot is only read; what is written is its status.json, at the end, by rename. A check that
is cut short leaves nothing but a note of what was good, for a day, from which the next one goes on.
"""

from __future__ import annotations

import contextlib
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.publish import LIVESNAP
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._log import log
from ansible_collections.livesnap.qemu.plugins.module_utils._store import rundir, status
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store
from ansible_collections.livesnap.qemu.plugins.module_utils._store.locks import (
    GuestLock,
    is_held,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._verify import (
    checksum,
    drill,
    memory,
    structure,
    verdict,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.request import (
    BadSnapshot,
    Check,
    VerifyRequest,
)

#: Level -> what does it.
_CHECKS: dict[str, Callable[[Check], dict[str, Any]]] = {
    "checksum": checksum.check,
    "structure": structure.check,
    "memory": memory.check,
    "drill": drill.check,
}
#: Those that have nothing to look at in a snapshot without RAM.
_OF_RAM = ("memory", "drill")
#: How long the notes of a check that was cut short stay, seconds.
_NOTES_STAY = 24 * 3600.0


def plan_verify(request: VerifyRequest) -> dict[str, Any]:
    """What verify() would do. Reads status.json only."""
    folder = _folder(request)
    found = _standing(request, status.read(folder))
    if found is not None:
        return _result(request, found, found, changed=False)
    return _result(request, None, None, changed=True)


def verify(request: VerifyRequest) -> dict[str, Any]:
    """Check it, unless there is a verdict that makes that needless; what the module returns.

    Raises LivesnapError when it could not be checked: that is no verdict.
    """
    folder = _folder(request)
    run = rundir.VerifyDir(request.guest, request.snapshot)
    about = {"guest": request.guest, "snapshot": request.snapshot, "store": request.store}
    with GuestLock.acquire(run.key, about, request.lock_timeout):
        before = status.read(folder)
        found = _standing(request, before)
        if found is not None:
            return _result(request, found, found, changed=False)
        _forget_old_notes()
        run.make()
        try:
            which = folder.stat().st_ino
            new = _checked(request, folder, run)
            _record(request, folder, which, new)
        finally:
            # Only who is killed leaves notes.
            run.remove()
    log(request.guest, "-", f"snapshot '{request.snapshot}' {new['result']} '{new['level']}'")
    newest = before["verdicts"][-1] if before["verdicts"] else None
    return _result(request, newest, new, changed=True)


def _folder(request: VerifyRequest) -> Path:
    store = Store(request.store)
    store.check()
    if not store.exists(request.guest, request.snapshot):
        raise RefusedError(
            f"{request.subject} is not in store '{request.store}'",
            "livesnap_info lists what is there",
            "no_snapshot",
        )
    return store.snapshot(request.guest, request.snapshot)


def _standing(request: VerifyRequest, state: dict[str, Any]) -> Optional[dict[str, Any]]:
    now = datetime.now(timezone.utc)
    return verdict.standing(state["verdicts"], request.level, request.max_age, now)


def _checked(request: VerifyRequest, folder: Path, run: rundir.VerifyDir) -> dict[str, Any]:
    """The verdict."""
    level, problem = "checksum", None
    about = Check(request, folder, {}, run)
    try:
        with contextlib.ExitStack() as stack:
            about.hold(stack)
            if request.level in _OF_RAM:
                _refuse_without_ram(about)
            for level in verdict.up_to(request.level):
                about.tell(level, 0.0)
                about.evidence[level] = _CHECKS[level](about)
    except BadSnapshot as err:
        problem = str(err)
    evidence = {**about.evidence, "not_done": about.not_done, "problem": problem}
    result = verdict.PASSED if problem is None else verdict.FAILED
    return verdict.make(level, result, rundir.utc(), LIVESNAP, evidence)


def _refuse_without_ram(about: Check) -> None:
    """RefusedError: not the snapshot's fault, and known before all of it was read."""
    if about.fields["memory"] is None:
        raise RefusedError(
            f"{about.request.subject} has no RAM: there is nothing for level"
            f" '{about.request.level}' to look at",
            "check it by level 'structure'",
            "no_memory",
        )


def _record(request: VerifyRequest, folder: Path, which: int, new: dict[str, Any]) -> None:
    """Into status.json, as it is by now: somebody may have pinned it meanwhile."""
    if not folder.exists() or folder.stat().st_ino != which:
        raise LivesnapError(f"{request.subject} was removed while it was checked")
    state = status.read(folder)
    verdicts = verdict.with_verdict(state["verdicts"], new)
    status.write(folder, {**state, "verdicts": verdicts})


def _forget_old_notes() -> None:
    """Those that nobody goes on from any more, or cannot."""
    for path in sorted((rundir.root() / "verify").glob("*/*")):
        old = rundir.VerifyDir(path.parent.name, path.name)
        with contextlib.suppress(OSError):
            if not is_held(old.key) and time.time() - path.stat().st_mtime > _NOTES_STAY:
                old.remove()


def _result(
    request: VerifyRequest,
    before: Optional[dict[str, Any]],
    after: Optional[dict[str, Any]],
    changed: bool,
) -> dict[str, Any]:
    """Where after is None, nobody knows yet."""
    action = f"checked {request.subject} by level '{request.level}'"
    return {
        "changed": changed,
        "verdict": after,
        "actions": [action] if changed else [],
        "diff": {
            "before": {"verdict": _short(before)},
            "after": {"verdict": _short(after) if after else request.level},
        },
    }


def _short(found: Any) -> str:
    if not isinstance(found, dict):
        return "none"
    return f"{found.get('level')} {found.get('result')} at {found.get('when')}"
