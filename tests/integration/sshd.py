# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An sshd of our own on loopback, with an ordinary user who may use sudo; gone without a trace."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

USER = "livesnap-it"
SUDOERS = Path("/etc/sudoers.d/livesnap-it")


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


@contextlib.contextmanager
def ordinary_user() -> Iterator[Path]:
    """A user with a home, which it gives, no password, and sudo without one."""
    # Not below a test's own folder, which only root may enter.
    outer = Path(tempfile.mkdtemp(prefix="livesnap-it-", dir="/tmp"))
    outer.chmod(0o755)
    home = outer / "home"
    subprocess.run(["userdel", USER], check=False, capture_output=True)
    _run(
        "useradd", "--home-dir", str(home), "--create-home", "--shell", "/bin/bash", "-p", "*", USER
    )
    try:
        SUDOERS.write_text(f"{USER} ALL=(ALL) NOPASSWD: ALL\n")
        SUDOERS.chmod(0o440)
        yield home
    finally:
        SUDOERS.unlink(missing_ok=True)
        subprocess.run(["userdel", USER], check=False, capture_output=True)
        shutil.rmtree(outer, ignore_errors=True)


@contextlib.contextmanager
def sshd(folder: Path, home: Path) -> Iterator[dict[str, Any]]:
    """Yields what a host of the inventory needs to be reached as that user."""
    for name in ("host", "key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    (home / ".ssh").mkdir(mode=0o700)
    shutil.copy(folder / "key.pub", home / ".ssh" / "authorized_keys")
    _run("chown", "-R", f"{USER}:", str(home / ".ssh"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    separation = Path("/run/sshd")
    made = not separation.exists()
    separation.mkdir(mode=0o755, exist_ok=True)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nUsePAM no\n"
        f"StrictModes no\nAllowUsers {USER}\nPasswordAuthentication no\nMaxStartups 100\n"
        "Subsystem sftp internal-sftp\n"
    )
    server = subprocess.Popen(
        ["/usr/sbin/sshd", "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "sshd.log")]
    )
    try:
        for _attempt in range(50):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield {
            "ansible_connection": "ssh",
            "ansible_host": "127.0.0.1",
            "ansible_port": port,
            "ansible_user": USER,
            "ansible_ssh_private_key_file": str(folder / "key"),
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no "
            f"-o UserKnownHostsFile=/dev/null -o ControlPath={home.parent}/%C -o ControlPersist=5s",
        }
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=10)
        # Connections that Ansible keeps open end with their master.
        for master in (path for path in home.parent.iterdir() if path.is_socket()):
            subprocess.run(
                ["ssh", "-o", f"ControlPath={master}", "-O", "exit", "127.0.0.1"],
                check=False,
                capture_output=True,
            )
        if made:
            separation.rmdir()
