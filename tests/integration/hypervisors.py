# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hypervisors on this machine, each with a network, sshd, /run, /usr/local and home of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PORT = 2222
#: What is private to one, before its sshd begins. What a shell does first in the home of this
#: machine's root must neither hold connections up nor be cut with them: pyenv takes a lock there.
_ENTER = """
set -e
mkdir -p "$1/home"
sed "s|^root:.*|root:x:0:0:root:$1/home:/bin/sh|" /etc/passwd > "$1/passwd"
mount --bind "$1/passwd" /etc/passwd
lower=$(mktemp -d "$1/XXXXXX")
mount --bind /usr/local "$lower"
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/sshd /run/upper /run/work
mount -t overlay -o lowerdir="$lower",upperdir=/run/upper,workdir=/run/work overlay /usr/local
exec /usr/sbin/sshd -D -f "$1/sshd_config" -E "$1/sshd.log"
"""


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=30)


class Hypervisor:
    """One of them; number from 1 to 250."""

    def __init__(self, number: int, folder: Path) -> None:
        self.folder = folder
        self.name = f"lshv{os.getpid() % 100000}-{number}"
        # Two runs of tests may be at it at once.
        net = f"10.{64 + os.getpid() % 128}.{number}"
        self.address, self._ours = f"{net}.2", f"{net}.1"
        self._link = f"lshv{os.getpid() % 100000}{number}"
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Hypervisor:
        self.folder.mkdir()
        for name in ("host", "key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name))
        (self.folder / "sshd_config").write_text(
            f"Port {PORT}\nListenAddress {self.address}\nHostKey {self.folder}/host\nPidFile none\n"
            f"UsePAM no\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\n"
            f"AuthorizedKeysFile {self.folder}/key.pub\nMaxStartups 100\n"
            "Subsystem sftp internal-sftp\n")
        _run("ip", "netns", "add", self.name)
        try:
            _run("ip", "link", "add", self._link, "type", "veth", "peer", "name", "net",
                 "netns", self.name)
            _run("ip", "addr", "add", f"{self._ours}/30", "dev", self._link)
            _run("ip", "link", "set", self._link, "up")
            for words in (f"addr add {self.address}/30 dev net", "link set net up",
                          "link set lo up"):
                _run("ip", "-n", self.name, *words.split())
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self) -> None:
        """It can be reached from now on."""
        self._server = subprocess.Popen(
            ["ip", "netns", "exec", self.name, "unshare", "--mount", "sh", "-c", _ENTER, "sh",
             str(self.folder)], start_new_session=True)
        for _attempt in range(100):
            with contextlib.suppress(OSError), socket.create_connection((self.address, PORT), 1):
                return
            time.sleep(0.1)
        raise AssertionError((self.folder / "sshd.log").read_text())

    def stop(self) -> None:
        """It cannot be reached any more, by connections that are there already neither."""
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGTERM)
            self._server.wait(timeout=10)
            self._server = None
            self.cut()

    def variables(self, stops_at: str = "", **more: Any) -> dict[str, Any]:
        """What the inventory says of it. The owner of a snapshot stops itself at that step."""
        python = "/usr/bin/python3"
        if stops_at:
            script = self.folder / "python3"
            script.write_text(
                f"#!/bin/sh\nLIVESNAP_TESTING=1 LIVESNAP_FAULT_STEP={stops_at}:STOP"
                f' exec {python} "$@"\n')
            script.chmod(0o755)
            python = str(script)
        return {
            "ansible_connection": "ssh", "ansible_host": self.address, "ansible_port": PORT,
            "ansible_user": "root", "ansible_python_interpreter": python,
            "ansible_ssh_private_key_file": str(self.folder / "key"),
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o ConnectTimeout=5"
            " -o UserKnownHostsFile=/dev/null", **more}

    def sessions(self) -> list[int]:
        """The processes of sshd that serve its connections."""
        names = subprocess.run(["ip", "netns", "pids", self.name], check=True, capture_output=True,
                               text=True, timeout=10).stdout.split()
        server = self._server.pid if self._server is not None else 0
        found = []
        for pid in map(int, names):
            with contextlib.suppress(OSError):
                if pid != server and Path(f"/proc/{pid}/comm").read_text() == "sshd\n":
                    found.append(pid)
        return found

    def cut(self) -> None:
        """All of its connections end at once; what runs there by itself runs on."""
        for pid in self.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stopped_owner(self, qemu: int | None) -> int:
        """Pid of the owner of the snapshot of a QEMU, once it has stopped itself; 0 before."""
        run = Path(f"/proc/{self._server.pid}/root/run/livesnap/guest" if self._server else "/")
        for path in run.glob(f"{qemu}-*/owner.json"):
            with contextlib.suppress(OSError, ValueError):
                pid = int(json.loads(path.read_text())["pid"])
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                    return pid
        return 0

    def __exit__(self, *_error: object) -> None:
        self.stop()
        subprocess.run(["ip", "link", "del", self._link], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)


@contextlib.contextmanager
def hypervisors(count: int, folder: Path) -> Iterator[list[Hypervisor]]:
    """So many, none of which can be reached yet."""
    # ip mounts it for the first namespace, and leaves it.
    names = Path("/run/netns")
    made = not names.is_mount()
    with contextlib.ExitStack() as stack:
        if made:
            stack.callback(subprocess.run, ["umount", str(names)], check=False, timeout=10)
        yield [stack.enter_context(Hypervisor(number + 1, folder / f"hv{number + 1}"))
               for number in range(count)]
