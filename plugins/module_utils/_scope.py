# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A scope of its own for a process that has to outlive whoever started it.

The end of a unit kills its whole cgroup: setsid is not enough. So the process moves to a transient
scope of system.slice, through systemd's D-Bus interface. Where PID 1 is not systemd there is no
such danger; where moving fails, things go on without.
"""

from __future__ import annotations

import os
import time
from typing import Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded

_LIMIT = 2.0


def move(
    pid: int, name: str, description: str, root: str = "/", others: Sequence[int] = ()
) -> bool:
    """Move a process to scope `name`.scope; whether it is there. Two seconds at most, twice.

    `others` are to come along. `root` is where /run/systemd and /proc are looked for (tests have
    one of their own).
    """
    if not os.path.isdir(os.path.join(root, "run/systemd/system")):
        return False
    command = [
        *("busctl", "--quiet", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1"),
        *("org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))"),
        *(f"{name}.scope", "fail", "3"),
        *("Description", "s", description),
        *("Slice", "s", "system.slice"),
        *("PIDs", "au", str(1 + len(others)), str(pid), *map(str, others)),
        "0",
    ]
    if run_bounded(command, _LIMIT).code != 0:
        return False
    try:
        end = time.monotonic() + _LIMIT
        while time.monotonic() < end:
            path = os.path.join(root, f"proc/{pid}/cgroup")
            with open(path, encoding="utf-8", errors="replace") as file:
                if f"{name}.scope" in file.read():
                    return True
            time.sleep(0.02)
    except OSError:
        pass
    return False


def join(pid: int, cgroup: str, description: str, root: str = "/") -> bool:
    """Put a process where another one was; whether it is there.

    `cgroup` is a path of the unified hierarchy, which has a place of its own beside the old ones. A
    group that is gone is replaced by a scope.
    """
    for mounted in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
        group = os.path.join(root, mounted, cgroup.lstrip("/"))
        # Every group of that hierarchy has it; elsewhere a write would make a file.
        if not os.path.exists(os.path.join(group, "cgroup.controllers")):
            continue
        try:
            with open(os.path.join(group, "cgroup.procs"), "r+", encoding="ascii") as file:
                file.write(str(pid))
        except OSError:
            continue
        return True
    move(pid, f"livesnap-guest-{pid}", description, root)
    return False
