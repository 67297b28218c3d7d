# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drills on real snapshots: what works passes, what does not is found, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _recover
from ansible_collections.livesnap.qemu.plugins.module_utils._clone import launch, standing
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.place import Place
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    HelperError,
    LivesnapError,
    RefusedError,
    TimedOutError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import rundir, status
from ansible_collections.livesnap.qemu.plugins.module_utils._store.rundir import VerifyDir
from ansible_collections.livesnap.qemu.plugins.module_utils._verify import guardian
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.request import VerifyRequest
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.verify import verify
from bracket_kit import living, wait
from lab import Domain, Guest
from taking import TestStore, as_module, folder_of, helper
from test_verify import rewrite

NAME = f"drilled{os.getpid()}"
MIB = 1 << 20


@pytest.fixture(scope="module")
def drilled() -> Iterator[Guest]:
    with Guest(name=NAME) as guest:
        yield guest


@pytest.fixture(scope="module")
def flat(drilled: Guest, shelf: TestStore) -> Path:
    """RAM that a clone can map."""
    return folder_of(shelf.take(drilled, "flat", compression="none", freeze="never"))


def request(folder: Path, *commands: dict[str, Any], **params: Any) -> VerifyRequest:
    given = [{"code": 0, "stdout": None, "timeout": 10, **each} for each in commands]
    return VerifyRequest.of({
        "store": str(folder.parents[1]), "guest": NAME, "snapshot": folder.name, "level": "drill",
        "max_age": "0h", "lock_timeout": 30, "probes": None, "commands": given, "drill_memory": 0,
        "drill_cpus": 0,
        "drill_timeout": 120, "_livesnap_helper": helper(), **params})


def shell(line: str, **expected: Any) -> dict[str, Any]:
    return {"argv": ["/bin/sh", "-c", line], **expected}


def drilled_as(folder: Path, *commands: dict[str, Any], **params: Any) -> dict[str, Any]:
    """The verdict; nothing of the clone is left."""
    verdict: dict[str, Any] = verify(request(folder, *commands, **params))["verdict"]
    assert left(folder) == []
    return verdict


def problem(folder: Path, *commands: dict[str, Any], **params: Any) -> str:
    found = drilled_as(folder, *commands, **params)
    assert (found["level"], found["result"]) == ("drill", "failed"), found
    return str(found["evidence"]["problem"])


def left(folder: Path) -> list[str]:
    """Files and processes of clones of the guest."""
    # Folders vanish while this looks, which Path.glob() does not bear.
    found = [os.path.join(top, name)
             for top, folders, names in os.walk(folder.parent / ".clones")
             for name in (*folders, *names)]
    for top, folders, _names in os.walk(Path("/run/livesnap/clone") / NAME):
        for path in (os.path.join(top, name) for name in folders):
            found.append(path)
            found += [f"process {pid}" for pid, _start in launch.processes_in(path)]
        break
    return found


def in_guest(guest: Guest, line: str) -> str:
    with guest.agent() as agent:
        return agent.run("/bin/sh", "-c", line)


def test_it_works_and_the_original_never_notices(
        drilled: Guest, shelf: TestStore, flat: Path) -> None:
    frozen = folder_of(shelf.take(drilled, "frozen", freeze="required"))
    boot = drilled.counts()["boot"]
    for folder in (flat, frozen):
        found = drilled_as(folder, shell("cat /proc/uptime", stdout=r"^\d+\.\d+ "))
        assert found["result"] == "passed", found["evidence"]["problem"]
        evidence = found["evidence"]["drill"]
        assert evidence["lazy"] is True
        assert abs(evidence["clock_ms"]) < 5000
        assert evidence["commands"][0]["code"] == 0
        assert 0 < evidence["peak_bytes"] < 2048 * MIB
        assert status.read(folder)["verdicts"] == [found]
    assert drilled.counts()["boot"] == boot
    with drilled.qmp() as qmp:
        assert qmp.execute("query-status")["status"] == "running"


def test_a_service_that_is_dead(drilled: Guest, shelf: TestStore) -> None:
    serves = shell(
        "grep -q sleep /proc/$(cat /run/service)/cmdline && echo it serves",
        stdout="^it serves$")
    in_guest(drilled, "sleep 9999 >/dev/null 2>&1 & echo $! >/run/service")
    alive = folder_of(shelf.take(drilled, "alive", freeze="never"))
    in_guest(drilled, "kill -9 $(cat /run/service)")
    dead = folder_of(shelf.take(drilled, "dead", freeze="never"))
    assert drilled_as(alive, serves)["result"] == "passed"
    assert "in the clone ended with 1, not 0" in problem(dead, serves)
    assert "printed 'yes', in which 'no' is not found" in problem(
        alive, shell("echo yes", stdout="no"))
    assert "cannot be run" in problem(alive, {"argv": ["/nowhere/program"]})
    in_guest(drilled, "rm /run/service")


def test_a_guest_that_panics_on_resume(drilled: Guest, shelf: TestStore) -> None:
    """As soon as its clock is set, which no other guest has happen to it."""
    loop = "while [ $(date +%s) -lt 1000000000 ]; do sleep 0.1; done; echo c >/proc/sysrq-trigger"
    in_guest(drilled, f"date -s @1000; ({loop}) >/dev/null 2>&1 & echo $! >/run/bomb")
    try:
        folder = folder_of(shelf.take(drilled, "bomb", freeze="never"))
        said = problem(folder)
        # Found out by what is asked of it next, or by QEMU's refusal to go on.
        ends = ("QEMU says 'shutdown'", "does not answer", "QEMU refused 'cont'")
        assert any(end in said for end in ends), said
    finally:
        in_guest(drilled, f"kill -9 $(cat /run/bomb); rm /run/bomb; date -s @{int(time.time())}")
    drilled.counts()


def test_ram_of_another_instant_than_the_disk(drilled: Guest, shelf: TestStore) -> None:
    """Two good snapshots, mixed: what the guest has in RAM is not what is on its disk."""
    folders = []
    for number in (1, 2):
        # In place: a file that was cut would have its new content in another block.
        in_guest(drilled, f"echo {number} >/run/number; "
                          f"echo {number} | dd of=/mnt/disk0/number conv=notrunc; sync")
        mixed = shelf.take(drilled, f"mix{number}", freeze="never", max_chain=0)
        folders.append(folder_of(mixed))
    same = shell("echo 3 >/proc/sys/vm/drop_caches; cmp /run/number /mnt/disk0/number")
    assert drilled_as(folders[0], same)["result"] == "passed"
    for disk in (folders[1] / "disks").iterdir():
        shutil.copy(disk, folders[0] / "disks" / disk.name)
    rewrite(folders[0])
    assert "ended with 1, not 0" in problem(folders[0], same)


def test_drills_stay_within_memory_and_processors(flat: Path) -> None:
    with pytest.raises(TimedOutError, match=r"no room for a drill .* of 64 MiB"):
        verify(request(flat, drill_memory=64 * MIB))
    other = VerifyDir("another", "one")
    other.make()
    try:
        other.write("drill.json", {**rundir.myself(), "bytes": 512 * MIB, "cpus": 1})
        with pytest.raises(TimedOutError, match="other drills 512 MiB of"):
            verify(request(flat, drill_memory=900 * MIB, lock_timeout=1))
        other.write("drill.json", {**rundir.myself(), "start_time": 1, "bytes": 512 * MIB,
                                   "cpus": 1})
        assert drilled_as(flat, drill_memory=900 * MIB)["result"] == "passed"
        other.write("drill.json", {**rundir.myself(), "bytes": 1, "cpus": 3})
        with pytest.raises(TimedOutError, match="and 3 of 3 processors"):
            verify(request(flat, drill_cpus=3, lock_timeout=1))
        assert drilled_as(flat, drill_cpus=4)["result"] == "passed"
        # No drill of others has a processor: this one may have more than there are.
        other.write("drill.json", {**rundir.myself(), "bytes": 1, "cpus": 0})
        assert drilled_as(flat, drill_cpus=1)["result"] == "passed"
    finally:
        other.remove()


def clones_and_servers(shelf: TestStore) -> list[tuple[bool, int]]:
    """Each process that drills of this guest consist of: whether it is a QEMU, and its bytes."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError):
            here = os.readlink(f"/proc/{name}/cwd").startswith(f"/run/livesnap/clone/{NAME}/")
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            serves = b"serve" in words and any(os.fsencode(shelf.path) in word for word in words)
            if here or serves:
                told = Path(f"/proc/{name}/status").read_text()
                found.append((here, int(told.partition("VmRSS:")[2].split()[0]) << 10))
    return found


def test_many_at_once_stay_within_their_memory(
        drilled: Guest, shelf: TestStore, rounds: Callable[[int, int], int]) -> None:
    """Those that there is room for run side by side, the others wait for them."""
    folders = [folder_of(shelf.take(drilled, f"many{number}", freeze="never"))
               for number in range(rounds(4, 10))]
    limit = (2 * (drilled.options.memory + 192) + 10) * MIB
    begun = [start(folder, seconds=0, drill_memory=limit, drill_cpus=99, lock_timeout=300)
             for folder in folders]
    seen = []
    while begun:
        seen.append(clones_and_servers(shelf))
        time.sleep(0.1)
        begun = [pid for pid in begun if os.waitpid(pid, os.WNOHANG)[0] == 0]
    assert 0 < max(sum(size for _here, size in each) for each in seen) <= limit
    assert max(sum(here for here, _size in each) for each in seen) == 2
    for folder in folders:
        (found,) = status.read(folder)["verdicts"]
        assert found["result"] == "passed", found["evidence"]["problem"]
        assert left(folder) == []


def test_a_drill_takes_no_longer_than_it_may(flat: Path) -> None:
    begun = time.monotonic()
    said = problem(flat, shell("sleep 60", timeout=60), drill_timeout=8)
    assert "was not over within 8 s" in said
    assert time.monotonic() - begun < 45


def start(folder: Path, seconds: int = 20, **params: Any) -> int:
    """Pid of one that drills, and has the clone sleep for so long."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            verify(request(folder, shell(f"sleep {seconds}", timeout=30), **params))
        os._exit(0)
    return pid


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_killed_at_any_moment_it_leaves_nothing(
        flat: Path, rounds: Callable[[int, int], int]) -> None:
    chance = random.Random(7)
    for number in range(rounds(3, 40)):
        pid = start(flat)
        try:
            wait_for(lambda: left(flat) != [], 60)
            time.sleep(number and chance.uniform(0, 4))
        finally:
            kill(pid)
        wait_for(lambda: left(flat) == [], 15)


def test_a_server_that_dies_is_not_the_snapshots_fault(drilled: Guest, shelf: TestStore) -> None:
    folder = folder_of(shelf.take(drilled, "packed", freeze="never"))
    drill = request(folder, shell("sleep 20", timeout=30))
    with ThreadPoolExecutor() as pool:
        running = pool.submit(verify, drill)
        state = wait(lambda: complete(folder), 60)
        (server,) = [pid for pid, _started in state["feeders"] if living(pid)]
        os.kill(server, signal.SIGKILL)
        with pytest.raises(HelperError, match="cut short: livesnap-helper, which brought RAM"):
            running.result()
    assert left(folder) == []
    wait(lambda: not servers(folder), 5)
    assert status.read(folder)["verdicts"] == []
    assert drilled_as(folder)["result"] == "passed"


def complete(folder: Path) -> dict[str, Any] | None:
    """The state of the clone of a drill by this process, once it runs."""
    return Place.of(str(folder.parents[1]), NAME, f"drill-{os.getpid()}").living()


def servers(folder: Path) -> list[int]:
    """Pids of processes that bring the RAM of a snapshot to a clone, and of their sentinels."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            if b"serve" in words and bytes(folder) in words:
                found.append(int(name))
    return found


def test_what_even_its_guardian_left_is_for_recovery(
        flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guardian, "_guard", lambda *_given: os._exit(0))
    pid = start(flat)
    try:
        wait_for(lambda: any("process" in each for each in left(flat)), 60)
        time.sleep(2)
        assert standing.unfinished(str(flat.parents[1]), NAME) == []
    finally:
        kill(pid)
    assert left(flat) != []
    said = _recover.recover(str(flat.parents[1]), NAME, helper())
    assert any("removed unfinished clone 'drill-" in each for each in said)
    assert left(flat) == []
    monkeypatch.undo()
    assert drilled_as(flat)["result"] == "passed"
    assert not VerifyDir(NAME, flat.name).path.exists()


def test_a_drill_of_a_domain(make_domain: Callable[..., Domain], store: TestStore) -> None:
    """A second domain of the same libvirt, which is gone again. Its disk is one of layers."""
    domain = make_domain(name=f"{NAME}d")
    taken = as_module(lambda: store.take(domain, "one", freeze="required", disk_scheme="auto"))
    assert [disk["scheme"] for disk in taken["snapshot"]["disks"]] == ["overlay"]
    folder = folder_of(taken)
    asked = request(folder, shell("cat /proc/uptime"), guest=domain.options.name)
    found = as_module(lambda: verify(asked))["verdict"]
    assert found["result"] == "passed", found["evidence"]["problem"]
    assert found["evidence"]["drill"]["commands"][0]["code"] == 0
    assert domain.libvirtd.virsh("list", "--all", "--name").split() == [domain.name]
    assert not list(folder.parent.glob(".clones/**/*"))
    domain.counts()


def test_what_makes_no_sense_is_refused(drilled: Guest, shelf: TestStore, flat: Path) -> None:
    for command, words in (({"argv": []}, "path of a program"), ({"argv": ["ls"]}, "'ls' does not"),
                           ({"argv": ["/a"], "stdout": "("}, "no regular expression"),
                           ({"argv": ["/a"], "timeout": 0}, "timeout '0'")):
        with pytest.raises(RefusedError, match=words):
            request(flat, command)
    with pytest.raises(RefusedError, match="drill_timeout '0'"):
        request(flat, drill_timeout=0)
    disks = folder_of(shelf.take(drilled, "disks", memory=False, freeze="never"))
    with pytest.raises(LivesnapError, match="has no RAM"):
        verify(request(disks))
    assert status.read(disks)["verdicts"] == []
