# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What export writes, stock QEMU takes: the same memory, and a guest that goes on counting.

Images are written by a small tool from a stopped guest, so that nothing of the capture takes part.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import layout
import pytest
from lab import AgentError, DiskSpec, Guest
from lab.reach import Reach
from ramblocks import Block, find_blocks, read_block

CODECS = ("none", "lz4", "zstd")


def make(target: str) -> Path:
    layout.make_native(f"build/plain/{target}")
    return layout.NATIVE / "build" / "plain" / target


@pytest.fixture(scope="module")
def helper() -> Path:
    return make("livesnap-helper")


@dataclass(frozen=True)
class Saved:
    """A stopped guest, and what was saved of it: STORE/CODEC is a snapshot's folder."""

    guest: Guest
    store: Path
    machine: str
    blocks: list[Block]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    """A guest with VGA, a network card and RAM on both sides of 4 GiB, saved while stopped."""
    tool = make("tests/tools/write_image")
    store = tmp_path_factory.mktemp("store")
    with Guest(memory=256, vga=True, net=True, disks=(DiskSpec(64), DiskSpec(32)),
               machine_options="max-ram-below-4g=128M").start() as guest:
        with guest.qmp() as qmp:
            qmp.execute("stop")
            kind = qmp.execute("qom-get", {"path": "/machine", "property": "type"})
            qmp.execute("xen-save-devices-state",
                        {"filename": str(store / "devices"), "live": False})
            blocks = find_blocks(guest.pid or 0, qmp.hmp("info ramblock"))
        machine = str(kind).removesuffix("-machine")
        ram = [block.name for block in blocks].index("pc.ram")
        lines = [f"block {block.name} {block.used} {block.host}" for block in blocks]
        lines += [f"range 0 {ram} 0 {128 << 20}",
                  f"range {4 << 30} {ram} {128 << 20} {128 << 20}"]
        for codec in CODECS:
            (store / codec).mkdir()
            shutil.copy(store / "devices", store / codec / "devices")
            subprocess.run([str(tool), str(store / codec / "ram.lsnap"), codec, machine,
                            str(guest.pid)], input="\n".join(lines) + "\n", text=True, check=True,
                           timeout=120)
        for path in guest.disk_paths:
            shutil.copy(path, store / path.name)
        yield Saved(guest, store, machine, blocks)


class Copy(Reach):
    """A second QEMU of the saved guest's command line, with copies of its disks."""

    def __init__(self, saved: Saved, folder: Path, incoming: str, extra: list[str]) -> None:
        source = saved.guest
        argv = [word.replace(str(source.folder), str(folder)) for word in source.argv]
        for path in source.disk_paths:
            shutil.copy(saved.store / path.name, folder)
        for name in ("kernel.img", "initrd.img"):
            shutil.copy(source.folder / name, folder)
        self.log = folder / "qemu.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*argv, *extra, "-S", "-incoming", incoming],
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        super().__init__(folder / "qmp", folder / "agent", self.process.pid)

    def wait_loaded(self, limit: float = 60.0) -> float:
        """Seconds until the stream was taken."""
        start = time.monotonic()
        while time.monotonic() - start < limit:
            assert self.process.poll() is None, self.log.read_text()
            if self.qmp_path.exists():
                with self.qmp() as qmp:
                    if qmp.status() != "inmigrate":
                        return time.monotonic() - start
            time.sleep(0.02)
        raise AssertionError(f"the stream was not taken: {self.log.read_text()}")

    def wait_witness(self, limit: float = 60.0) -> None:
        """Returns when the witness answers; after a boot the agent does before it."""
        start = time.monotonic()
        while True:
            try:
                self.ask()
                return
            except AgentError:
                assert time.monotonic() - start < limit
                time.sleep(0.2)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def copy(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """copy(incoming, extra): a Copy, ended after the test."""
    copies: list[Copy] = []

    def start(incoming: str, *extra: str) -> Copy:
        # Sockets have short paths.
        folder = Path(f"/tmp/livesnap-copy-{saved.guest.pid}-{len(copies)}")
        folder.mkdir(mode=0o700)
        copies.append(Copy(saved, folder, incoming, list(extra)))
        return copies[-1]

    yield start
    for one in copies:
        one.stop()
        shutil.rmtree(one.log.parent)


def events(helper: Path, *argument: str, code: int = 0) -> list[dict[str, Any]]:
    done = subprocess.run([str(helper), *argument], capture_output=True, text=True, check=False,
                          timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_copies_have_the_same_memory_and_go_on(saved: Saved, helper: Path, copy: Any) -> None:
    stream = saved.store / "stream"
    assert events(helper, "export", "--format", "qemu", str(saved.store / "lz4"),
                  str(stream))[-1]["event"] == "done"
    assert stream.stat().st_mode & 0o777 == 0o600
    one = copy(f"exec:cat {stream}")
    one.wait_loaded()
    with one.qmp() as qmp:
        blocks = find_blocks(one.pid, qmp.hmp("info ramblock"))
        assert [(block.name, block.used) for block in blocks] == [
            (block.name, block.used) for block in saved.blocks]
        for there, here in zip(saved.blocks, blocks):
            assert read_block(saved.guest.pid or 0, there) == read_block(one.pid, here), there.name
        qmp.execute("cont")
    before = one.counts()
    assert all(state == "ok" for name, state in one.devices().items() if "drift" not in name)
    # Every block was filled: the firmware and the ROMs are there when they are needed again.
    with one.qmp() as qmp:
        qmp.execute("system_reset")
    time.sleep(1)
    one.wait_agent(90)
    one.wait_witness()
    assert one.counts()["boot"] != before["boot"]


def test_mapped_without_its_pages(saved: Saved, helper: Path, copy: Any) -> None:
    image = saved.store / "none" / "ram.lsnap"
    before = digest(image)
    main = next(block for block in events(helper, "info", str(image))[0]["blocks"]
                if block["name"] == "pc.ram")
    assert main["file_offset"] == 0
    one = copy(f"exec:{helper} export --format qemu --pages none {saved.store / 'none'} -",
               "-object", f"memory-backend-file,id=pc.ram,size={main['length']},"
               f"mem-path={image},share=off", "-machine", "memory-backend=pc.ram")
    seconds = one.wait_loaded()
    with one.qmp() as qmp:
        blocks = find_blocks(one.pid, qmp.hmp("info ramblock"))
        for there, here in zip(saved.blocks, blocks):
            assert read_block(saved.guest.pid or 0, there) == read_block(one.pid, here), there.name
        qmp.execute("cont")
    one.counts()
    one.stop()
    assert digest(image) == before
    assert seconds < 10


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_gives_the_same(saved: Saved, helper: Path, codec: str, tmp_path: Path) -> None:
    folder = saved.store / codec
    assert events(helper, "verify", str(folder))[-1]["event"] == "done"
    streams = [hashlib.sha256(subprocess.run(
        [str(helper), "export", "--format", "qemu", str(saved.store / one), "-"],
        capture_output=True, check=True, timeout=120).stdout).hexdigest()
        for one in (codec, "lz4")]
    assert len(set(streams)) == 1
    events(helper, "export", "--format", "raw", str(folder), str(tmp_path / "raw"))
    names = {block.name.replace("/", "%2F"): block for block in saved.blocks}
    assert {path.name for path in (tmp_path / "raw").iterdir()} == set(names)
    for name, block in names.items():
        assert (tmp_path / "raw" / name).read_bytes() == read_block(saved.guest.pid or 0, block)
    shutil.rmtree(tmp_path / "raw")
    # Guest-physical: the end of low RAM, and the start of what lies above 4 GiB.
    ram = read_block(saved.guest.pid or 0,
                     next(block for block in saved.blocks if block.name == "pc.ram"))
    for address, offset in (((128 << 20) - 5000, (128 << 20) - 5000), (4 << 30, 128 << 20)):
        read = subprocess.run([str(helper), "read", str(folder), "--gpa", hex(address), "--length",
                               "5000"], capture_output=True, check=True, timeout=60).stdout
        assert read == ram[offset:offset + 5000]


def test_the_original_goes_on(saved: Saved) -> None:
    with saved.guest.qmp() as qmp:
        qmp.execute("cont")
    saved.guest.counts()
