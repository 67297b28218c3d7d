# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The owner's handle of the guard, the process that ends a bracket whose owner died.

    guard = Guard(helper_path, GuardConfig(...))
    guard.start()               right before the bracket; nothing is guarded yet
    guard.bracket(deadline_ms)  from here on: our death, or the deadline, undoes the bracket
    guard.running()             after cont and thaw: from here on it only watches the keeper
    guard.quit()                when the keeper is gone, or everything has been undone by us

The guard is `livesnap-helper guard`, in a session of its own, with no descriptor of ours but its
three standard streams. Every wait here has a limit. A failure of start() or bracket() means that
nothing guards: the bracket must not begin.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from dataclasses import asdict, dataclass
from typing import Any, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    HelperError,
    LivesnapError,
    TimedOutError,
)

#: Exit code of a guard that had something to undo (docs/helper.md).
UNDID = 10

#: Seconds that the guard may take to answer a request: it only opens a few processes.
ANSWER_TIMEOUT = 5.0

_LINE_MAX = 65536


@dataclass(frozen=True)
class GuardConfig:
    """What the guard has to know, by the names of its `start` request.

    The guest is reached by its sockets, or through `libvirt`, a dict of "uri", "domain" (its UUID),
    "virsh" (an absolute path) and "freeze" (bool): then both sockets are None.

    `start_time`s are field 22 of /proc/PID/stat (clock ticks). `agent_socket` is None, or "freeze"
    False, when the guest is not going to be frozen (its agent does not answer, or freeze is never):
    a guard that has an agent to thaw tries until the agent says that it is thawed. `report` is the
    file that the guard writes when it undoes something.
    """

    qmp_socket: Optional[str]
    agent_socket: Optional[str]
    pid: int
    start_time: int
    guest: str
    id: str
    owner: int
    owner_start_time: int
    was_running: bool
    report: str
    keeper: Optional[int] = None
    keeper_start_time: int = 0
    keeper_uffd: int = -1
    keeper_progress: int = -1
    libvirt: Optional[dict[str, Any]] = None

    def request(self) -> dict[str, Any]:
        """The `start` request. Without a keeper, nothing is said of one; nor of the sockets that a
        guest of libvirt's is not reached by."""
        fields = asdict(self)
        if self.libvirt is None:
            del fields["libvirt"]
        else:
            for name in ("qmp_socket", "agent_socket"):
                if fields[name] is None:
                    del fields[name]
        if self.keeper is None:
            for name in ("keeper_start_time", "keeper_uffd", "keeper_progress"):
                del fields[name]
        return {"request": "start", **fields}


class Guard:
    """One guard process. Not thread-safe; made by the process named as `owner` in the config."""

    def __init__(self, helper_path: str, config: GuardConfig, log: str = os.devnull) -> None:
        """`log`: the file that its log lines are appended to (they go to the journal as well)."""
        self._helper = helper_path
        self._config = config
        self._log = log
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._input = b""

    @property
    def pid(self) -> Optional[int]:
        """Its process id; None before start()."""
        return self._process.pid if self._process else None

    def start(self, timeout: float = ANSWER_TIMEOUT) -> None:
        """Starts it and waits until it is ready. Raises HelperError or TimedOutError; then it is
        not running."""
        if self._process is not None:
            raise LivesnapError("the guard was started already")
        try:
            with open(self._log, "ab") as log:
                self._process = subprocess.Popen(  # pylint: disable=ansible-bad-function
                    [self._helper, "guard"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd="/",
                    close_fds=True,
                    start_new_session=True,
                )
        except OSError as exc:
            raise HelperError(f"cannot start the guard '{self._helper}': {exc}") from exc
        for stream in (self._process.stdin, self._process.stdout):
            if stream is None:
                raise AssertionError
            os.set_blocking(stream.fileno(), False)
        try:
            self._ask(self._config.request(), "ready", timeout)
        except LivesnapError:
            self._kill()
            raise

    def bracket(self, deadline_ms: int, timeout: float = ANSWER_TIMEOUT) -> None:
        """Right before freeze or stop. The guest runs and is thawed `deadline_ms` from now,
        whatever happens to us. Raises HelperError or TimedOutError: do not begin."""
        self._ask({"request": "bracket", "deadline_ms": deadline_ms}, "bracket", timeout)

    def running(self, timeout: float = ANSWER_TIMEOUT) -> None:
        """The guest runs and is thawed: takes the deadline away.

        Raises HelperError if the guard has undone the bracket meanwhile (`reason` "undone"; the
        snapshot is void) or died.
        """
        self._ask({"request": "running"}, "running", timeout)

    def quit(self, timeout: float = ANSWER_TIMEOUT) -> int:
        """Ends it, by force after `timeout` seconds. Returns its exit code; UNDID means that it
        had undone something, which `report()` tells. Harmless when it was never started."""
        if self._process is None:
            return 0
        try:
            self._send({"request": "quit"}, time.monotonic() + timeout)
        except LivesnapError:
            pass  # it has ended, or will be by force
        return self._wait(timeout)

    def alive(self) -> bool:
        """Whether it is still there. In the bracket a guard that is not has undone it, or died."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> Optional[int]:
        """Its exit code once it has ended."""
        return self._process.poll() if self._process else None

    def report(self) -> Optional[dict[str, Any]]:
        """What it wrote about what it had to undo; None if it had nothing to."""
        return read_report(self._config.report)

    def _ask(self, request: dict[str, Any], event: str, timeout: float) -> None:
        until = time.monotonic() + timeout
        self._send(request, until)
        while True:
            answer = self._receive(until)
            if answer.get("event") == event:
                return
            if answer.get("event") == "error":
                raise HelperError(
                    f"the guard refused '{request['request']}': {answer.get('message')}",
                    word=str(answer.get("class", "internal")),
                    reason=str(answer.get("reason", "")),
                )

    def _send(self, request: dict[str, Any], until: float) -> None:
        if self._process is None or self._process.stdin is None:
            raise LivesnapError("the guard was not started")
        data = json.dumps(request).encode() + b"\n"
        fd = self._process.stdin.fileno()
        while data:
            left = until - time.monotonic()
            if left <= 0:
                raise TimedOutError("the guard does not take requests: it hangs")
            try:
                if select.select([], [fd], [], left)[1]:
                    data = data[os.write(fd, data) :]
            except BlockingIOError:
                continue
            except OSError as exc:
                raise self._ended() from exc

    def _receive(self, until: float) -> dict[str, Any]:
        if self._process is None or self._process.stdout is None:
            raise AssertionError
        fd = self._process.stdout.fileno()
        while b"\n" not in self._input:
            left = until - time.monotonic()
            if left <= 0:
                raise TimedOutError("the guard does not answer: it hangs")
            if not select.select([fd], [], [], left)[0]:
                continue
            try:
                data = os.read(fd, 4096)
            except BlockingIOError:
                continue
            if not data or len(self._input) > _LINE_MAX:
                raise self._ended()
            self._input += data
        line, _sep, self._input = self._input.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError as exc:
            raise HelperError(f"the guard says what is no event: {line[:80]!r}") from exc
        if not isinstance(answer, dict):
            raise HelperError(f"the guard says what is no event: {line[:80]!r}")
        return answer

    def _ended(self) -> HelperError:
        """The error for a guard that has closed its streams."""
        code = self._wait(1.0)
        if code == UNDID:
            reason = (self.report() or {}).get("reason", "reason unknown")
            return HelperError(
                f"the guard has undone the bracket ({reason}): the snapshot is void",
                hint="raise 'deadline' if the guest needs longer",
                word="aborted",
                reason="undone",
            )
        if code == 4:
            return HelperError("the guest's process has ended", word="gone", reason="gone")
        return HelperError(f"the guard ended with code {code}", reason="guard")

    def _wait(self, timeout: float) -> int:
        if self._process is None:
            raise AssertionError
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                try:
                    stream.close()
                except OSError:
                    pass
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._kill()
            return self._process.wait(timeout)

    def _kill(self) -> None:
        if self._process is None:
            raise AssertionError
        self._process.kill()
        try:
            self._process.wait(ANSWER_TIMEOUT)
        except subprocess.TimeoutExpired:
            pass  # it hangs in the kernel; it can do nothing any more


def read_report(path: str) -> Optional[dict[str, Any]]:
    """A guard's report: {reason, at, released, resumed, thawed, gone, finished, status, problem,
    guard, guard_start_time, ...}, or None where there is none that can be read.

    `finished` false: process `guard` is still trying; `problem` says what fails.
    """
    try:
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) else None
