# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The owner: a process of its own that takes the snapshot, whatever becomes of the module.

The module forks it away (twice, setsid, standard streams to /dev/null, a scope of its own where
PID 1 is systemd) and listens on a socket pair. The other end tells the owner that its module lives:
its end before the instant means undo; after it the owner carries on alone. All code that the owner
needs is imported before the fork, because Ansible removes its copy when the module ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any, Callable, NoReturn, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils import _scope
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket import entry
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.link import Link
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.spec import SnapshotSpec
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._log import log
from ansible_collections.livesnap.qemu.plugins.module_utils._store import rundir

Work = Callable[[SnapshotSpec, Link], dict[str, Any]]

#: An owner that is stopped (SIGSTOP) for so long beyond its deadline is ended: in the bracket that
#: is the guard's affair. Seconds.
_STOPPED_LIMIT = 1.0


@dataclass
class OwnerHandle:
    """The module's end."""

    sock: socket.socket
    deadline: float
    pid: int = 0
    start_time: int = 0


class _OwnerLink:
    """The owner's end: see _bracket.link.Link."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._gone = False
        self._term = False
        signal.signal(signal.SIGTERM, self._on_term)

    def _on_term(self, number: int, frame: object) -> None:
        self._term = True

    def caller_gone(self) -> bool:
        if not self._gone:
            try:
                # The module never sends anything.
                self._gone = self._sock.recv(64) == b""
            except BlockingIOError:
                pass
            except OSError:
                self._gone = True
        return self._gone

    def asked_to_end(self) -> bool:
        return self._term

    def say(self, event: dict[str, Any]) -> None:
        """To the module, if it is still there. It reads, so a short wait suffices."""
        data = json.dumps(event).encode() + b"\n"
        end = time.monotonic() + 10.0
        while data and time.monotonic() < end:
            try:
                if select.select([], [self._sock], [], 1.0)[1]:
                    data = data[self._sock.send(data) :]
            except BlockingIOError:
                continue
            except OSError:
                return


def run_detached(spec: SnapshotSpec, work: Work = entry.take) -> OwnerHandle:
    """Start the owner. The caller follows it, or ends; it must not have an event loop that runs."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        # Nothing of the module's own may run in here: no handlers, no clean-up of its files.
        with contextlib.suppress(BaseException):
            os.setsid()
            if os.fork() == 0:
                ours.close()
                _be_owner(spec, theirs, work)
        os._exit(0)
    theirs.close()
    os.waitpid(child, 0)
    return OwnerHandle(ours, float(spec.deadline))


def _be_owner(spec: SnapshotSpec, sock: socket.socket, work: Work) -> NoReturn:
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        _close_all_but(sock.fileno())
        os.chdir("/")
        os.umask(0o077)
        sock.setblocking(False)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        link = _OwnerLink(sock)
        _scope.move(os.getpid(), f"livesnap-{os.getpid()}", f"livesnap snapshot of {spec.guest}")
        link.say({"event": "owner", **rundir.myself()})
        try:
            link.say({"event": "result", "result": work(spec, link)})
        except LivesnapError as err:
            link.say({"event": "error", "msg": err.msg, "hint": err.hint, "result": err.result})
        except BaseException:  # noqa: BLE001 - nobody above would say it
            text = traceback.format_exc()
            log(spec.guest, "-", text.replace("\n", " | "), error=True)
            link.say({"event": "error", "msg": f"internal error: {text}", "hint": "", "result": {}})
    finally:
        os._exit(0)


def _close_all_but(keep: int) -> None:
    """Ansible's pipes, above all: it waits until they are closed."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd != keep:
            with contextlib.suppress(OSError):
                os.close(fd)


def follow(
    handle: OwnerHandle,
    did: str = "took the snapshot",
    left: str = "its guard has let the guest go on; the next run, or livesnap_recover, tidies up",
) -> dict[str, Any]:
    """Wait for the owner's end: its result, or its error as LivesnapError.

    If it is killed, the error says what it `did`, and what becomes of what it `left`.
    """
    buffer = b""
    stopped: Optional[float] = None
    with handle.sock as sock:
        while True:
            if select.select([sock], [], [], 0.5)[0]:
                data = sock.recv(65536)
                if not data:
                    raise LivesnapError(
                        f"the process that {did} (pid {handle.pid}) was killed", left
                    )
                buffer += data
                while b"\n" in buffer:
                    line, _sep, buffer = buffer.partition(b"\n")
                    event = json.loads(line)
                    if event["event"] == "owner":
                        handle.pid, handle.start_time = event["pid"], event["start_time"]
                    elif event["event"] == "result":
                        return dict(event["result"])
                    elif event["event"] == "error":
                        raise LivesnapError(event["msg"], event["hint"], event["result"])
                continue
            if handle.pid and rundir.state_of(handle.pid) == "T":
                now = time.monotonic()
                stopped = now if stopped is None else stopped
                about = {"pid": handle.pid, "start_time": handle.start_time}
                if now - stopped > handle.deadline + _STOPPED_LIMIT and rundir.is_process(about):
                    os.kill(handle.pid, signal.SIGKILL)
            else:
                stopped = None
