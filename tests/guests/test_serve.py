# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clones whose RAM comes out of a compressed image while they run."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._clone import serving
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.clone import (
    CloneRequest,
    create_clone,
    remove_clone,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.launch import Running
from ansible_collections.livesnap.qemu.plugins.module_utils._connection._peer import is_qemu
from bracket_kit import living, open_files, wait
from lab import Guest, Reach
from taking import TestStore, helper, verdict

NAME = "served"
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with Guest(name=NAME, user="nobody", sandbox=True) as guest:
        yield guest


@pytest.fixture(scope="module")
def shelf(served: Guest) -> Iterator[TestStore]:
    """With one snapshot, compressed."""
    store = TestStore()
    try:
        store.take(served, "one", freeze="required")
        yield store
    finally:
        store.remove()


@pytest.fixture
def request_(shelf: TestStore) -> Iterator[CloneRequest]:
    request = CloneRequest(str(shelf.path), NAME, "twin", "one", helper=helper())
    yield request
    remove_clone(request)
    assert request.place.left() == []


def reach(made: dict[str, Any]) -> Reach:
    return Reach(Path(made["qmp_socket"]), Path(made["agent_socket"]), made["pid"])


def feeders(request: CloneRequest) -> list[int]:
    state = request.place.state()
    assert state is not None
    return [pid for pid, _started in state["feeders"] if living(pid)]


def userfaultfds(pid: int) -> list[str]:
    return [target for target in open_files(pid).values() if "userfaultfd" in target]


def loaded_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) << 10


def test_it_runs_before_its_ram_is_there(served: Guest, request_: CloneRequest) -> None:
    boot = served.counts()["boot"]
    made = create_clone(request_)
    assert (made["lazy"], made["running"], made["warnings"]) == (True, True, [])
    twin = reach(made)
    assert twin.counts()["boot"] == boot
    # All is loaded in the end, and nothing is left of the loading.
    wait(lambda: not feeders(request_), 30.0)
    assert userfaultfds(made["pid"]) == []
    smaps = Path(f"/proc/{made['pid']}/smaps").read_text()
    assert not [line for line in smaps.splitlines()
                if line.startswith("VmFlags:") and " um" in line]
    twin.counts()
    assert served.counts()["boot"] == boot


def test_it_can_be_snapshotted_again(
        served: Guest, shelf: TestStore, request_: CloneRequest) -> None:
    made = create_clone(request_)
    wait(lambda: not feeders(request_), 30.0)
    twin = reach(made)
    pages = twin.counts()["pages"]
    result = shelf.take(
        served, "again", guest="twin", qmp_socket=made["qmp_socket"],
        agent_socket=made["agent_socket"])
    assert verdict(served, result, pages) == ""
    twin.counts()


def test_what_cannot_be_served_is_read(
        request_: CloneRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    real = serving.serve

    def while_traced(running: Running, *given: Any) -> str:
        # As a debugger would.
        ptrace(PTRACE_SEIZE, running.pid)
        try:
            return real(running, *given)
        finally:
            ptrace(PTRACE_INTERRUPT, running.pid)
            os.waitpid(running.pid, WALL)
            ptrace(PTRACE_DETACH, running.pid)

    monkeypatch.setattr(serving, "serve", while_traced)
    made = create_clone(request_)
    assert (made["lazy"], made["running"]) == (False, True)
    (warning,) = made["warnings"]
    assert warning.startswith("all of RAM is read before the clone runs: cannot attach")
    reach(made).counts()
    assert userfaultfds(made["pid"]) == []


def ptrace(request: int, pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    assert libc.ptrace(request, pid, None, None) == 0, os.strerror(ctypes.get_errno())


def test_only_what_is_asked_for(request_: CloneRequest, served: Guest, shelf: TestStore) -> None:
    drill = CloneRequest(str(shelf.path), NAME, "twin", "one", helper=helper(), drill=True)
    made = create_clone(drill)
    twin = reach(made)
    assert twin.ask()["intact"]
    assert feeders(drill)
    with served.qmp() as qmp:
        whole = qmp.execute("query-memory-size-summary")["base-memory"]
    assert 0 < loaded_bytes(made["pid"]) < whole
    twin.counts()


@pytest.mark.parametrize("who", ["server", "sentinel, server"])
def test_it_does_not_outlive_its_server(
        who: str, request_: CloneRequest, shelf: TestStore) -> None:
    drill = CloneRequest(str(shelf.path), NAME, "twin", "one", helper=helper(), drill=True)
    made = create_clone(drill)
    (server,) = feeders(drill)
    if who != "server":
        (sentinel,) = children(server)
        os.kill(sentinel, signal.SIGKILL)
        wait(lambda: [each for each in children(server) if each != sentinel], 5.0)
    os.kill(server, signal.SIGKILL)
    wait(lambda: not living(made["pid"]), 5.0)


def test_server_and_sentinel_die_at_once(request_: CloneRequest, shelf: TestStore) -> None:
    """Its guest waits then, and can be removed."""
    drill = CloneRequest(str(shelf.path), NAME, "twin", "one", helper=helper(), drill=True)
    made = create_clone(drill)
    (server,) = feeders(drill)
    os.kill(server, signal.SIGSTOP)
    for pid in (*children(server), server):
        os.kill(pid, signal.SIGKILL)
    wait(lambda: not living(server), 5.0)
    assert living(made["pid"]) and is_qemu(made["pid"])


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
