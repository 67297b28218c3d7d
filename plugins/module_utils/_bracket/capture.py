# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""RAM and device state: the engine's part of the bracket."""

from __future__ import annotations

import contextlib
import os
import time

from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.link import Limit
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.quiet import expect_paused
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.run import MARGIN, Run
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.spec import SnapshotSpec
from ansible_collections.livesnap.qemu.plugins.module_utils._capture.capture import (
    IMAGE,
    CaptureConfig,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._capture.table import ENGINES
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import leftovers
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    HelperError,
    LivesnapError,
    QmpError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files

DEVICES = "devices"
#: How often device state is saved until nothing wrote to RAM between it and arm.
ATTEMPTS = 3
#: Protecting before the pause: 24 ms a GiB, and what faults take meanwhile. Seconds.
PREARM_LIMIT = 300.0
#: How often a copy that the guest stands still for is looked at, seconds.
_POLL = 0.05
#: Bytes a second that any storage takes, and the most seconds that a guest stands still.
_SLOW_STORAGE, _COPY_MOST = 32 << 20, 3000.0
#: The longest deadline that the guard takes, seconds.
_GUARD_MOST = 3600
#: A data sync that took longer than this left others time to dirty the cache again. Seconds.
_SLOW_SYNC = 0.05


def attach(run: Run) -> None:
    """Make the helper ready for the engine that was chosen. Nothing is protected."""
    if run.plan.engine is None:
        return
    spec = run.spec
    run.capture = ENGINES[run.plan.engine].CAPTURE(
        CaptureConfig(
            helper=spec.helper,
            id=run.id,
            guest=spec.guest,
            pid=run.process.pid,
            start_time=run.process.start_time,
            image=str(run.place() / IMAGE),
            compression=spec.compression,
            level=spec.compression_level or 0,
            staging=spec.staging,
            workers=spec.workers,
            bandwidth=spec.bandwidth,
            ksm=spec.ksm,
            log=run.log,
            connect=run.reconnect,
        ),
        run.plan.facts,
    )
    run.capture.attach(run.qmp, run.prefix + leftovers.UFFD_NAME, 60.0)
    # Recovery finds the helper by these, should all of us die.
    run.rundir.write(
        "helper.json",
        {
            "keeper": {"pid": run.capture.keeper, "start_time": run.capture.keeper_start_time},
            "writer": {"pid": run.capture.writer, "start_time": run.capture.writer_start_time},
        },
    )


def detach(run: Run) -> None:
    """Release RAM, if it is protected, and end the helper. Harmless in every state."""
    if run.capture is not None:
        # A guest that stands still waits for this.
        run.capture.abort(1.0 if run.stopped else 5.0)
    if run.devices_fd >= 0:
        os.close(run.devices_fd)
        run.devices_fd = -1


def preflush(run: Run) -> None:
    """fdatasync of each image file from outside; otherwise `stop` does it inside the pause."""
    with run.timed("preflush_ms"):
        for disk in run.plan.node_disks:
            if not disk.file.startswith("/"):
                continue
            # As QEMU sees it, perhaps in a mount namespace of its own.
            path = f"/proc/{run.process.pid}/root{disk.file}"
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    for _try in range(3):
                        begun = time.monotonic()
                        os.fdatasync(fd)
                        if time.monotonic() - begun <= _SLOW_SYNC:
                            break
                finally:
                    os.close(fd)
            run.check()


def prearm(run: Run) -> None:
    """Only where RAM is large and mostly in 4 KiB pages; otherwise the pause pays for it."""
    if run.capture is not None:
        run.check()
        run.capture.prearm(PREARM_LIMIT)


def protect(run: Run) -> None:
    """Read the memory map again (ROM blocks change) and write-protect all of it."""
    if run.capture is None:
        return
    run.ramblock = run.qmp.hmp("info ramblock", run.limit.left(5.0))
    run.capture.protect(run.ramblock, run.limit.left(60.0))


def make_devices(run: Run) -> None:
    """The file of the device state, in QEMU's hands before the pause."""
    if run.capture is None or run.capture.saves_devices:
        return
    path = run.place() / DEVICES
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with files.as_store_error(f"'{path}' cannot be made"):
        run.devices_fd = os.open(path, flags, 0o600)
    fdset = run.qmp.add_fd(run.devices_fd, run.prefix + DEVICES)
    run.devices_file = f"/dev/fdset/{fdset}"


def save_devices(run: Run) -> None:
    """All device state and no RAM, by `xen-save-devices-state`; not tied to Xen."""
    if run.capture is None:
        return
    run.attempts += 1
    if run.capture.saves_devices:
        return
    # QEMU's descriptor shares our file offset.
    os.ftruncate(run.devices_fd, 0)
    os.lseek(run.devices_fd, 0, os.SEEK_SET)
    with run.timed("device_state_ms"):
        # live: false, or the disks of a stopped guest are inactivated.
        run.qmp.execute(
            "xen-save-devices-state",
            {"filename": run.devices_file, "live": False},
            run.limit.left(30.0),
        )


def arm(run: Run) -> None:
    """From here on a page is saved before it is written to. Shown by the kernel, not assumed."""
    if run.capture is None:
        return
    while True:
        expect_paused(run)
        clean = run.capture.arm(run.limit.left(60.0))
        if clean:
            break
        if run.attempts >= ATTEMPTS:
            raise LivesnapError(
                f"RAM of guest '{run.spec.guest}' was written to while it was stopped,"
                f" {ATTEMPTS} times",
                "something outside of QEMU writes to it; engine uffd cannot work here",
            )
        save_devices(run)
    run.timings["arm_ms"] = round(run.capture.arm_ms, 3)


def copy(run: Run) -> None:
    """Of an engine that holds the guest: until all of RAM is copied. The deadline waits as long."""
    if run.capture is None or run.guard is None or not run.capture.holds:
        return
    most = copy_limit(run.spec, run.plan.memory_estimate)
    run.guard.bracket(int(min(most + run.spec.deadline, _GUARD_MOST) * 1000))
    run.limit = Limit(most, f"copying the RAM of guest '{run.spec.guest}', which stood still,")
    while not run.capture.copied(_POLL):
        run.check()
        run.limit.left(1.0)
        if run.capture.stopped():
            raise HelperError(f"the helper's {run.capture.stopped()} was stopped by a signal")
        told = run.capture.progress
        done, total = int(told.get("done_bytes", 0)), int(told.get("total_bytes", 0))
        run.progress("copy", 99.0 * done / total if total else 0.0, done, total)
    run.limit = bracket_limit(run.spec)


def copy_limit(spec: SnapshotSpec, size: int) -> float:
    """Seconds that a guest with `size` bytes to be copied may stand still for them. Pure.

    `timeout` if it is given; otherwise what slow storage takes, should staging have no room.
    """
    if spec.timeout:
        return float(min(spec.timeout, _COPY_MOST))
    rate = min(_SLOW_STORAGE, spec.bandwidth or _SLOW_STORAGE)
    return min(10.0 + size / rate, _COPY_MOST)


def bracket_limit(spec: SnapshotSpec) -> Limit:
    """The owner's own limit in the bracket, which ends before the guard's."""
    return Limit(spec.deadline * (1 - MARGIN), f"the bracket of guest '{spec.guest}' (deadline)")


def drop_devices(run: Run) -> None:
    """Close QEMU's descriptor of the device state; QEMU up to 9.0 only does so while it runs."""
    with contextlib.suppress(QmpError):
        for number in leftovers.fdsets(run.qmp, run.prefix + DEVICES):
            run.qmp.remove_fdset(number)
    if run.devices_fd >= 0:
        with files.as_store_error("device state cannot be synced"):
            os.fsync(run.devices_fd)
        os.close(run.devices_fd)
        run.devices_fd = -1
