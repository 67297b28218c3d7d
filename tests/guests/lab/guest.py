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
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

from . import console, disks
from .errors import LabError
from .images import images, kvm_works
from .options import SANDBOX, DiskSpec, Options
from .qmp import QmpClient
from .reach import Reach

__all__ = ["SANDBOX", "DiskSpec", "Guest", "LabError", "Options"]

# Ten seconds alone on a machine of this kind; others may be busy on it.
BOOT_LIMIT = 180.0
PR_SET_PDEATHSIG = 1
PR_SET_THP_DISABLE = 41


def _prepare(tied: bool, thp: bool) -> None:
    """Runs between fork and exec. Tied: a test run that is killed leaves no guest."""
    libc = ctypes.CDLL(None)
    if tied:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not thp:
        libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)


class Guest(Reach):
    """A guest of the given options; keyword arguments are those of Options.

    Use it as a context manager, or stop() it.
    """

    def __init__(self, options: Options | None = None, **given: Any) -> None:
        self.options = options if options is not None else Options(**given)
        self.uuid = str(uuid.uuid4())
        # Short, as a socket's path has 107 characters, and reachable for QEMU's user.
        self.folder = Path(tempfile.mkdtemp(prefix="livesnap-lab-", dir="/tmp"))
        self._process: subprocess.Popen[bytes] | None = None
        self.accel = self.options.resolved_accel(self.options.accel == "auto" and kvm_works())
        self.argv = self.options.argv(self.folder, self.uuid, self.accel)
        has_port = self.options.agent != "no port"
        super().__init__(self.folder / "qmp", self.folder / "agent" if has_port else None)
        self.look_path = self.folder / "look"
        self.serial_path = self.folder / "serial"
        self.serial_log = self.folder / "serial.log"
        self.log = self.folder / "qemu.log"
        self.disk_paths = [self.folder / f"disk{index}.{spec.format}"
                           for index, spec in enumerate(self.options.disks)]
        try:
            self._make_files()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _make_files(self) -> None:
        self.folder.chmod(0o755)
        self.link_images()
        for path, spec in zip(self.disk_paths, self.options.disks):
            disks.make(path, spec.mib, spec.format)
        if self.options.user:
            entry = pwd.getpwnam(self.options.user)
            for path in [self.folder, *self.folder.iterdir()]:
                os.chown(path, entry.pw_uid, entry.pw_gid)
                if path != self.folder:
                    path.chmod(0o600)

    def link_images(self) -> None:
        """Kernel and initramfs into the folder: the checkout need not be readable for QEMU."""
        found = images()
        shutil.copyfile(found.kernel, self.folder / "vmlinuz")
        shutil.copyfile(found.initrd, self.folder / "initrd.img")

    def start(self, wait: bool = True, limit: float = BOOT_LIMIT) -> Guest:
        """Starts QEMU; returns when the witness counts (wait=False: when QMP answers)."""
        if self._process is not None:
            raise LabError("the guest runs already")
        for path in (self.qmp_path, self.look_path, self.serial_path, self.folder / "agent"):
            path.unlink(missing_ok=True)
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
            if wait and not self.options.paused:
                self.wait_counting(mark, limit)
        except BaseException:
            self.stop()
            raise
        return self

    def _log_size(self) -> int:
        return self.serial_log.stat().st_size if self.serial_log.exists() else 0

    def _wait_for_socket(self, limit: float = 20.0) -> None:
        deadline = time.monotonic() + limit
        while not self.qmp_path.exists():
            self.check_alive()
            if time.monotonic() > deadline:
                raise LabError("QEMU made no QMP socket")
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

    def serial_text(self, since: int = 0) -> str:
        """What the guest printed from that byte of its log on; all its boots are in it."""
        if not self.serial_log.exists():
            return ""
        with self.serial_log.open("rb") as file:
            file.seek(since)
            return file.read().decode(errors="replace")

    def serial_lines(self, since: int = 0) -> list[str]:
        """The same in lines."""
        return self.serial_text(since).splitlines()

    def wait_serial(self, text: str, since: int = 0, limit: float = 30.0) -> None:
        """Returns when the guest has printed that."""
        deadline = time.monotonic() + limit
        while text not in self.serial_text(since):
            self.check_alive()
            if time.monotonic() > deadline:
                raise LabError(f"the guest did not print {text!r}:\n"
                               f"{self.serial_text(since)[-2000:]}")
            time.sleep(0.05)

    def wait_counting(self, since: int = 0, limit: float = BOOT_LIMIT) -> dict[str, Any]:
        """The witness' first state, printed after that byte of the log, in which it counts."""
        deadline = time.monotonic() + limit
        while True:
            states = console.states(self.serial_text(since))
            if states and states[-1]["ready"] and states[-1]["counter"] > 0:
                if states[-1]["disks"] != len(self.options.disks):
                    raise LabError(f"the guest did not mount its disks: {states[-1]}")
                return states[-1]
            if states and not states[-1]["intact"]:
                raise LabError(f"the witness found damage: {states[-1]['error']}")
            self.check_alive()
            if time.monotonic() > deadline:
                raise LabError(f"the witness did not count within {limit:g} s:\n"
                               f"{self.serial_text(since)[-2000:]}")
            time.sleep(0.05)

    def witness(self, limit: float = 15.0) -> dict[str, Any]:
        """The witness' next state on the console, which has one each second.

        Needs no agent; works while the guest is frozen, not while it is paused.
        """
        since = self._log_size()
        deadline = time.monotonic() + limit
        while True:
            states = console.states(self.serial_text(since))
            if states:
                return states[0]
            self.check_alive()
            if time.monotonic() > deadline:
                raise LabError(f"the witness printed nothing for {limit:g} s")
            time.sleep(0.05)

    def witness_states(self, since: int = 0) -> list[dict[str, Any]]:
        """All its states from that byte of the log on, oldest first."""
        return console.states(self.serial_text(since))

    def command(self, line: str, limit: float = 60.0) -> None:
        """Tells the guest's init on its console: "agent run|none|hung", "hook ok|fail"."""
        since = self._log_size()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(limit)
            connection.connect(str(self.serial_path))
            connection.sendall(line.encode() + b"\n")
            self.wait_serial(f"lab {line}", since, limit)

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
