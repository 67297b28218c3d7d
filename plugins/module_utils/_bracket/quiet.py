# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Freeze and thaw through the guest's agent, and stop and cont: the guest's part of the bracket."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.run import Run
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    AgentCommandError,
    AgentError,
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import rundir

#: Any of these between stop and cont, that is not ours, voids the instant.
VOIDING = frozenset(
    (
        "RESUME",
        "RESET",
        "SHUTDOWN",
        "GUEST_PANICKED",
        "GUEST_CRASHLOADED",
        "BLOCK_IO_ERROR",
        "DEVICE_DELETED",
        "MEMORY_DEVICE_SIZE_CHANGE",
        "BALLOON_CHANGE",
        "STOP",
    )
)
#: How long the event of a command is waited for, which libvirt passes on later. Seconds.
_EVENT_LIMIT = 0.5
#: So long libvirt waits for what holds a domain, before it refuses a call. Seconds, and some more.
_SETTLE_LIMIT = 35.0
#: States from which `cont` makes the guest go on; a reset while stopped makes it prelaunch.
_RESUMABLE = ("paused", "prelaunch", "finish-migrate", "save-vm", "postmigrate")


def freeze(run: Run) -> None:
    """Freeze, or note why not. Raises when it is required and not achieved."""
    if not run.plan.freeze:
        run.freeze_reason = run.plan.freeze_reason
        return
    limit = run.limit.left(float(run.spec.freeze_timeout))
    begun = time.monotonic()
    run.frozen_at = begun
    try:
        run.agent = run.address.agent(limit)
        # After any error of this call a thaw is due: it may come into effect later.
        run.frozen = True
        left = max(0.05, limit - (time.monotonic() - begun))
        run.froze = run.agent.freeze(left)
        run.freeze_achieved = True
    except AgentError as err:
        run.freeze_reason = err.msg
        with contextlib.suppress(LivesnapError):
            thaw_once(run, 1.0)
        if run.spec.freeze == "required":
            raise RefusedError(
                f"guest '{run.spec.guest}' was not frozen, which is required: {err.msg}",
                "see the log of qemu-guest-agent in the guest, or set freeze: auto",
                "freeze",
            ) from None


def thaw_once(run: Run, timeout: float) -> None:
    """One try; run.frozen tells the outcome."""
    if not run.frozen:
        return
    end = time.monotonic() + timeout
    try:
        if run.agent is None:
            run.agent = run.address.agent(timeout)
        run.agent.thaw(max(0.05, end - time.monotonic()))
    except AgentCommandError:
        # It answers, so its own word counts: an error for want of anything frozen is no problem.
        if run.agent is None:
            raise AssertionError from None
        if run.agent.status(max(0.05, end - time.monotonic())) != "thawed":
            raise
    except AgentError:
        drop_agent(run)
        raise
    run.frozen = False
    run.timings["freeze_ms"] = (
        round((time.monotonic() - run.frozen_at) * 1000, 3) if run.freeze_achieved else None
    )


def drop_agent(run: Run) -> None:
    """Let go of the agent's socket."""
    if run.agent is not None:
        run.agent.close()
        run.agent = None


def thaw(run: Run) -> None:
    """At once after cont. What cannot be thawed after an achieved freeze is the guard's."""
    if run.frozen and not run.freeze_achieved:
        # The freeze got no answer. It may still come; the sweep goes on trying.
        with contextlib.suppress(LivesnapError):
            thaw_once(run, run.limit.left(0.5))
    while run.frozen and run.freeze_achieved:
        try:
            thaw_once(run, run.limit.left(2.0))
        except AgentError:
            run.limit.left(1.0)
            time.sleep(0.05)
    drop_agent(run)


def unfreeze(run: Run) -> None:
    """The undo of freeze."""
    problem = ""
    end = time.monotonic() + (5.0 if run.freeze_achieved else 1.0)
    while run.frozen:
        try:
            thaw_once(run, 1.0)
        except LivesnapError as err:
            problem = str(err)
            if time.monotonic() > end or not run.process.alive():
                break
            time.sleep(0.1)
    drop_agent(run)
    if run.frozen:
        raise LivesnapError(f"the guest could not be thawed: {problem}")


def _moment(event: dict[str, Any]) -> float:
    stamp = event["timestamp"]
    return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6


def stop(run: Run) -> None:
    """Stopped is the reply of `stop`: I/O drains in between."""
    run.qmp.events()
    if not run.plan.facts.running:
        expect_paused(run)
        return
    if not run.qmp.prompt_events:
        # Its events do not tell in time whose pause it is.
        _refuse_paused(run.qmp.execute("query-status", timeout=run.limit.left(5.0))["running"])
    run.stopped = True
    run.qmp.stop(run.limit.left(10.0))
    events = run.qmp.events_to("STOP", _EVENT_LIMIT)
    stops = [event for event in events if event["event"] == "STOP"]
    if not stops:
        # Not our pause, so not ours to end. An event that is only late leaves that open: better a
        # guest that runs.
        run.stopped = not run.qmp.prompt_events
        _refuse_paused(False)
    run.stop_event = _moment(stops[-1])
    refuse_events(events[events.index(stops[-1]) + 1 :])
    expect_paused(run)


def _refuse_paused(running: bool) -> None:
    if not running:
        raise LivesnapError("the guest was paused by somebody else just before the snapshot")


def refuse_events(events: list[dict[str, Any]]) -> None:
    """Raise when one of them voids the instant."""
    for event in events:
        if event["event"] in VOIDING:
            raise LivesnapError(
                f"the instant is void: QEMU sent {event['event']} while the guest was stopped",
                "somebody else acted on the guest; try again",
            )


def expect_paused(run: Run) -> None:
    """`query-status` says paused, and nothing happened that voids the instant."""
    status = run.qmp.execute("query-status", timeout=run.limit.left(5.0))
    refuse_events(run.qmp.events())
    if status["running"] or status["status"] != "paused":
        raise LivesnapError(
            f"the instant is void: the guest is '{status['status']}' where it should be paused",
            "somebody else acted on the guest; try again",
        )


def cont(run: Run) -> None:
    """The instant is fixed: the guest runs on, unless its operator had paused it."""
    expect_paused(run)
    if not run.plan.facts.running:
        run.created = rundir.utc()
        return
    asked = time.time()
    run.qmp.cont(run.limit.left(5.0))
    moment = _resumed(run, 0)
    # QEMU's clock is this machine's.
    if moment is not None and moment < asked:
        raise LivesnapError(
            "the instant is void: somebody else resumed the guest just before we did", "try again"
        )
    _note_instant(run, moment)


def went_on(run: Run) -> None:
    """The same where QEMU has let the guest go on by itself, when it had what it needs."""
    # The last one is QEMU's own: one before would have been somebody else's, which voids it.
    _note_instant(run, _resumed(run, -1))


def _resumed(run: Run, which: int) -> Optional[float]:
    """When the guest went on, if an event of it came; raises when one before voids the instant."""
    run.stopped = False
    events = run.qmp.events_to("RESUME", _EVENT_LIMIT)
    resumed = [event for event in events if event["event"] == "RESUME"]
    # libvirt passes events on a moment after QEMU sent them, but in their order.
    refuse_events(events[: events.index(resumed[which])] if resumed else events)
    return _moment(resumed[which]) if resumed else None


def _note_instant(run: Run, moment: Optional[float]) -> None:
    run.created = rundir.utc(moment)
    if moment is not None and run.stop_event is not None:
        run.timings["pause_ms"] = round((moment - run.stop_event) * 1000, 3)


def resume(run: Run) -> None:
    """The undo of stop: asked first, and cont only if we stopped it."""
    if not run.stopped:
        return

    def ask() -> None:
        qmp = run.reconnect(2.0)
        status = qmp.execute("query-status", timeout=2.0)
        if not status["running"] and status["status"] in _RESUMABLE:
            qmp.cont(2.0)
        run.stopped = False

    problem = run.until(5.0, ask)
    # A `stop` that was not answered in time may come into effect behind that.
    if run.qmp.settle(_SETTLE_LIMIT):
        problem = run.until(5.0, ask)
    if problem:
        raise LivesnapError(f"the guest could not be resumed: {problem}")
