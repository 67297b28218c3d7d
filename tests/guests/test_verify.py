# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real snapshots are checked: good ones pass, and each kind of damage is found and named."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import layout
import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
    StoreError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import manifest, status, sums
from ansible_collections.livesnap.qemu.plugins.module_utils._store.locks import GuestLock
from ansible_collections.livesnap.qemu.plugins.module_utils._store.rundir import VerifyDir
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.request import VerifyRequest
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.verify import (
    plan_verify,
    verify,
)
from lab import DiskSpec, Guest, disk_state
from lab.disks import as_raw
from lab.oracle import DISK_MAGIC, RAM_MAGIC
from taking import TestStore, folder_of, helper, images_of

NAME = "checked"


@pytest.fixture(scope="module")
def checked() -> Iterator[Guest]:
    with Guest(name=NAME, cpus=2, disks=(DiskSpec(64), DiskSpec(48, "qcow2"))) as guest:
        yield guest


@pytest.fixture(scope="module")
def crash(checked: Guest, shelf: TestStore) -> Path:
    """Not frozen: the disks are as after a power cut."""
    return folder_of(shelf.take(checked, "crash", freeze="never"))


@pytest.fixture
def copy(crash: Path) -> Iterator[Path]:
    """One to be damaged, with its own name in its manifest."""
    folder = crash.with_name("copy")
    shutil.copytree(crash, folder)
    rewrite(folder, name="copy")
    (folder / "status.json").unlink()
    yield folder
    shutil.rmtree(folder)


def rewrite(folder: Path, **changes: Any) -> dict[str, Any]:
    """Gives it a manifest that speaks the truth about other files, or of another machine."""
    fields = manifest.decode((folder / "manifest.json").read_bytes())
    fields.update(changes)
    with sums.of_disks(folder, [_sized(folder, each) for each in fields["disks"]]) as digests:
        while not digests.finished():
            time.sleep(0.01)
        disks = [_sized(folder, each) for each in fields["disks"]]
        fields["disks"] = sums.added(disks, digests)
    (folder / "manifest.json").write_bytes(manifest.encode(fields))
    return fields


def _sized(folder: Path, disk: dict[str, Any]) -> dict[str, Any]:
    return {**disk, "file_bytes": (folder / disk["file"]).stat().st_size}


def request(folder: Path, level: str = "structure", **params: Any) -> VerifyRequest:
    return VerifyRequest.of({
        "store": str(folder.parents[1]), "guest": NAME, "snapshot": folder.name, "level": level,
        "max_age": None, "lock_timeout": 5, "probes": None, "commands": None, "drill_memory": 0,
        "drill_cpus": 0, "drill_timeout": 60, "_livesnap_helper": helper(), **params})


def verdict_of(folder: Path, level: str = "structure", **params: Any) -> dict[str, Any]:
    found: dict[str, Any] = verify(request(folder, level, max_age="0h", **params))["verdict"]
    return found


def problem(folder: Path, level: str) -> str:
    """Why it did not pass, at that very level."""
    found = verdict_of(folder)
    assert (found["level"], found["result"]) == (level, "failed")
    assert status.read(folder)["verdicts"][-1] == found
    return str(found["evidence"]["problem"])


def test_good_ones_pass(
        checked: Guest, shelf: TestStore, rounds: Callable[[int, int], int]) -> None:
    for number in range(rounds(10, 100)):
        result = shelf.take(
            checked, f"good{number}", freeze=("never", "required")[number % 2],
            compression=("lz4", "none", "zstd")[number % 3])
        folder = folder_of(result)
        found = verdict_of(folder)
        assert found["result"] == "passed", found["evidence"]
        assert found["evidence"]["not_done"] == []
        evidence = found["evidence"]["structure"]
        assert [each["type"] for each in evidence["file_systems"]] == ["ext4", "ext4"]
        assert evidence["device_sections"] > 20
        shutil.rmtree(folder)
    checked.counts()


def probe(name: str, **given: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("physical", "virtual", "pattern", "value", "disk"))
    return {"name": name, **empty, "offset": 0, "length": 8, "disk_offset": 0, "most_apart": 0,
            **given}


def counters(folder: Path, boot: int) -> dict[str, Any]:
    """The witness' counter in RAM, and on its first disk, which is never more than one ahead."""
    with as_raw(folder / manifest.read(folder)["disks"][0]["file"]) as raw:
        record = raw.read_bytes().index(DISK_MAGIC)
    pattern = "".join(f"\\x{byte:02x}" for byte in RAM_MAGIC + struct.pack("<QQ", boot, 0))
    return probe("counter", pattern=pattern, offset=24, disk="dev-disk0",
                 disk_offset=record + 24, most_apart=1)


def test_what_is_in_ram(checked: Guest, shelf: TestStore, tmp_path: Path) -> None:
    """Its processors find the kernel that the guest says it runs, and the witness' counter."""
    result = shelf.take(checked, "ram", compression="zstd")
    folder = folder_of(result)
    boot = disk_state(images_of(result)[0]).boot
    meter = checked.counts()["meter_gpa"]
    release = checked.agent().execute("guest-get-osinfo")["kernel-release"]
    probes = [
        counters(folder, boot),
        probe("meter", physical=hex(meter), value="T10MRWSL"),
        probe("banner", pattern=f"Linux version {release} ("),
    ]
    alone = tmp_path / "livesnap-helper"
    shutil.copy(helper(), alone)
    layout.make_native("library")
    for way in (helper(), str(alone)):
        found = verdict_of(folder, "memory", probes=probes, _livesnap_helper=way)
        assert found["result"] == "passed", found["evidence"]["problem"]
        assert found["evidence"]["not_done"] == []
        about = found["evidence"]["memory"]
        assert about["read_by"].startswith("library" if way == helper() else "helper")
        assert about["kernel"]["banner"].startswith(f"Linux version {release} (")
        assert about["kernel"]["processors"] == 2
        assert int(about["kernel"]["virtual"], 0) >= 0xFFFF_FFFF_8000_0000
        at = [each["physical"] for each in about["probes"]]
        assert at[1] == hex(meter) and int(at[2], 0) > 0
    # It is where the processors find it, in the words that the kernel has of itself.
    virtual = probe("there", virtual=about["kernel"]["virtual"], value=about["kernel"]["banner"])
    assert verdict_of(folder, "memory", probes=[virtual])["result"] == "passed"
    with pytest.raises(RefusedError, match="has no RAM: there is nothing for level 'memory'"):
        verdict_of(folder_of(shelf.take(checked, "none", memory=False)), "memory")


def test_ram_of_another_instant_than_the_disk(checked: Guest, shelf: TestStore) -> None:
    """Two real snapshots, mixed: each file is what it was written as, and no checksum tells."""
    first = shelf.take(checked, "mixed", freeze="never")
    before = checked.counts()["counter"]
    while checked.counts()["counter"] < before + 5:
        time.sleep(0.2)
    second = shelf.take(checked, "later", freeze="never", max_chain=0)
    folder, boot = folder_of(first), disk_state(images_of(first)[0]).boot
    assert verdict_of(folder, "memory", probes=[counters(folder, boot)])["result"] == "passed"
    for old, new in zip(images_of(first), images_of(second), strict=True):
        shutil.copy(new, old)
    rewrite(folder, disks=[{**disk, "base": None} for disk in manifest.decode(
        (folder / "manifest.json").read_bytes())["disks"]])
    assert verdict_of(folder)["result"] == "passed"
    found = verdict_of(folder, "memory", probes=[counters(folder, boot)])
    assert (found["level"], found["result"]) == ("memory", "failed")
    assert "they are not of one instant" in found["evidence"]["problem"]


def test_a_verdict_is_kept_and_makes_the_next_check_needless(crash: Path) -> None:
    status.write(crash, {**status.read(crash), "labels": ["mine"], "verdicts": []})
    before = {path: path.stat().st_mtime_ns for path in crash.rglob("*")}
    planned = plan_verify(request(crash))
    assert (planned["changed"], planned["verdict"]) == (True, None)
    assert {path: path.stat().st_mtime_ns for path in crash.rglob("*")} == before
    done = verify(request(crash))
    assert done["changed"] and done["actions"] == planned["actions"]
    state = json.loads((crash / "status.json").read_text())
    assert state["verdicts"] == [done["verdict"]]
    assert state["labels"] == ["mine"]
    for again in (verify(request(crash)), verify(request(crash, "checksum")),
                  plan_verify(request(crash, max_age="1d"))):
        assert (again["changed"], again["verdict"]) == (False, done["verdict"])
        assert again["actions"] == []
    assert verify(request(crash, "checksum", max_age="0h"))["changed"]
    assert [each["level"] for each in status.read(crash)["verdicts"]] == ["structure", "checksum"]
    assert not VerifyDir(NAME, crash.name).path.exists()


def test_a_flipped_byte_anywhere_is_named(copy: Path) -> None:
    """In each file, at its ends and somewhere between."""
    chance = random.Random(20261128)
    image = re.compile(r"(block '.*' offset 0x[0-9a-f]+ \(.*\), )?file offset \d+|footer|index")
    for name, words in (
        ("manifest.json", "checksum"), ("devices", "devices' does not have the checksum"),
        ("ram.lsnap", image), ("disks/0-dev-disk0.qcow2", r"disks/0-\S+' between byte 0 and"),
        ("disks/1-dev-disk1.qcow2", r"disks/1-\S+' between byte 0 and"),
    ):
        path = copy / name
        os.chmod(path, 0o600)
        size = path.stat().st_size
        for offset in (0, size // 2, size - 1, chance.randrange(size), chance.randrange(size)):
            with path.open("r+b") as file:
                byte = os.pread(file.fileno(), 1, offset)
                os.pwrite(file.fileno(), bytes([byte[0] ^ 1 << chance.randrange(8)]), offset)
                said = problem(copy, "checksum")
                assert re.search(words, said), (name, offset, said)
                os.pwrite(file.fileno(), byte, offset)
    assert verdict_of(copy, "checksum")["result"] == "passed"


def test_a_bad_byte_of_ram_has_a_guest_address(copy: Path) -> None:
    """With the frame of the first page that has content damaged."""
    with (copy / "ram.lsnap").open("r+b") as file:
        byte = os.pread(file.fileno(), 1, 100)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), 100)
    assert re.search(r"block '\S+' offset 0x[0-9a-f]+ \(.*guest address 0x[0-9a-f]+\), file offset",
                     problem(copy, "checksum"))


def test_ram_of_another_snapshot(checked: Guest, shelf: TestStore, copy: Path) -> None:
    other = folder_of(shelf.take(checked, "other", freeze="never"))
    shutil.copy(other / "ram.lsnap", copy / "ram.lsnap")
    memory = manifest.decode((copy / "manifest.json").read_bytes())["memory"]
    rewrite(copy, memory={**memory, "file_bytes": (copy / "ram.lsnap").stat().st_size})
    assert "it is the image of another snapshot" in problem(copy, "checksum")


def facts_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = manifest.decode((folder / "manifest.json").read_bytes())["guest_facts"]
    return found


def test_a_machine_that_is_not_here(copy: Path) -> None:
    facts = facts_of(copy)
    rewrite(copy, guest_facts={**facts, "vcpus": 3})
    assert "is of 2 CPUs; the guest had 3" in problem(copy, "structure")
    rewrite(copy, guest_facts={**facts, "machine": "pc-i440fx-99.0"})
    assert "differ in machine type" in problem(copy, "structure")
    rewrite(copy, guest_facts={**facts, "qemu_version": "99.0.0"})
    assert "is of QEMU 99.0.0" in problem(copy, "structure")
    gone = [{"path": "/nowhere/bios.bin", "sha256": "0" * 64}]
    rewrite(copy, guest_facts={**facts, "firmware": gone})
    assert "firmware file '/nowhere/bios.bin', which is gone" in problem(copy, "structure")


def replaced(folder: Path, work: Callable[[Path, Path], None]) -> None:
    """The first disk's image is made anew from what it was, by work(old, new)."""
    path = folder / "disks/0-dev-disk0.qcow2"
    old = path.rename(folder / "old")
    work(old, path)
    old.unlink(missing_ok=True)
    rewrite(folder)


def run(*argv: str | Path) -> None:
    subprocess.run([str(word) for word in argv], check=True, capture_output=True, timeout=120)


def test_a_missing_base(copy: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"

    def work(old: Path, new: Path) -> None:
        shutil.copy(old, base)
        run("qemu-img", "create", "-f", "qcow2", "-F", "qcow2", "-b", base, new)

    replaced(copy, work)
    assert f"stands on '{base}': its chain" in problem(copy, "structure")
    base.unlink()
    assert f"stands on '{base}', which is not there" in problem(copy, "structure")


def test_an_image_of_another_size_or_with_errors(copy: Path) -> None:
    kept = (copy / "disks/0-dev-disk0.qcow2").read_bytes()
    replaced(copy, lambda _old, new: run("qemu-img", "create", "-f", "qcow2", new, "1M"))
    assert "is of 1048576 bytes; the guest's disk had 67108864" in problem(copy, "structure")

    def no_references(_old: Path, new: Path) -> None:
        """The first block of reference counts is empty."""
        table = int.from_bytes(kept[48:56], "big")
        block = int.from_bytes(kept[table:table + 8], "big")
        new.write_bytes(kept[:block] + bytes(4096) + kept[block + 4096:])

    replaced(copy, no_references)
    assert "has errors" in problem(copy, "structure")


def test_a_file_system_with_errors(copy: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"

    def work(old: Path, new: Path) -> None:
        run("qemu-img", "convert", "-O", "raw", old, raw)
        # The journal would bring the folder back.
        subprocess.run(["e2fsck", "-f", "-p", raw], check=False, capture_output=True, timeout=60)
        run("debugfs", "-w", "-R", "clri <2>", raw)
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, new)

    replaced(copy, work)
    said = problem(copy, "structure")
    assert said.startswith("file system of disk 'dev-disk0', ext4, has errors:")


def test_a_device_state_that_was_cut(copy: Path) -> None:
    data = (copy / "devices").read_bytes()[:-7]
    (copy / "devices").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    rewrite(copy, devices={"file": "devices", "bytes": len(data), "sha256": digest})
    assert "does not parse" in problem(copy, "structure")


def test_an_older_snapshot_has_no_checksums_of_disks(copy: Path) -> None:
    fields = manifest.decode((copy / "manifest.json").read_bytes())
    for disk in fields["disks"]:
        del disk["checksums"]
    (copy / "manifest.json").write_bytes(manifest.encode(fields))
    found = verdict_of(copy)
    assert found["result"] == "passed"
    assert len([line for line in found["evidence"]["not_done"] if "older than" in line]) == 2


def test_killed_it_leaves_nothing_and_goes_on_where_it_was(copy: Path) -> None:
    run_dir = VerifyDir(NAME, copy.name)
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            verdict_of(copy)
        os._exit(0)
    try:
        deadline = time.monotonic() + 60
        while not window_of(copy):
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    deadline = time.monotonic() + 10
    while window_of(copy):
        assert time.monotonic() < deadline, "its processes are still there"
        time.sleep(0.02)
    assert str(run_dir.path) not in Path("/proc/self/mountinfo").read_text()
    assert status.read(copy)["verdicts"] == []
    found = verdict_of(copy)
    assert found["result"] == "passed"
    evidence = found["evidence"]["checksum"]
    assert evidence["resumed_bytes"] >= evidence["disk_bytes"]
    assert not run_dir.path.exists()


def window_of(folder: Path) -> list[int]:
    """Storage daemons that show an image of it."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if words.startswith(b"qemu-storage-daemon") and str(folder).encode() in words:
                found.append(int(pid))
    return found


def test_what_cannot_be_checked_gets_no_verdict(copy: Path) -> None:
    with pytest.raises(RefusedError, match="is not in store"):
        verify(request(copy.with_name("nothing")))
    with pytest.raises(LivesnapError, match="'30 days' is not a duration"):
        request(copy, max_age="30 days")
    with pytest.raises(LivesnapError, match="livesnap-helper is not at '/nowhere'"):
        verify(request(copy, _livesnap_helper="/nowhere"))
    with GuestLock.acquire(VerifyDir(NAME, copy.name).key, {"guest": NAME}, 1.0):
        with pytest.raises(LivesnapError, match=r"waited 0 s"):
            verify(request(copy, lock_timeout=0))
    assert status.read(copy)["verdicts"] == []
    (copy / "status.json").write_text("{")
    with pytest.raises(StoreError, match="not valid JSON"):
        verify(request(copy))
