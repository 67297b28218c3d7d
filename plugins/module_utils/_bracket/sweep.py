# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""After the instant: wait for RAM and disks while the guest runs."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from ansible_collections.livesnap.qemu.plugins.module_utils._bracket import quiet
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.link import Limit
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.run import Run
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    AgentError,
    HelperError,
    LivesnapError,
    QmpError,
)

#: How often the jobs are asked for, seconds. RAM's progress comes by itself.
_POLL = 0.25
#: A keeper or writer that is stopped (SIGSTOP) for so long will not finish. Seconds.
_STOPPED_LIMIT = 5.0
#: A freeze that got no answer may come late: how often, and how long, a thaw is tried. Seconds.
_THAW_EVERY = 2.0
_THAW_AFTER_END = 10.0


def sweep(run: Run) -> None:
    """Wait until the image is whole and all disks are copied; raises when either failed."""
    spec = run.spec
    begun = time.monotonic()
    limit = Limit(spec.timeout or None, f"the sweep of guest '{spec.guest}'")
    ram = run.capture is None
    disks = run.backup is None
    counts = (0, 0)
    next_thaw = begun + _THAW_EVERY
    lost_qmp = 0
    stopped_at = begun
    while not (ram and disks):
        run.check()
        limit.left(1.0)
        if not ram:
            assert run.capture is not None
            ram = run.capture.poll(_POLL)
            stopped = run.capture.stopped()
            if not stopped:
                stopped_at = time.monotonic()
            elif time.monotonic() - stopped_at > _STOPPED_LIMIT:
                raise HelperError(f"the helper's {stopped} was stopped by a signal")
            if ram:
                run.timings["sweep_s"] = round(time.monotonic() - begun, 3)
        else:
            time.sleep(_POLL)
        try:
            if not disks:
                assert run.backup is not None
                disks, done, total = run.backup.poll(run.qmp)
                counts = (done, total)
                if disks:
                    run.timings["disk_copy_s"] = round(time.monotonic() - begun, 3)
            _watch(run)
            lost_qmp = 0
        except QmpError:
            lost_qmp += 1
            if not run.process.alive():
                raise LivesnapError(
                    f"guest '{spec.guest}' ended before its disks were copied"
                ) from None
            if lost_qmp > 5:
                raise
            with contextlib.suppress(LivesnapError):
                run.reconnect(5.0)
        if run.frozen and time.monotonic() >= next_thaw:
            next_thaw = time.monotonic() + _THAW_EVERY
            with contextlib.suppress(AgentError):
                quiet.thaw_once(run, 0.5)
            quiet.drop_agent(run)
        _tell(run, *counts)


def _watch(run: Run) -> None:
    """Look at what QEMU says meanwhile.

    A copy-before-write that fails fails the guest's own write, and QEMU stops the guest (werror):
    the copies are ended, and the guest goes on with a write that is tried again.
    """
    for event in run.qmp.events():
        if event["event"] != "BLOCK_IO_ERROR" or event.get("data", {}).get("action") != "stop":
            continue
        if run.backup is None:
            continue
        problem = run.backup.abort(run.qmp)
        status = run.qmp.execute("query-status")
        if not problem and run.plan.facts.running and status["status"] == "io-error":
            run.qmp.execute("cont")
        reason = event["data"].get("reason", "unknown")
        raise LivesnapError(
            f"a disk of guest '{run.spec.guest}' failed while it was copied ({reason}); the copy"
            " was ended, and the guest was resumed",
            "is there room in the store?",
        )


def _tell(run: Run, disk_done: int, disk_total: int) -> None:
    ram: dict[str, Any] = run.capture.progress if run.capture is not None else {}
    # The image grows after RAM was saved in memory: what counts is what is in the store.
    ram_done, ram_total = int(ram.get("done_bytes", 0)), int(ram.get("total_bytes", 0))
    if run.capture is not None and run.capture.done is not None:
        ram_done = ram_total
    done, total = ram_done + disk_done, ram_total + disk_total
    percent = 99.0 * done / total if total else 0.0
    run.progress("sweep", percent, done, total)


def last_thaw(run: Run) -> None:
    """Before we go: a freeze that got no answer is thawed, or said."""
    end = time.monotonic() + _THAW_AFTER_END
    while run.frozen and time.monotonic() < end and run.process.alive():
        with contextlib.suppress(AgentError):
            quiet.thaw_once(run, 1.0)
        quiet.drop_agent(run)
    if run.frozen:
        run.warnings.append(
            f"guest '{run.spec.guest}' was asked to freeze and did not answer; if it freezes late,"
            " thaw it with guest-fsfreeze-thaw"
        )
