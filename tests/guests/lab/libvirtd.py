# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A libvirtd of the tests' own, which leaves the machine's libvirt alone."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from .errors import LabError
from .images import kvm_works
from .virthost import PLACES

# Whom the packages of Debian and Ubuntu have QEMU run as.
USER = "libvirt-qemu"
# The first answer may have to wait for the probing of QEMU on a busy machine.
LIMIT = 60.0
_QEMU_CONF = """\
# Not the machine's cgroups; no virtlogd; no hugetlbfs that libvirt would make folders in.
cgroup_controllers = []
stdio_handler = "file"
hugetlbfs_mount = []
# AppArmor's profiles would be written to the machine's own. Users and permissions stay as usual.
security_driver = "none"
"""
# Without /dev/kvm, which libvirt could not put into a domain's /dev from where it is hidden.
_NO_KVM_CONF = """\
cgroup_device_acl = [
    "/dev/null", "/dev/full", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/ptmx"
]
"""


@functools.cache
def kvm_for_qemu() -> bool:
    """True if guests boot under KVM and QEMU's user may open it."""
    if not kvm_works():
        return False
    entry, kvm = pwd.getpwnam(USER), os.stat("/dev/kvm")
    wanted = 0o060 if kvm.st_gid in os.getgrouplist(USER, entry.pw_gid) else 0o006
    return kvm.st_mode & wanted == wanted


class Libvirtd:
    """libvirtd in a mount namespace of its own, with all that it keeps in `folder`; needs root.

    `tree`: that of another system, whose libvirt, QEMU and virsh it is then. Use it as a context
    manager, or stop() it.
    """

    def __init__(self, tree: Path | None = None) -> None:
        # Short, as a socket's path has 107 characters, and reachable for QEMU's user.
        self.folder = Path(tempfile.mkdtemp(prefix="livesnap-virt-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.uri = f"qemu:///system?socket={self.folder}/run/libvirt-sock"
        self.log = self.folder / "log" / "libvirtd.log"
        self.tree = tree
        self.kvm = kvm_for_qemu()
        self.pid: int | None = None
        self._host: subprocess.Popen[str] | None = None
        # libvirt syncs its notes on a domain while that stands still: in memory, as /run is.
        self._run = Path(tempfile.mkdtemp(prefix="livesnap-virt-", dir="/dev/shm"))
        self._run.chmod(0o755)
        (self.folder / "run").symlink_to(self._run)
        for name in PLACES.keys() - {"run"}:
            (self.folder / name).mkdir(mode=0o755)
        (self.folder / "etc" / "qemu.conf").write_text(
            _QEMU_CONF + (_NO_KVM_CONF if not self.kvm else ""))
        (self.folder / "etc" / "libvirtd.conf").write_text(
            f'auth_unix_rw = "none"\nlog_level = 3\nlog_outputs = "3:file:{self.log}"\n')

    def start(self, limit: float = LIMIT) -> Libvirtd:
        """Returns when it answers. After kill() or terminate() it finds its guests again."""
        if self.alive:
            raise LabError("libvirtd runs already")
        try:
            self.pid = self._spawn()
            self._wait_answering(limit)
        except BaseException:
            self.stop()
            raise
        return self

    def _spawn(self) -> int:
        if self._host is None:
            env = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
                   # Otherwise guests are announced to systemd, which makes scopes for them.
                   "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={self.folder}/no-bus"}
            with (self.folder / "out").open("ab") as out:
                self._host = subprocess.Popen(
                    ["unshare", "--mount", "--propagation", "private", sys.executable,
                     str(Path(__file__).with_name("virthost.py")), str(self.folder),
                     "kvm" if self.kvm else "nokvm", *([str(self.tree)] if self.tree else [])],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, text=True,
                    cwd="/", env=env, start_new_session=True)
        assert self._host.stdin is not None and self._host.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._host.stdin.write("start\n")
            self._host.stdin.flush()
        answer = self._host.stdout.readline()
        if not answer:
            raise LabError(f"libvirtd did not start:\n{self.words()}")
        return int(answer)

    def _wait_answering(self, limit: float) -> None:
        deadline = time.monotonic() + limit
        while True:
            try:
                self.virsh("uri", limit=limit)
                return
            except LabError:
                if not self.alive or time.monotonic() > deadline:
                    raise LabError(f"libvirtd does not answer:\n{self.words()}") from None
            time.sleep(0.05)

    @property
    def alive(self) -> bool:
        """True while libvirtd runs."""
        return self.pid is not None and os.path.exists(f"/proc/{self.pid}")

    def words(self) -> str:
        """The last of what it said, on its output and in its log."""
        files = (self.folder / "out", self.log)
        return "".join(file.read_text(errors="replace")[-2000:] for file in files if file.exists())

    def _within(self) -> list[str]:
        """What runs a command of that system's, where it is another one."""
        if self.tree is None:
            return []
        there = f"/proc/{self.pid}"
        return ["nsenter", f"--mount={there}/ns/mnt", f"--root={there}/root"]

    def virsh(self, *argv: str, limit: float = 60.0) -> str:
        """What a command of virsh prints; LabError, with its words, if it fails or hangs."""
        try:
            done = subprocess.run(
                [*self._within(), "virsh", "--quiet", "--connect", self.uri, *argv],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit,
                check=False, env={**os.environ, "LC_ALL": "C.UTF-8"})
        except subprocess.TimeoutExpired:
            raise LabError(f"virsh {argv[0]} did not end within {limit:g} s") from None
        if done.returncode:
            raise LabError(f"virsh {argv[0]}: {done.stderr.strip()}")
        return done.stdout

    def _end(self, signals: Sequence[tuple[int, float]]) -> None:
        """Sends one after the other, each with its time to end in."""
        pid, self.pid = self.pid, None
        if pid is None:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            for number, limit in signals:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, number)
                if select.select([pidfd], [], [], limit)[0]:
                    return
            raise LabError(f"libvirtd did not end:\n{self.words()}")
        finally:
            os.close(pidfd)

    def terminate(self) -> None:
        """Ends libvirtd as a service manager does; its guests run on."""
        self._end([(signal.SIGTERM, 20.0), (signal.SIGKILL, 10.0)])

    def kill(self) -> None:
        """Ends libvirtd as a crash does; its guests run on."""
        self._end([(signal.SIGKILL, 10.0)])

    def restart(self) -> None:
        """As an update of its package does."""
        self.terminate()
        self.start()

    def stop(self) -> None:
        """Ends libvirtd and all of its guests, and removes its files. May be called twice."""
        if self.alive:
            # Asked to, libvirt gives the disks back to their owners; whatever is left then is
            # killed with the host.
            with contextlib.suppress(LabError):
                for name in self.virsh("list", "--name", limit=10.0).split("\n"):
                    if name:
                        self.virsh("destroy", name, limit=30.0)
        host, self._host = self._host, None
        try:
            self.terminate()
        finally:
            if host is not None:
                host.communicate()
            for folder in (self._run, self.folder):
                shutil.rmtree(folder, ignore_errors=True)

    def __enter__(self) -> Libvirtd:
        if self.pid is None:
            self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop()
