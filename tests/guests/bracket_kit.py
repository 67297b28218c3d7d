# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the bracket share: a store, requests for a guest, what must hold after."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import (
    SnapshotSpec,
    take_snapshot,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guard import Guard, GuardConfig
from lab import Guest

REPO = Path(__file__).resolve().parents[2]
RUN = Path("/run/livesnap")


def helper() -> str:
    """The helper of this checkout, or the one that LIVESNAP_TEST_HELPER names."""
    return os.environ.get(
        "LIVESNAP_TEST_HELPER", str(REPO / "native" / "build" / "plain" / "livesnap-helper"))


class Place:
    """A store with requests for one guest."""

    def __init__(self, root: Path, guest: Guest, name: str = "web1") -> None:
        self.root, self.guest, self.name = root, guest, name
        root.mkdir(mode=0o711, exist_ok=True)

    def params(self, name: str, **given: Any) -> dict[str, Any]:
        return {
            "guest": self.name, "name": name, "store": str(self.root),
            "qmp_socket": str(self.guest.qmp_path), "agent_socket": str(self.guest.agent_path),
            "_livesnap_helper": helper(), **given,
        }

    def spec(self, name: str, **given: Any) -> SnapshotSpec:
        return SnapshotSpec.of(self.params(name, **given))

    def take(self, name: str, **given: Any) -> dict[str, Any]:
        return take_snapshot(self.spec(name, **given))

    def folder(self, name: str) -> Path:
        return self.root / self.name / name

    def left(self) -> list[str]:
        """Names in the guest's folder."""
        folder = self.root / self.name
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def clear(self) -> None:
        shutil.rmtree(self.root / self.name, ignore_errors=True)


def well(guest: Guest, limit: float = 5.0) -> None:
    """The guest runs, is thawed and counts on with its buffer intact."""
    end = time.monotonic() + limit
    with guest.look() as qmp:
        wait(lambda: qmp.execute("query-status")["running"], limit)
    while True:
        with guest.agent() as agent:
            state = agent.freeze_status()
        if state == "thawed" or time.monotonic() > end:
            break
        time.sleep(0.1)
    assert state == "thawed"
    guest.counts()


def clean(guest: Guest) -> None:
    """Nothing of livesnap is in QEMU or in the run folder."""
    with guest.look() as qmp:
        assert [job for job in qmp.execute("query-jobs") if job["id"].startswith("livesnap-")] == []
        nodes = qmp.execute("query-named-block-nodes")
        assert [node for node in nodes if node["node-name"].startswith("livesnap-")] == []
        assert qmp.execute("query-fdsets") == []
    assert run_dir(guest) is None
    assert not list(RUN.glob(f"lock/{guest.pid}-*"))
    # QEMU from 8.0 on keeps the device /dev/userfaultfd open once it has asked it for one.
    assert not [target for target in open_files(guest.pid).values() if "[userfaultfd]" in target]


def run_dirs(pattern: str = "*") -> list[Path]:
    """The run folders whose names are like that; what is above them comes and goes with them."""
    try:
        return list(RUN.glob(f"guest/{pattern}"))
    except FileNotFoundError:
        return []


def run_dir(guest: Guest) -> Path | None:
    """The run folder of a guest, if there is one."""
    return next(iter(run_dirs(f"{guest.pid}-*")), None)


def read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def wait(what: Callable[[], Any], limit: float, step: float = 0.02) -> Any:
    """The first true value of a question, or a failed test."""
    end = time.monotonic() + limit
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < end, f"waited {limit} s in vain"
        time.sleep(step)


@contextlib.contextmanager
def fault(step: str, action: str) -> Iterator[None]:
    """The owner of a bracket that begins now does that to itself at the step."""
    os.environ.update(LIVESNAP_TESTING="1", LIVESNAP_FAULT_STEP=f"{step}:{action}")
    try:
        yield
    finally:
        del os.environ["LIVESNAP_TESTING"], os.environ["LIVESNAP_FAULT_STEP"]


def in_child(work: Callable[[], Any]) -> int:
    """Run it in a process of its own, as a module does; returns its pid. The caller reaps it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat, which with the pid names a process for good."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def state(pid: int) -> str:
    """The letter of a process's state; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def thread_states(pid: int) -> set[str]:
    """The letters of the states of its threads, each of which /proc knows by its own number."""
    return {state(int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()}


def living(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    return state(pid) not in ("", "Z", "X")


def open_files(pid: int | None) -> dict[str, str]:
    """Number and target of each open file of a process; one that it is just closing may lack."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[entry.name] = os.readlink(entry)
    return found


def make_guard(helper_path: Path, guest: Guest, report: Path, **given: Any) -> Guard:
    """A guard of the guest, not started yet, whose owner is this process; it logs beside `report`.

    `given`: what differs from a guard of a running guest with its agent, and no keeper.
    """
    assert guest.pid is not None
    values: dict[str, Any] = {
        "qmp_socket": str(guest.qmp_path), "agent_socket": str(guest.agent_path),
        "pid": guest.pid, "start_time": start_time(guest.pid), "guest": guest.options.name,
        "id": "6f1c0de0", "owner": os.getpid(), "owner_start_time": start_time(os.getpid()),
        "was_running": True, "report": str(report), **given,
    }
    return Guard(str(helper_path), GuardConfig(**values), log=str(report.with_name("log")))


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
