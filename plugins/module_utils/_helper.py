# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""livesnap-helper as a child process: requests on its stdin, events from its stdout, as JSON lines.

Every wait has a limit. What it logs goes to a file; what it says in an `error` event becomes a
HelperError with its words. It runs in a session of its own: a signal to our process group, as
Ansible sends at the end of an asynchronous task's time, does not reach it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from typing import Any, Callable, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    HelperError,
    LivesnapError,
    TimedOutError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._run import Ended, run_bounded

#: Exit code -> class, as in native/src/common/error.h.
CLASSES = ("ok", "usage", "refused", "aborted", "gone", "storage", "torn", "internal")

_LINE_MAX = 1 << 20

Event = dict[str, Any]


def missing(path: str) -> HelperError:
    """The error for a helper that is not where it should be."""
    return HelperError(
        f"livesnap-helper is not at '{path}'" if path else "livesnap-helper was not pushed",
        "run playbooks/host.yml, which prepares this hypervisor",
        "refused",
        "helper_missing",
    )


def _run(path: str, arguments: Sequence[str], timeout: float) -> Ended:
    if not path or not os.path.exists(path):
        raise missing(path)
    done = run_bounded([path, *arguments], timeout)
    if done.timed_out:
        raise TimedOutError(f"'livesnap-helper {arguments[0]}' {done.problem}")
    if done.problem:
        raise HelperError(f"'{path}' {done.problem}")
    return done


def run_for_bytes(path: str, arguments: Sequence[str], timeout: float) -> bytes:
    """Run it to its end: what it prints, which is no event; or HelperError with its words."""
    done = _run(path, arguments, timeout)
    if done.code != 0:
        lines = [line for line in done.err.splitlines() if line.startswith(b"{")]
        raise failure(_parse(lines[-1]) if lines else {}, done.code, _tail(done.err))
    return done.out


def run_once(path: str, arguments: Sequence[str], timeout: float = 30.0) -> Event:
    """Run it to its end: the object that it prints, or HelperError with its words."""
    done = _run(path, arguments, timeout)
    lines = [line for line in done.out.splitlines() if line.strip()]
    last = _parse(lines[-1]) if lines else {}
    if done.code != 0 or last.get("event") == "error":
        raise failure(last, done.code, _tail(done.err))
    return last


def failure(event: Mapping[str, Any], code: Optional[int], logged: str = "") -> HelperError:
    """The error of an `error` event, or of an exit without one."""
    if event.get("event") == "error":
        return HelperError(
            str(event.get("message") or "livesnap-helper failed"),
            word=str(event.get("class", "internal")),
            reason=str(event.get("reason", "")),
        )
    if code is not None and code < 0:
        cause = f"was killed by signal {-code}"
    else:
        cause = f"ended with code {code}" if code is not None else "closed its output"
    word = CLASSES[code] if code is not None and 0 < code < len(CLASSES) else "internal"
    return HelperError(f"livesnap-helper {cause}" + (f": {logged}" if logged else ""), word=word)


def _tail(data: bytes) -> str:
    lines = data.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][-300:] if lines else ""


def _parse(line: bytes) -> Event:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise HelperError(f"livesnap-helper printed what is no event: {line[:80]!r}")
    return value


class HelperProcess:
    """A running subcommand that takes requests. Not thread-safe."""

    def __init__(self, path: str, arguments: Sequence[str], log: str = os.devnull) -> None:
        """Start it. `log`: the file that its log lines are appended to."""
        if not path or not os.path.exists(path):
            raise missing(path)
        self.name = f"livesnap-helper {arguments[0]}"
        self._log = log
        self._log_start = os.path.getsize(log) if os.path.isfile(log) else 0
        self._input = b""
        self._closed = False
        try:
            with open(log, "ab") as errors:
                self._process = subprocess.Popen(  # pylint: disable=ansible-bad-function
                    [path, *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    cwd="/",
                    close_fds=True,
                    start_new_session=True,
                )
        except OSError as err:
            raise HelperError(f"'{path}' cannot be run: {err.strerror}") from None
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError
        self._stdin: Optional[int] = self._process.stdin.fileno()
        self._stdout = self._process.stdout.fileno()
        for fd in (self._process.stdin.fileno(), self._stdout):
            os.set_blocking(fd, False)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def poll(self) -> Optional[int]:
        """Its exit code, None while it runs."""
        return self._process.poll()

    def send(self, request: Mapping[str, Any], timeout: float = 10.0) -> None:
        """Send a request; HelperError when it is gone, TimedOutError when it takes nothing."""
        deadline = time.monotonic() + timeout
        data = json.dumps(request).encode() + b"\n"
        if self._stdin is None:
            raise HelperError(f"{self.name} takes no more requests")
        while data:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimedOutError(f"{self.name} took no request for {timeout:g} s")
            try:
                if select.select([], [self._stdin], [], min(left, 1.0))[1]:
                    data = data[os.write(self._stdin, data) :]
            except BlockingIOError:
                continue
            except OSError:
                raise self._ended(deadline) from None

    def close_input(self) -> None:
        """End of its stdin: before the instant it aborts, after it carries on alone."""
        if self._stdin is not None and self._process.stdin is not None:
            self._stdin = None
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def event(self, timeout: float) -> Optional[Event]:
        """The next event, None when there is none within the time.

        An `error` event and the end of its output are raised as HelperError.
        """
        deadline = time.monotonic() + timeout
        while b"\n" not in self._input:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._stdout], [], [], left)[0]:
                return None
            try:
                data = os.read(self._stdout, 65536)
            except BlockingIOError:
                continue
            if not data:
                raise self._ended(time.monotonic() + 2.0)
            self._input += data
            if len(self._input) > _LINE_MAX:
                raise HelperError(f"{self.name} printed a line without end")
        line, _sep, self._input = self._input.partition(b"\n")
        event = _parse(line)
        if event.get("event") == "error":
            raise failure(event, None)
        return event

    def wait_for(
        self, name: str, timeout: float, other: Callable[[Event], None] = lambda event: None
    ) -> Event:
        """The next event of that name within the time; earlier ones go to `other`."""
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            event = self.event(max(0.0, left))
            if event is not None and event.get("event") == name:
                return event
            if event is not None:
                other(event)
            elif left <= 0:
                raise TimedOutError(f"{self.name} did not say '{name}' within {timeout:g} s")

    def _ended(self, deadline: float) -> LivesnapError:
        """The error for a helper whose streams are closed: its last words, else its exit code."""
        # It may have said why before it went.
        with contextlib.suppress(OSError):
            while True:
                data = os.read(self._stdout, 65536)
                if not data:
                    break
                self._input += data
        for line in self._input.splitlines():
            with contextlib.suppress(HelperError):
                event = _parse(line)
                if event.get("event") == "error":
                    return failure(event, None)
        code: Optional[int] = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(max(0.1, deadline - time.monotonic()))
        return failure({}, code, self.logged())

    def logged(self) -> str:
        """The last line that it logged."""
        if self._log == os.devnull:
            return ""
        try:
            with open(self._log, "rb") as file:
                file.seek(self._log_start)
                return _tail(file.read(1 << 16))
        except OSError:
            return ""

    def end(self, timeout: float) -> Optional[int]:
        """Close its streams and wait; SIGKILL after the time. Its exit code, None if it hangs."""
        self.close_input()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        if self._process.poll() is None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2.0)
        if not self._closed and self._process.stdout is not None:
            self._closed = True
            with contextlib.suppress(OSError):
                self._process.stdout.close()
        return self._process.poll()
