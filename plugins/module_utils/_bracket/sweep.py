# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""After the instant: wait for RAM and disks while the guest runs."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from ansible_collections.livesnap.qemu.plugins.module_utils._bracket import quiet
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.copies import Copies
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.link import Limit
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.run import Run
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    AgentError,
    HelperError,
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
    copies = Copies(run)
    next_thaw = begun + _THAW_EVERY
    stopped_at = begun
    with copies:
        while not (ram and copies.done):
            run.check()
            limit.left(1.0)
            if not ram:
                if run.capture is None:
                    raise AssertionError
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
            copies.look()
            if run.frozen and time.monotonic() >= next_thaw:
                next_thaw = time.monotonic() + _THAW_EVERY
                with contextlib.suppress(AgentError):
                    quiet.thaw_once(run, 0.5)
                quiet.drop_agent(run)
            _tell(run, *copies.counts)


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
