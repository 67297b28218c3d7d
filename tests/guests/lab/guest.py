# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A test guest: made, booted, asked, stopped, and nothing of it left behind."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

from qemu.qmp import ConnectError

from . import disks, kept
from .console import BOOT_LIMIT, Console
from .errors import LabError
from .images import kvm_works, put_images
from .options import SANDBOX, DiskSpec, Options
from .qmp import QmpClient
from .reach import Reach

__all__ = ["SANDBOX", "DiskSpec", "Guest", "LabError", "Options"]

PR_SET_PDEATHSIG = 1
PR_SET_THP_DISABLE = 41


def _prepare(tied: bool, thp: bool) -> None:
    """Runs between fork and exec. Tied: a test run that is killed leaves no guest."""
    libc = ctypes.CDLL(None)
    if tied:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not thp:
        libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)


class Guest(Console, Reach):
    """A guest of the given options; keyword arguments are those of Options.

    Use it as a context manager, or stop() it.
    """

    def __init__(self, options: Options | None = None, **given: Any) -> None:
        self.options = options if options is not None else Options(**given)
        self.uuid = str(uuid.uuid4())
        # Short, as a socket's path has 107 characters, and reachable for QEMU's user.
        self.folder = Path(tempfile.mkdtemp(prefix="livesnap-lab-", dir=self.options.base))
        self._process: subprocess.Popen[bytes] | None = None
        self.accel = self.options.resolved_accel(self.options.accel == "auto" and kvm_works())
        self.argv = self.options.argv(self.folder, self.uuid, self.accel)
        has_port = self.options.agent != "no port"
        Reach.__init__(self, self.folder / "qmp", self.folder / "agent" if has_port else None)
        Console.__init__(self, self.folder, len(self.options.disks))
        self.look_path = self.folder / "look"
        self.log = self.folder / "qemu.log"
        self.disk_paths = [spec.path(self.folder, index)
                           for index, spec in enumerate(self.options.disks)]
        try:
            self._make_files()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _make_files(self) -> None:
        self.folder.chmod(0o755)
        put_images(self.folder, self.options.packed)
        for path, spec in zip(self.disk_paths, self.options.disks):
            disks.make(path, spec.mib, spec.format)
        self._as_made = disks.versions(self.disk_paths)
        if self.options.user:
            entry = pwd.getpwnam(self.options.user)
            for path in [self.folder, *self.folder.iterdir()]:
                os.chown(path, entry.pw_uid, entry.pw_gid)
                if path != self.folder:
                    path.chmod(0o600)

    def start(self, wait: bool = True, limit: float = BOOT_LIMIT) -> Guest:
        """Starts QEMU; returns when the witness counts (wait=False: when QMP answers)."""
        if self._process is not None:
            raise LabError("the guest runs already")
        for path in (self.qmp_path, self.look_path, self.serial_path, self.folder / "agent"):
            path.unlink(missing_ok=True)
        boot = self._boot() if wait else None
        if boot and boot.there:
            boot.lend(self.folder, self.disk_paths, self.serial_log)
        mark = self._log_size()
        as_user: dict[str, Any] = {}
        if self.options.user:
            entry = pwd.getpwnam(self.options.user)
            as_user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        # The signal comes when the *thread* that started QEMU ends: only for the main one.
        tied = threading.current_thread() is threading.main_thread()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                start_new_session=True, **as_user,
                preexec_fn=functools.partial(_prepare, tied, self.options.thp))  # noqa: PLW1509
        self.pid = self._process.pid
        try:
            self._wait_for_socket()
            # Nobody meets a QEMU that has not made all of its sockets.
            with self._early_look() as monitor:
                if boot and boot.there:
                    boot.load(self.folder, monitor)
            if wait and not self.options.paused:
                self.wait_counting(mark, limit)
            if boot and boot.wanted:
                with self.look() as monitor:
                    boot.keep(monitor, self.disk_paths, self.serial_log)
        except BaseException:
            self.stop()
            raise
        return self

    def _boot(self) -> kept.Boot | None:
        """The boots of guests like this one, if it has never run and is to run at once."""
        options = self.options
        first = self._as_made == disks.versions(self.disk_paths)
        if options.fresh or options.paused or self.accel != "tcg" or not first:
            return None
        own = {str(self.folder): "", self.uuid: "", f"\0-name\0{options.name}\0": "\0"}
        text = "\0".join(self.argv)
        for each, instead in own.items():
            text = text.replace(each, instead)
        return kept.boot(text, options.memory)

    def _wait_for_socket(self, limit: float = 20.0) -> None:
        deadline = time.monotonic() + limit
        while not self.qmp_path.exists():
            self.check_alive()
            if time.monotonic() > deadline:
                raise LabError("QEMU made no QMP socket")
            time.sleep(0.02)

    def _early_look(self, limit: float = 20.0) -> QmpClient:
        """look() as soon as QEMU answers there: it makes one socket after the other."""
        deadline = time.monotonic() + limit
        while True:
            try:
                return self.look()
            except (OSError, ConnectError):
                self.check_alive()
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    def check_alive(self) -> None:
        """LabError, with QEMU's own words, if it has ended."""
        if self._process is None or self._process.poll() is not None:
            code = "never started" if self._process is None else self._process.returncode
            raise LabError(f"QEMU ended ({code}):\n{self.log.read_text(errors='replace')}"
                           f"{self.serial_text()[-2000:]}")

    @property
    def alive(self) -> bool:
        """True while QEMU runs."""
        return self._process is not None and self._process.poll() is None

    def look(self, timeout: float = 10.0) -> QmpClient:
        """A connection to the second monitor, which nothing but tests uses."""
        return QmpClient(self.look_path, timeout)

    def shut_down(self, limit: float = 10.0) -> None:
        """Ends QEMU, as its `quit` does; files stay, and start() runs the same command again."""
        process, self._process, self.pid = self._process, None, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            # A stopped process takes no SIGTERM: some tests stop it.
            process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """Ends QEMU and removes all files of the guest. May be called twice."""
        self.shut_down()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Guest:
        if self._process is None:
            self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop()
