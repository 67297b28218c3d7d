# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bracket as a table: each step with its undo, in order, written down before it runs.

When a step fails, what came before it is undone in reverse, the failed step first. An undo is
harmless when its step did nothing, has a limit of its own, and never stops the others.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.livesnap.qemu.plugins.module_utils._bracket import (
    capture,
    faults,
    hooks,
    preflight,
    publish,
    quiet,
    sweep,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.link import Limit
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.run import Run
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import outside
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.captured import (
    CapturedDisks,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.scheme import Making
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    HelperError,
    LivesnapError,
    QmpError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guard import Guard, GuardConfig
from ansible_collections.livesnap.qemu.plugins.module_utils._store import rundir


@dataclass(frozen=True)
class Step:
    """One line of the table."""

    name: str
    do: Callable[[Run], None]
    undo: Callable[[Run], None]


def _nothing(run: Run) -> None:
    pass


def _begin(run: Run) -> None:
    run.folder = run.store.begin(run.spec.guest, run.spec.name)


def _discard(run: Run) -> None:
    if run.folder is not None:
        # It may have to ask QEMU, which serves one client a socket.
        run.qmp.close()
        outside.discard(run.folder)
        run.store.discard(run.folder)
        run.folder = None


def _targets(run: Run) -> None:
    chosen = run.plan.selection.chosen
    if chosen:
        making = Making(
            preflight.subject(run.spec, run.process),
            run.prefix,
            run.place(),
            {
                "id": run.id,
                "guest": run.spec.guest,
                "name": run.spec.name,
                **run.address.noted(),
            },
        )
        run.disks = CapturedDisks(making, chosen)
        run.disks.prepare(run.qmp)
    capture.make_devices(run)


def _drop_targets(run: Run) -> None:
    def remove() -> None:
        qmp = run.reconnect(2.0)
        if run.disks is not None:
            problem = run.disks.undo(qmp)
            if problem:
                raise LivesnapError(problem)
        capture.drop_devices(run)

    if run.process.alive():
        problem = run.until(5.0, remove)
        if problem:
            raise LivesnapError(f"QEMU still has something of this snapshot: {problem}")


def _guard(run: Run) -> None:
    spec, process = run.spec, run.process
    myself = rundir.myself()
    # What the guard would have to release is a userfaultfd of ours.
    taken = run.capture if run.capture is not None and run.capture.uffd >= 0 else None
    run.guard = Guard(
        spec.helper,
        GuardConfig(
            **run.address.guard(run.qmp, run.plan.freeze),
            pid=process.pid,
            start_time=process.start_time,
            guest=spec.guest,
            id=run.id,
            owner=myself["pid"],
            owner_start_time=myself["start_time"],
            was_running=run.plan.facts.running,
            report=str(run.rundir.path / "guard.json"),
            keeper=taken.keeper if taken is not None else None,
            keeper_start_time=taken.keeper_start_time if taken is not None else 0,
            keeper_uffd=taken.uffd if taken is not None else -1,
            keeper_progress=taken.progress_fd if taken is not None else -1,
        ),
        run.log,
    )
    run.guard.start()
    run.rundir.write("guard-process.json", {"pid": run.guard.pid})


def _bracket(run: Run) -> None:
    """From here on the guard undoes what we leave, at the deadline at the latest."""
    spec = run.spec
    run.check()
    if run.guard is None:
        raise AssertionError
    run.guard.bracket(spec.deadline * 1000)
    run.limit = capture.bracket_limit(spec)


def _end_guard(run: Run) -> None:
    """Only when everything in the bracket is undone; otherwise our end makes it act."""
    if run.guard is not None and not run.stopped and not (run.frozen and run.freeze_achieved):
        run.guard.quit()


def _cover(run: Run) -> None:
    if run.disks is not None and run.freeze_achieved and run.early:
        run.disks.commit_frozen(run.qmp, run.limit.left(10.0))


def _disks(run: Run) -> None:
    if run.disks is not None:
        with run.timed("disks_ms"):
            run.disks.commit(run.qmp, run.limit.left(10.0))


def _cont(run: Run) -> None:
    if run.capture is not None and run.capture.resumes:
        quiet.went_on(run)
    else:
        quiet.cont(run)
    run.instant = True


def _thaw(run: Run) -> None:
    quiet.thaw(run)
    if run.disks is not None:
        # Where the connection is lost just now, looking after the copies does the same.
        with contextlib.suppress(QmpError):
            run.disks.set_speed(run.qmp)
    if run.guard is not None:
        run.guard.running()
    run.limit = Limit(None, "")
    capture.drop_devices(run)


def _sweep(run: Run) -> None:
    sweep.sweep(run)
    if run.capture is not None:
        run.capture.finish()
    sweep.last_thaw(run)


def _publish(run: Run) -> None:
    run.snapshot = publish.publish(run)


#: Preflight and locks come before: they touch nothing.
STEPS: tuple[Step, ...] = (
    Step("folder", _begin, _discard),
    Step("attach", capture.attach, capture.detach),
    Step("targets", _targets, _drop_targets),
    Step("before", hooks.before, hooks.undo),
    Step("preflush", capture.preflush, _nothing),
    Step("guard", _guard, _end_guard),
    Step("prearm", capture.prearm, capture.detach),
    Step("bracket", _bracket, _nothing),
    Step("freeze", quiet.freeze, quiet.unfreeze),
    Step("cover", _cover, _nothing),
    Step("stop", quiet.stop, quiet.resume),
    Step("protect", capture.protect, capture.detach),
    Step("devices", capture.save_devices, _nothing),
    # Behind what asks QEMU: its answers take longer while it copies.
    Step("disks", _disks, _nothing),
    Step("arm", capture.arm, _nothing),
    Step("copy", capture.copy, _nothing),
    Step("cont", _cont, _nothing),
    Step("thaw", _thaw, _nothing),
    Step("after", hooks.after, _nothing),
    Step("sweep", _sweep, _nothing),
    Step("publish", _publish, _nothing),
    Step("release", _end_guard, _nothing),
)

#: Where LIVESNAP_FAULT_STEP can strike.
FAULT_POINTS: tuple[str, ...] = tuple(step.name for step in STEPS)


def execute(run: Run) -> dict[str, Any]:
    """All steps, or all undos; `snapshot` as it is returned."""
    begun: list[Step] = []
    try:
        for step in STEPS:
            run.check()
            run.rundir.note({"step": step.name})
            begun.append(step)
            faults.strike(step.name)
            if not run.instant:
                run.progress(step.name, 0.0)
            step.do(run)
    except BaseException as err:
        if run.snapshot is not None:
            # Published: what fails after that is no reason to throw it away.
            run.warnings.append(str(err))
        else:
            undo(run, begun)
            if isinstance(err, LivesnapError):
                explain(run, err, begun[-1].name if begun else "start")
            raise
    if run.snapshot is None:
        raise AssertionError
    return run.snapshot


def undo(run: Run, begun: list[Step]) -> None:
    """The undos of these steps, last first; what fails is noted in run.problems."""
    for step in reversed(begun):
        with contextlib.suppress(LivesnapError):
            run.rundir.note({"undo": step.name})
        try:
            step.undo(run)
        except (LivesnapError, OSError) as err:
            run.problems.append(f"{step.name}: {err}")


def explain(run: Run, err: LivesnapError, step: str) -> None:
    """What a user has to know besides the cause."""
    if step == "thaw" and run.spec.memory and run.spec.bandwidth and not err.hint:
        err.hint = (
            "the guest's writes may have waited for the store: give 'staging' more room, or lift"
            " the limit of 'bandwidth'"
        )
    if isinstance(err, HelperError) and err.reason == "undone":
        # What the undo could not do, the guard has done.
        run.problems.clear()
    err.msg = f"snapshot '{run.spec.name}' of guest '{run.spec.guest}' failed at {step}: {err.msg}"
    if run.problems:
        err.msg += " (not all could be undone: " + "; ".join(run.problems) + ")"
        err.hint = (err.hint + "; " if err.hint else "") + "run livesnap_recover"
    err.args = (err.msg,)
    err.result.setdefault("snapshot", None)
