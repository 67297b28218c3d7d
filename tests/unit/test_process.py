# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What /proc says about a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._connection import _peer
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest import process as module
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.process import QemuProcess

STAT = (
    "77 (a) R 1 (b) S 1 77 77 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 8833 1 1 1 1 1 1 1 1 0 0 0 0"
    " 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0"
)


def test_stat_with_a_wicked_name() -> None:
    assert module.parse_stat(STAT) == ("S", 8833)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("0::/system.slice/web1.service\n", "/system.slice/web1.service"),
        ("3:cpu:/x\n1:name=systemd:/user.slice/a.scope\n", "/user.slice/a.scope"),
        ("", ""),
    ],
)
def test_cgroup(text: str, path: str) -> None:
    assert module.parse_cgroup(text) == path


def test_of_a_child() -> None:
    code = "print(flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, "an arg", ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin and child.stdout
    try:
        # Before it runs, its arguments may not be there yet.
        child.stdout.readline()
        process = QemuProcess.of(child.pid)
        assert process.argv == (sys.executable, "-c", code, "an arg", "")
        assert (process.uid, process.gid) == (os.geteuid(), os.getegid())
        assert process.cwd == os.getcwd()
        assert process.alive()
        assert process.key == f"{child.pid}-{process.start_time}"
    finally:
        child.kill()
    # A zombie is gone as well.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not process.alive()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    assert not process.alive()
    with pytest.raises(LivesnapError, match=str(child.pid)):
        QemuProcess.of(child.pid)


def test_a_process_that_is_ending_listens_no_longer() -> None:
    """Its memory goes before its sockets do; a zombie is as far."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    try:
        end = time.monotonic() + 10
        while not _peer.is_ending(child):
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        os.waitpid(child, 0)
    assert not _peer.is_ending(child)
    assert not _peer.is_ending(os.getpid())
