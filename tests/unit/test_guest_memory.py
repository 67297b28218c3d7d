# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Page tables, kernels and probes in a made-up memory. tests/guests has those of a real guest."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    HelperError,
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._image.binding import ImageError
from ansible_collections.livesnap.qemu.plugins.module_utils._verify import guest_memory, kernel
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.guest_memory import GuestMemory
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.paging import (
    Cpu,
    Run,
    cpu_of,
    runs,
    translate,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.probe import Probe
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.probes import Judge
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.request import BadSnapshot
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.sections import Section

REPO = Path(__file__).resolve().parents[2]
GOLDEN = sorted((REPO / "tests" / "golden").glob("image-v1-*.lsnap"))
KERNEL = 0xFFFF_FFFF_8000_0000
BANNER = "Linux version 6.1.0-x (somebody@somewhere) (gcc 12) #1 SMP"
MIB = 1 << 20


class Memory:
    """16 MiB at address 0, and what GuestMemory has of it."""

    def __init__(self) -> None:
        self.bytes = bytearray(16 * MIB)

    def put(self, address: int, *words: int) -> None:
        struct.pack_into(f"<{len(words)}Q", self.bytes, address, *words)

    def read(self, address: int, length: int) -> bytes | None:
        inside = address >= 0 and address + length <= len(self.bytes)
        return bytes(self.bytes[address : address + length]) if inside else None

    def word(self, address: int) -> int | None:
        data = self.read(address, 8)
        return None if data is None else int(struct.unpack("<Q", data)[0])

    def pieces(self, overlap: int) -> Any:
        half = len(self.bytes) // 2
        yield 0, bytes(self.bytes[:half])
        yield half - overlap, bytes(self.bytes[half - overlap :])


def with_kernel(levels: int = 4) -> tuple[Any, Cpu]:
    """A kernel at 4 MiB: its first 2 MiB as one page, and some pages of 4 KiB behind."""
    memory = Memory()
    top = 0x1000
    if levels == 5:
        memory.put(0x1000 + 8 * 511, 0x6000 | 1)
        top = 0x6000
    memory.put(top + 8 * 511, 0x2000 | 1)
    memory.put(0x2000 + 8 * 510, 0x3000 | 1)
    memory.put(0x3000, 4 * MIB | 0x80 | 1, 0x4000 | 1)
    memory.put(0x4000, 6 * MIB | 1, 6 * MIB + 4096 | 1, 0, 8 * MIB | 1)
    at = 6 * MIB - 20
    memory.bytes[at : at + len(BANNER) + 2] = BANNER.encode() + b"\n\0"
    return memory, Cpu(0, 0x1000, levels, False)


@pytest.mark.parametrize("levels", [4, 5])
def test_addresses_are_translated(levels: int) -> None:
    memory, cpu = with_kernel(levels)
    for virtual, physical in (
        (KERNEL + 5, 4 * MIB + 5),
        (KERNEL + 2 * MIB + 4096 + 7, 6 * MIB + 4096 + 7),
        (KERNEL + 2 * MIB + 3 * 4096, 8 * MIB),
        (KERNEL + 2 * MIB + 2 * 4096, None),
        (KERNEL + 4 * MIB, None),
        (0, None),
    ):
        assert translate(cpu, virtual, memory.word) == physical
    found = list(runs(cpu, KERNEL, KERNEL + (1 << 30), memory.word))
    assert found == [
        Run(KERNEL, 4 * MIB, 2 * MIB + 2 * 4096),
        Run(KERNEL + 2 * MIB + 3 * 4096, 8 * MIB, 4096),
    ]


def test_a_kernel_is_found_by_each_processor() -> None:
    memory, cpu = with_kernel()
    found = kernel.find(memory, [cpu])
    assert found is not None
    assert (found.banner, found.virtual, found.physical) == (
        BANNER, KERNEL + 2 * MIB - 20, 6 * MIB - 20)
    assert kernel.strays(memory, [cpu], found) == ([], [])
    # In a program, with page tables of its own beside the kernel's.
    memory.bytes[0x8000:0x9000], memory.bytes[0x9000:0xA000] = (
        memory.bytes[0x1000:0x2000], bytes(4096))
    isolated = Cpu(1, 0x9000, 4, False)
    assert kernel.find(memory, [isolated]) == found
    assert kernel.strays(memory, [cpu, isolated], found) == ([], [])


def test_a_processor_that_is_led_elsewhere() -> None:
    memory, cpu = with_kernel()
    found = kernel.find(memory, [cpu])
    assert found is not None
    # The same tables, but for the page with the kernel.
    memory.put(0xA000 + 8 * 511, 0xB000 | 1)
    memory.put(0xB000 + 8 * 510, 0xC000 | 1)
    memory.put(0xC000, 8 * MIB | 0x80 | 1)
    other, empty = Cpu(1, 0xA000, 4, False), Cpu(2, 0xE000, 4, False)
    assert kernel.strays(memory, [cpu, other, empty], found) == ([1], [2])
    # One that runs a guest of its own has that one's tables.
    assert kernel.strays(memory, [Cpu(1, 0xA000, 4, True)], found) == ([], [1])
    assert kernel.find(memory, [other, empty]) is None


def section(**changed: int) -> Section:
    """A processor in long mode."""
    data = bytearray(900)
    found = {"eflags": 2, "cr0": 0x8005_0033, "cr3": 0x1234_5003, "cr4": 0x6F0, "efer": 0xD01,
             "version": 12, **changed}
    for name, at in (("eflags", 136), ("cr0", 456), ("cr3", 472), ("cr4", 480), ("efer", 816)):
        struct.pack_into(">Q", data, at, found[name])
    return Section("cpu", 0, 3, found["version"], 0, bytes(data))


def test_registers_of_a_device_state() -> None:
    assert cpu_of(section()) == Cpu(3, 0x1234_5000, 4, False)
    assert cpu_of(section(cr4=0x16F0)) == Cpu(3, 0x1234_5000, 5, False)
    for changed in ({"cr0": 0x33}, {"efer": 0}, {"eflags": 0}, {"version": 13}):
        assert cpu_of(section(**changed)) is None
    assert cpu_of(Section("cpu", 0, 0, 12, 0, b"short")) is None
    nested = section()
    assert cpu_of(Section("cpu", 0, 0, 12, 0, nested.data + b"cpu/nested_state")) == Cpu(
        0, 0x1234_5000, 4, True)


def probe(**given: Any) -> Probe:
    empty = dict.fromkeys(("physical", "virtual", "pattern", "value", "disk"))
    return Probe.of({"name": "p", **empty, "offset": 0, "length": 8, "disk_offset": 0,
                     "most_apart": 0, **given})


@pytest.mark.parametrize(("given", "message"), [
    ({}, "one of physical, virtual and pattern"),
    ({"physical": "1", "virtual": "1"}, "one of physical, virtual and pattern"),
    ({"physical": "here"}, "physical 'here', which is no address"),
    ({"virtual": "-1"}, "virtual '-1', which is no address"),
    ({"virtual": hex(1 << 64)}, "which is no address"),
    ({"pattern": "abc"}, "4 to 4096 bytes"),
    ({"pattern": "\xe4bcd"}, "not ASCII"),
    ({"pattern": "ab\\x4"}, "not ASCII"),
    ({"physical": "1", "length": 0}, "length '0'"),
    ({"physical": "1", "length": 4097}, "length '4097'"),
    ({"physical": "1", "disk_offset": -1}, "disk_offset '-1'"),
    ({"physical": "1", "most_apart": -1}, "most_apart '-1'"),
])
def test_probes_that_make_no_sense(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RefusedError, match=f"probe 'p' .*{message}"):
        probe(**given)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """One with 0x05 at byte 70001 and nothing else."""
    path = tmp_path_factory.mktemp("disk") / "d.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 5 70001 1", str(path)], check=True,
                   stdout=subprocess.DEVNULL)
    return {"vda": (path, "qcow2")}


@pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-utils is not there")
def test_probes_are_judged(disk: dict[str, tuple[Path, str]]) -> None:
    memory, cpu = with_kernel()
    memory.bytes[8 * MIB - 3 : 8 * MIB + 9] = b"mark\x00" + bytes([7]) + bytes(6)
    judge = Judge(memory, cpu, disk)
    found = judge.judge([
        probe(name="a", physical="0x7ffffd", value="mark\\x00"),
        probe(name="b", pattern="mark", offset=5, length=2, disk="vda", disk_offset=70001,
              most_apart=2),
        probe(name="c", virtual=hex(KERNEL + 2 * MIB - 20), value="Linux"),
    ])  # fmt: skip
    assert [each["name"] for each in found] == ["a", "b", "c"]
    assert found[1] == {"name": "b", "physical": "0x800002", "memory": "0700", "disk": "0500"}
    for bad, message in (
        (probe(physical="0x7ffffd", value="marl"), "there is 6d61726b, not 6d61726c"),
        (probe(pattern="nowhere"), "pattern b'nowhere' is not in"),
        (probe(virtual="0x1000"), "virtual address 0x1000 is not in"),
        (probe(physical=hex(16 * MIB)), "is no RAM"),
        (probe(pattern="mark", offset=-(1 << 40)), "is no RAM"),
        (probe(pattern="mark", offset=5, length=1, disk="vda", disk_offset=70001, most_apart=1),
         "they are not of one instant"),
    ):  # fmt: skip
        with pytest.raises(BadSnapshot, match=f"probe 'p': .*{message}"):
            judge.judge([bad])
    with pytest.raises(RefusedError, match=r"is of disk 'vdb'.*its disks are vda"):
        judge.judge([probe(physical="0", disk="vdb")])
    with pytest.raises(LivesnapError, match=r"byte 1048576 of disk image .* cannot be read"):
        judge.judge([probe(physical="0", disk="vda", disk_offset=MIB)])


@pytest.fixture(scope="module")
def helpers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The helper with the library beside it, and alone."""
    native = REPO / "native"
    subprocess.run(["make", "-s", "-C", str(native), "all", "library"], check=True, timeout=600,
                   capture_output=True)
    alone = tmp_path_factory.mktemp("alone") / "livesnap-helper"
    shutil.copy(native / "build" / "livesnap-helper", alone)
    return {"library": str(native / "build" / "livesnap-helper"), "helper": str(alone)}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_library_and_helper_read_the_same(
        helpers: dict[str, str], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_memory, "_LARGE_PIECE", 8192)
    told = json.loads(subprocess.run(
        [helpers["helper"], "info", str(path)], check=True, capture_output=True).stdout)
    read: dict[str, list[Any]] = {}
    for kind, helper in helpers.items():
        with GuestMemory(path, told["gpa"], helper) as memory:
            assert memory.read_by.startswith(kind)
            assert sum(area.length for area in memory.areas) == sum(
                each["length"] for each in told["gpa"])
            first = memory.areas[0]
            assert memory.read(first.address - 1, 2) is None
            last = memory.areas[-1]
            assert memory.read(last.address + last.length - 4, 8) is None
            overlapping = list(memory.pieces(16))
            read[kind] = [memory.read(first.address + 3, 5000), memory.word(first.address),
                          overlapping]
    assert read["library"] == read["helper"]
    whole = b"".join(data[16 * bool(number):]
                     for number, (_address, data) in enumerate(read["library"][2])
                     if number < 2)
    assert read["library"][0] is None or read["library"][0] == whole[3:5003]


def test_damage_is_said(helpers: dict[str, str], tmp_path: Path) -> None:
    """Whichever byte is another one: an error, or it was none of the guest's memory."""
    path = tmp_path / "ram.lsnap"
    good = GOLDEN[0].read_bytes()
    told = json.loads(subprocess.run(
        [helpers["helper"], "info", str(GOLDEN[0])], check=True, capture_output=True).stdout)
    said: dict[str, list[str]] = {}
    for kind, helper in helpers.items():
        with GuestMemory(GOLDEN[0], told["gpa"], helper) as memory:
            whole = list(memory.pieces(0))
        for at in range(100, len(good), len(good) // 12):
            data = bytearray(good)
            data[at] ^= 1
            path.write_bytes(data)
            try:
                with GuestMemory(path, told["gpa"], helper) as memory:
                    assert list(memory.pieces(0)) == whole
                word = "none"
            except (ImageError, HelperError) as err:
                word = err.word
            said.setdefault(kind, []).append(word)
    assert said["library"] == said["helper"]
    assert "torn" in said["library"] and set(said["library"]) <= {"torn", "none"}
