# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Engine qemu drives QEMU's background-snapshot: one instant, and whatever fails, the guest runs on
and its monitor answers."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
)
from bracket_kit import clean, fault, in_child, kill, read, run_dir, wait, well
from lab import Guest
from taking import TestStore, verdict

#: PTRACE_SEIZE: the process runs on, and nobody else can attach to it.
TRACER = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
assert libc.ptrace(0x4206, int(sys.argv[1]), 0, 0) == 0, ctypes.get_errno()
print("traced", flush=True)
sys.stdin.read()
"""
RAM_ALONE: dict[str, Any] = {
    "engine": "qemu", "freeze": "never", "disks": [{"match": "disk0", "scheme": "none"}]}
#: Why a snapshot failed in a process of its own.
SAID = Path(tempfile.gettempdir()) / f"livesnap-said-{os.getpid()}"


@contextlib.contextmanager
def traced(guest: Guest) -> Iterator[None]:
    """A debugger has the guest's QEMU."""
    with subprocess.Popen([sys.executable, "-c", TRACER, str(guest.pid)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"traced\n"
        yield
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)


def switched_off(guest: Guest) -> bool:
    """Whether QEMU's monitor answers, and its next migration would be an ordinary one."""
    with guest.look() as qmp:
        states = {each["capability"]: each["state"]
                  for each in qmp.execute("query-migrate-capabilities")}
    return not states["background-snapshot"]


def unharmed(guest: Guest, store: TestStore) -> None:
    """The guest runs on, its monitor answers, and nothing is left."""
    well(guest)
    clean(guest)
    assert switched_off(guest)
    assert list(store.path.glob("*/*")) == []


def test_a_guest_with_a_debugger(guest: Guest, store: TestStore) -> None:
    """The helper cannot attach, QEMU can; disks and RAM are of one instant all the same."""
    pages = guest.witness()["pages"]
    with traced(guest):
        with pytest.raises(LivesnapError, match="is traced by process"):
            store.take(guest, "no", engine="uffd")
        clean(guest)
        result = store.take(guest, "one")
    snapshot = result["snapshot"]
    assert snapshot["engine"] == "qemu"
    assert "is traced by process" in snapshot["consistency"]["indications"][1]
    assert len(result["warnings"]) == 1
    assert snapshot["consistency"]["level"] == "filesystem"
    assert verdict(guest, result, pages) == ""
    print(f"paused for {snapshot['timings']['pause_ms']:.1f} ms, protected for"
          f" {snapshot['timings']['protected_s']:.2f} s")
    assert 0 < snapshot["timings"]["pause_ms"] < 2000
    well(guest)
    clean(guest)
    assert switched_off(guest)
    before = guest.counts()
    with store.clone(guest, "one") as clone:
        assert clone.counts(limit=30.0)["boot"] == before["boot"]


def test_a_guest_that_is_paused_is_refused(guest: Guest, store: TestStore) -> None:
    with guest.look() as qmp:
        qmp.execute("stop")
    try:
        with pytest.raises(LivesnapError, match="would let the guest go on, and it is paused"):
            store.take(guest, "no", engine="qemu")
    finally:
        with guest.look() as qmp:
            assert qmp.execute("query-status")["status"] == "paused"
            qmp.execute("cont")
    unharmed(guest, store)


def test_somebody_elses_capabilities_are_left_alone(guest: Guest, store: TestStore) -> None:
    def switch(on: bool) -> None:
        with guest.look() as qmp:
            qmp.execute("migrate-set-capabilities",
                        {"capabilities": [{"capability": "xbzrle", "state": on}]})

    switch(True)
    try:
        with pytest.raises(LivesnapError, match="migration capabilities are on: xbzrle"):
            store.take(guest, "no", engine="qemu")
    finally:
        switch(False)
    unharmed(guest, store)


@pytest.fixture
def small_store(store: TestStore) -> Iterator[TestStore]:
    """A store on a file system of its own, of 512 MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m,mode=711", "livesnap-test",
                    str(store.path)], check=True, timeout=10)
    try:
        yield store
    finally:
        subprocess.run(["umount", str(store.path)], check=True, timeout=10)


def in_the_sweep(guest: Guest, store: TestStore, **options: Any) -> tuple[int, Path]:
    """(pid of a module whose snapshot is being stored, slowly; its run folder)."""
    options = {**RAM_ALONE, "compression": "none", "bandwidth": 20 << 20, **options}

    def take() -> None:
        try:
            store.take(guest, "one", **options)
        except LivesnapError as error:
            SAID.write_text(error.msg)
            raise

    module = in_child(take)
    folder = wait(lambda: run_dir(guest), 20)
    wait(lambda: read(folder / "progress.json").get("phase") == "sweep", 20)
    return module, folder


def failed(module: int, why: str) -> None:
    """It failed, and said why."""
    assert os.waitpid(module, 0)[1] != 0
    said = SAID.read_text()
    SAID.unlink()
    assert re.search(why, said), said


def test_the_store_fills_up(guest: Guest, small_store: TestStore) -> None:
    """Nobody that QEMU writes to fails because of it."""
    module, _folder = in_the_sweep(guest, small_store)
    filler = small_store.path / "filler"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT, 0o600)
    with contextlib.suppress(OSError):
        while True:
            os.write(fd, b"x" * (1 << 20))
    os.close(fd)
    # Pages or device state, whatever comes first.
    failed(module, "the store is full|No space left on device")
    filler.unlink()
    unharmed(guest, small_store)


def converter(folder: Path) -> int:
    """The process that makes the image, once it is there."""
    owner = read(folder / "owner.json")["pid"]

    def find() -> int:
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (path / "cmdline").read_bytes().split(b"\0")
                parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
                if words[1:2] == [b"convert"] and int(parent) == owner:
                    return int(path.name)
        return 0

    found: int = wait(find, 20)
    return found


def test_the_helper_is_killed(guest: Guest, store: TestStore) -> None:
    module, folder = in_the_sweep(guest, store)
    kill(converter(folder))
    failed(module, "killed by signal 9")
    unharmed(guest, store)


def test_the_helper_hangs(guest: Guest, store: TestStore) -> None:
    module, folder = in_the_sweep(guest, store)
    kill(converter(folder), signal.SIGSTOP)
    begun = time.monotonic()
    failed(module, "converter was stopped by a signal")
    assert time.monotonic() - begun < 15
    unharmed(guest, store)


@pytest.mark.parametrize("step", ["arm", "sweep"])
def test_the_owner_is_killed(step: str, guest: Guest, store: TestStore) -> None:
    """QEMU ends what it has begun; the next run puts back what was switched on."""
    with fault(step, "KILL"), pytest.raises(LivesnapError):
        store.take(guest, "one", deadline=3, freeze_timeout=2, engine="qemu")
    well(guest)
    result = store.take(guest, "two", **RAM_ALONE)
    assert any("switched off background-snapshot" in said for said in result["recovered"])
    assert result["snapshot"]["engine"] == "qemu"
    store.forget()
    unharmed(guest, store)
