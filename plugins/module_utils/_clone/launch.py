# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts a second QEMU, feeds it a snapshot, and sees it run. Everything is bounded."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._clone.plan import TapNeed
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.taps import isolated_tap
from ansible_collections.livesnap.qemu.plugins.module_utils._connection._peer import is_qemu
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.qmp import Qmp
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    CloneError,
    HelperError,
    QmpConnectError,
    QmpError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest import process, waking
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.agent import Agent
from ansible_collections.livesnap.qemu.plugins.module_utils._helper import HelperProcess

START_LIMIT = 30.0
#: The slowest that a stream may be and not count as stuck, in bytes a second.
_SLOWEST = 20 << 20
#: Seconds that a server may take to end after its QEMU.
SERVER_END = 5.0
#: In an argv, the descriptor that the stream comes by.
INCOMING = "@incoming@"
CLEAN_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


@dataclass(frozen=True)
class Setting:
    """What a QEMU is started in. groups: None is what its user has now.

    log: what it prints is added there; export_log: what the export says. name: for messages.
    """

    exe: str
    cwd: str
    uid: int
    gid: int
    log: str
    export_log: str
    groups: Optional[tuple[int, ...]] = None
    umask: int = 0o077
    env: Mapping[str, str] = field(default_factory=lambda: CLEAN_ENV)
    name: str = "the clone"


@dataclass
class Running:
    """A QEMU that was started here, and what it gets its snapshot from."""

    pid: int
    start_time: int
    qemu: subprocess.Popen[bytes]
    #: Where the stream that it waits for is to be written to; -1 is closed.
    stream: int
    log: str
    export_log: str
    name: str = "the clone"
    export: Optional[subprocess.Popen[bytes]] = None
    server: Optional[HelperProcess] = None
    #: Where its own words begin in the log.
    log_start: int = 0
    warnings: list[str] = field(default_factory=list)

    def feeders(self) -> list[tuple[int, int]]:
        """Pid and start time of export and server, as far as they are there."""
        found = []
        for child in (self.export, self.server):
            started = None if child is None else process.start_time(child.pid)
            if child is not None and started:
                found.append((child.pid, started))
        return found

    def close_stream(self) -> None:
        """QEMU sees its end when the export has closed it, too."""
        if self.stream >= 0:
            os.close(self.stream)
        self.stream = -1

    def kill(self) -> None:
        """End all of it, and wait for that."""
        self.close_stream()
        children = [each for each in (self.export, self.qemu) if each is not None]
        for child in children:
            if child.poll() is None:
                child.kill()
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(10.0)
        if self.server is not None:
            # It ends with the QEMU that it serves.
            self.server.end(10.0)

    def check(self) -> None:
        """CloneError, with its own last words, when either has failed."""
        if self.export is not None and self.export.poll() not in (None, 0):
            # QEMU's end of the pipe closes when it fails: then its words are the cause.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.qemu.wait(0.5)
            if self.qemu.poll() is None:
                raise CloneError(f"the snapshot cannot be read: {tail(self.export_log)}")
        if self.server is not None:
            self._check_server(self.server)
        if self.qemu.poll() is not None:
            raise CloneError(f"the QEMU of {self.name} ended at once: {self.words()}")

    def _check_server(self, server: HelperProcess) -> None:
        """HelperError if QEMU ended for want of its RAM. One ends a moment after the other."""
        over = server.poll() is not None or self.qemu.poll() is not None
        if over and server.end(SERVER_END) != 0:
            error = server_error(server.logged())
            if error is not None:
                raise error

    def words(self) -> str:
        """The last that QEMU said."""
        return tail(self.log, self.log_start)


def tail(path: str, start: int = 0) -> str:
    """The last lines of a log, from a place in it on."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            lines = file.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
    except OSError:
        lines = []
    return "; ".join(lines[-3:]) or "it said nothing"


def server_error(words: str) -> Optional[HelperError]:
    """Why `livesnap-helper serve`, which has failed, left its clone; None if that ended first.

    words: the last that it logged, none if it was killed. Pure.
    """
    word, _sep, said = words.partition(": ")
    if word == "gone":
        return None
    if not said:
        return HelperError("livesnap-helper, which brought RAM to the clone, was killed")
    return HelperError(f"RAM cannot be brought to the clone: {said}", word=word)


def start(argv: list[str], setting: Setting, taps: Sequence[TapNeed] = ()) -> Running:
    """Start QEMU; where it waits for a stream, feed() is next.

    '@incoming@' in argv becomes the descriptor of the pipe, '@tapN@' those of the taps.
    """
    opened: list[int] = []
    writer = -1
    try:
        reader, writer = os.pipe()
        opened.append(reader)
        passed = [reader]
        marks = {INCOMING: str(reader)}
        for need in taps:
            fds = isolated_tap(need.queues)
            opened += fds
            passed += fds
            marks[need.marker] = ":".join(map(str, fds))
        words = [_fill(word, marks) for word in argv]
        with open(setting.log, "ab") as output:
            log_start = output.tell()
            qemu = subprocess.Popen(  # pylint: disable=ansible-bad-function
                words,
                executable=setting.exe,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=setting.cwd,
                env=dict(setting.env),
                pass_fds=passed,
                start_new_session=True,
                umask=setting.umask,
                **_as_user(setting),
            )
        return Running(
            pid=qemu.pid,
            start_time=process.start_time(qemu.pid) or 0,
            qemu=qemu,
            stream=writer,
            log=setting.log,
            export_log=setting.export_log,
            name=setting.name,
            log_start=log_start,
        )
    except OSError as err:
        if writer >= 0:
            os.close(writer)
        raise CloneError(
            f"the QEMU of {setting.name} cannot be started: {err.strerror or err}"
        ) from None
    finally:
        for fd in opened:
            os.close(fd)


def feed(running: Running, export: Sequence[str]) -> None:
    """Have it read what this command writes."""
    try:
        with open(running.export_log, "wb") as errors:
            running.export = subprocess.Popen(  # pylint: disable=ansible-bad-function
                list(export),
                stdin=subprocess.DEVNULL,
                stdout=running.stream,
                stderr=errors,
                cwd="/",
                start_new_session=True,
            )
    except OSError as err:
        raise CloneError(
            f"the snapshot of {running.name} cannot be read: {err.strerror or err}"
        ) from None
    running.close_stream()


def _fill(word: str, marks: dict[str, str]) -> str:
    for mark, text in marks.items():
        word = word.replace(mark, text)
    return word


def _as_user(setting: Setting) -> dict[str, Any]:
    """Arguments of Popen; none when it is us already."""
    uid, gid = setting.uid, setting.gid
    if (uid, gid) == (os.geteuid(), os.getegid()):
        return {}
    groups = [gid] if setting.groups is None else list(setting.groups)
    with contextlib.suppress(KeyError):
        if setting.groups is None:
            groups = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    return {"user": uid, "group": gid, "extra_groups": groups}


def connect(running: Running, socket: str) -> Qmp:
    """Its QMP, once it listens."""
    deadline = time.monotonic() + START_LIMIT
    while True:
        running.check()
        try:
            return Qmp.connect(socket, timeout=5.0)
        except QmpConnectError as err:
            if err.kind not in ("missing", "refused") or time.monotonic() > deadline:
                # It may be about to end, and then says why.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running.qemu.wait(1.0)
                running.check()
                raise CloneError(f"the QEMU of {running.name} does not answer: {err.msg}") from None
        time.sleep(0.02)


def wait_loaded(running: Running, qmp: Qmp, stream_bytes: int) -> None:
    """Until it has taken the whole stream; the limit grows with its length."""
    limit = START_LIMIT + stream_bytes / _SLOWEST
    deadline = time.monotonic() + limit
    while True:
        running.check()
        try:
            status = qmp.execute("query-status", timeout=START_LIMIT)["status"]
            if status != "inmigrate":
                break
            if qmp.execute("query-migrate", timeout=START_LIMIT).get("status") == "failed":
                raise CloneError(f"QEMU refuses the snapshot: {running.words()}")
        except QmpError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.qemu.wait(5.0)
            running.check()
            raise
        if time.monotonic() > deadline:
            raise CloneError(f"the snapshot was not loaded within {limit:.0f} s")
        time.sleep(0.02)
    if running.export is not None:
        try:
            code = running.export.wait(START_LIMIT)
        except subprocess.TimeoutExpired:
            raise CloneError("the export does not end, although QEMU has all of it") from None
        if code != 0:
            raise CloneError(f"the snapshot cannot be read: {tail(running.export_log)}")


def wake(running: Running, qmp: Qmp, agent_socket: str, frozen: bool) -> None:
    """Let it run, thawed and on time: see waking.wake()."""
    agent = functools.partial(Agent.connect, agent_socket) if agent_socket else None
    running.warnings += waking.wake(qmp, agent, frozen, running.name)


def processes_in(folder: str) -> list[tuple[int, int]]:
    """(pid, start time) of processes whose working directory it is: QEMUs of this clone.

    The folder itself: containers may have others of the same name.
    """
    found: list[tuple[int, int]] = []
    try:
        wanted = os.stat(folder)
    except OSError:
        return found
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            here = os.stat(f"/proc/{name}/cwd")
            if not os.path.samestat(here, wanted) or not is_qemu(int(name)):
                continue
        except OSError:
            continue
        started = process.start_time(int(name))
        if started is not None:
            found.append((int(name), started))
    return found


def end(pid: int, started: int, timeout: float = 10.0) -> None:
    """SIGKILL to that very process, and wait; a pidfd makes sure that it is no other."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not process.is_alive(pid, started):
            return
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        deadline = time.monotonic() + timeout
        while process.is_alive(pid, started):
            if time.monotonic() > deadline:
                raise CloneError(f"process {pid} does not end ({timeout:g} s after SIGKILL)")
            time.sleep(0.01)
        # If it is a child of ours, nobody else buries it.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)
