# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Boots that are kept: a guest that has just begun to count, put on a shelf for the next like it.

Under TCG a boot takes five CPU seconds, and to take one from the shelf less than one. What is kept
is QEMU's own snapshot of RAM and devices, and copies of the disks that belong to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from .errors import LabError
from .qmp import Monitor, QmpError

# Names a folder that every user can enter, and that goes away with the tests. Without it each guest
# boots.
SHELF = "LIVESNAP_TEST_BOOTS"
# MiB of RAM of the largest guest that is kept: disks and page cache have other work.
LARGEST = 512
_TAG = "boot"
_NODE = "lab-boot"
_JOB = "lab-boot"
_LIMIT = 60.0  # seconds for QEMU to save or load


def _copy(source: Path, target: Path) -> None:
    """The contents without the holes, into a file that keeps its owner if it is there already."""
    subprocess.run(["cp", "--sparse=always", source, target], check=True, timeout=60)


def _job(monitor: Monitor, command: str) -> None:
    """Runs snapshot-save or snapshot-load to its end; QmpError if it fails."""
    arguments = {"job-id": _JOB, "tag": _TAG, "vmstate": _NODE, "devices": [_NODE]}
    monitor.execute(command, arguments)
    deadline = time.monotonic() + _LIMIT
    while True:
        (job,) = [each for each in monitor.execute("query-jobs") if each["id"] == _JOB]
        if job["status"] == "concluded":
            break
        if time.monotonic() > deadline:
            raise LabError(f"{command} is not done after {_LIMIT:g} s: {job}")
        time.sleep(0.02)
    monitor.execute("job-dismiss", {"id": _JOB})
    if "error" in job:
        raise QmpError("GenericError", f"{command}: {job['error']}")


def _with_node(monitor: Monitor, file: dict[str, Any], command: str) -> None:
    """The job on a stopped guest with a qcow2 image in that file, which is a disk of nobody."""
    monitor.execute("stop")
    try:
        monitor.execute("blockdev-add", {"driver": "qcow2", "node-name": _NODE, "file": file})
        try:
            _job(monitor, command)
        finally:
            monitor.execute("blockdev-del", {"node-name": _NODE})
    except BaseException:
        monitor.execute("cont")
        raise


class Boot:
    """Boots of one kind: of guests whose QEMU has the same command line but for name and paths."""

    def __init__(self, shelf: Path, kind: str) -> None:
        self._folder = shelf / hashlib.sha256(kind.encode()).hexdigest()[:16]
        self._kept = self._folder / "kept"
        # The first says that there are such guests; only of those that come again one is kept.
        try:
            self._folder.mkdir()
            again = False
        except FileExistsError:
            again = True
        self.there = self._kept.is_dir()
        self.wanted = again and not self.there

    def lend(self, folder: Path, images: Sequence[Path], serial_log: Path) -> None:
        """Before QEMU starts: gives its disks what belongs to the kept boot, and what it printed.

        folder: the guest's own, where QEMU may write.
        """
        for index, image in enumerate(images):
            _copy(self._kept / f"disk{index}", image)
        _copy(self._kept / "serial.log", serial_log)
        serial_log.chmod(0o666)
        # QEMU, perhaps of another user, writes on in the log, and into the image that has the
        # snapshot, to load it.
        overlay, size = folder / "boot.qcow2", (self._kept / "state").stat().st_size
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", overlay, str(size)], check=True,
                       timeout=60)
        overlay.chmod(0o666)

    def load(self, folder: Path, monitor: Monitor) -> None:
        """Puts the kept boot into a QEMU that has just started, and lets it run."""
        overlay = folder / "boot.qcow2"
        backing = {"driver": "file", "filename": str(self._kept / "state"), "read-only": True}
        file = {"driver": "qcow2", "file": {"driver": "file", "filename": str(overlay)},
                "backing": backing}
        _with_node(monitor, file, "snapshot-load")
        overlay.unlink()
        monitor.execute("cont")

    def keep(self, monitor: Monitor, images: Sequence[Path], serial_log: Path) -> None:
        """Keeps a guest that has just begun to count; it stands still for that, and runs on.

        Nothing is kept of a guest that QEMU cannot save, or while another is being kept.
        """
        with (self._folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            if self._kept.exists():
                return
            making = Path(tempfile.mkdtemp(dir=self._folder))
            making.chmod(0o755)
            state = making / "state"
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", state, "1M"], check=True,
                           timeout=60)
            state.chmod(0o666)
            try:
                _with_node(monitor, {"driver": "file", "filename": str(state)}, "snapshot-save")
            except QmpError:
                shutil.rmtree(making)
                return
            try:
                for index, image in enumerate(images):
                    _copy(image, making / f"disk{index}")
                _copy(serial_log, making / "serial.log")
            finally:
                monitor.execute("cont")
            making.rename(self._kept)


@contextlib.contextmanager
def shelf() -> Iterator[None]:
    """A shelf for this process and those that it starts; it goes away at the end."""
    with tempfile.TemporaryDirectory(prefix="livesnap-boots-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        with mock.patch.dict(os.environ, {SHELF: folder}):
            yield


def boot(kind: str, memory: int) -> Boot | None:
    """The boots of guests of that kind, if any are kept.

    kind: all that tells a guest's QEMU from others; memory: the guest's RAM in MiB.
    """
    found = os.environ.get(SHELF)
    return Boot(Path(found), kind) if found and memory <= LARGEST else None
