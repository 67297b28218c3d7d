# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The QEMU process of a guest, from /proc (proc(5)). Reads only."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from typing import Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError


def parse_stat(text: str) -> tuple[str, int]:
    """(state letter, start time in clock ticks since boot) of a /proc/PID/stat. Pure.

    Counted from the last ')': a process chooses its own name, parentheses and blanks included.
    """
    field = text[text.rindex(")") + 2 :].split()
    return field[0], int(field[19])


def start_time(pid: int) -> Optional[int]:
    """Field 22 of /proc/PID/stat, or None when the process is gone (a zombie is)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="surrogateescape") as file:
            state, ticks = parse_stat(file.read())
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else ticks


def is_alive(pid: int, started: int) -> bool:
    """Whether that very process is still there: a number is given out again, with another start."""
    return start_time(pid) == started


@dataclass(frozen=True)
class QemuProcess:
    """What a process is at the moment of asking. Only pid and start_time name it for good."""

    pid: int
    start_time: int
    uid: int
    gid: int
    groups: tuple[int, ...]
    user: str
    argv: tuple[str, ...]
    cwd: str
    exe: str
    cgroup: str

    @classmethod
    def of(cls, pid: int) -> QemuProcess:
        """Read it, or raise LivesnapError when it is gone or may not be read."""
        base = f"/proc/{pid}"
        try:
            started = start_time(pid)
            if started is None:
                raise LivesnapError(f"process {pid} is gone", "is the guest running?")
            with open(f"{base}/status", encoding="utf-8", errors="surrogateescape") as file:
                status = dict(
                    line.split(":", 1) for line in file.read().splitlines() if ":" in line
                )
            with open(f"{base}/cmdline", "rb") as raw:
                argv = tuple(os.fsdecode(word) for word in raw.read().split(b"\0")[:-1])
            with open(f"{base}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
                cgroup = parse_cgroup(file.read())
            # Effective, the second: what QEMU opens files and creates sockets as.
            uid = int(status["Uid"].split()[1])
            process = cls(
                pid=pid,
                start_time=started,
                uid=uid,
                gid=int(status["Gid"].split()[1]),
                groups=tuple(int(word) for word in status["Groups"].split()),
                user=user_name(uid),
                argv=argv,
                cwd=os.readlink(f"{base}/cwd"),
                exe=os.readlink(f"{base}/exe"),
                cgroup=cgroup,
            )
        except OSError as err:
            raise LivesnapError(
                f"process {pid} cannot be read: {err.strerror}", "run as root, with /proc mounted"
            ) from None
        if not is_alive(pid, started):
            raise LivesnapError(f"process {pid} ended while it was read", "is the guest running?")
        return process

    def alive(self) -> bool:
        """Whether it is still there, and still the same."""
        return is_alive(self.pid, self.start_time)

    @property
    def key(self) -> str:
        """'PID-START', the name of its lock and its run folder."""
        return f"{self.pid}-{self.start_time}"

    @property
    def unit(self) -> str:
        """The systemd unit that it runs in, '' where there is none."""
        return unit_of(self.cgroup)


def parse_cgroup(text: str) -> str:
    """The path in the unified hierarchy, else systemd's own, else ''. Pure."""
    found = {}
    for line in text.splitlines():
        number, controllers, path = line.split(":", 2)
        found[controllers if number != "0" else ""] = path
    return found.get("", found.get("name=systemd", ""))


def unit_of(cgroup: str) -> str:
    """The systemd unit of a control group, '' where there is none. Pure."""
    for part in reversed(cgroup.split("/")):
        if part.endswith((".service", ".scope")):
            return part
    return ""


def user_name(uid: int) -> str:
    """The name of a user, or its number where nobody has that number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
