# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A snapshot's RAM as an ELF core, read by those whom it is for."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._store import manifest
from lab import Guest
from taking import TestStore, folder_of, helper

PT_LOAD, PT_NOTE = 1, 4


@dataclass(frozen=True)
class Segment:
    kind: int
    offset: int
    address: int
    length: int


@pytest.fixture(scope="module")
def snapshot(shelf: TestStore) -> Iterator[Path]:
    with Guest(name="core", cpus=2, memory=192) as guest:
        yield folder_of(shelf.take(guest, "core"))


def run(*words: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([helper(), *map(str, words)], stdin=subprocess.DEVNULL, check=False,
                          capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def core(snapshot: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("elf") / "core"
    path.write_text("what was there before")
    done = run("export", "--format", "elf", snapshot, path)
    assert done.returncode == 0, done
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["core"]
    return path


def segments(core: Path) -> list[Segment]:
    with core.open("rb") as file:
        head = file.read(64)
        assert head[:7] == b"\x7fELF\x02\x01\x01"
        kind, machine = struct.unpack_from("<HH", head, 16)
        assert (kind, machine) == (4, 62)
        (start,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        found = []
        for number in range(count):
            file.seek(start + number * size)
            words = struct.unpack("<IIQQQQQQ", file.read(size))
            found.append(Segment(words[0], words[2], words[4], words[5]))
    return found


def notes(core: Path) -> list[tuple[bytes, int, bytes]]:
    (about,) = (each for each in segments(core) if each.kind == PT_NOTE)
    with core.open("rb") as file:
        file.seek(about.offset)
        data = file.read(about.length)
    found, at = [], 0
    while at < len(data):
        name, size, kind = struct.unpack_from("<III", data, at)
        text = data[at + 12 : at + 12 + name - 1]
        at += 12 + (name + 3) // 4 * 4
        found.append((text, kind, data[at : at + size]))
        at += (size + 3) // 4 * 4
    return found


def test_it_is_the_memory_of_the_guest(snapshot: Path, core: Path, tmp_path: Path) -> None:
    memory = manifest.read(snapshot)["memory"]
    loads = [each for each in segments(core) if each.kind == PT_LOAD]
    assert [(each.address, each.length) for each in loads] == sorted(
        (each["gpa"], each["length"]) for each in memory["gpa"])
    # Holes stay holes.
    assert core.stat().st_blocks * 512 < core.stat().st_size
    for each in loads:
        part = tmp_path / "part"
        read = run("read", snapshot / "ram.lsnap", "--gpa", each.address, "--length", each.length)
        part.write_bytes(read.stdout)
        same = subprocess.run(
            ["cmp", f"--ignore-initial=0:{each.offset}", f"--bytes={each.length}", str(part),
             str(core)], check=False, capture_output=True)
        assert same.returncode == 0, (each, same)


def test_its_processors_are_those_of_the_device_state(core: Path) -> None:
    found = notes(core)
    assert [(name, kind) for name, kind, _data in found] == 2 * [(b"CORE", 1), (b"QEMU", 0)]
    for status, about in zip(found[::2], found[1::2], strict=True):
        assert len(status[2]) == 336 and len(about[2]) == 440
        version, size = struct.unpack_from("<II", about[2])
        assert (version, size) == (1, 440)
        rip, rflags = struct.unpack_from("<QQ", about[2], 8 + 16 * 8)
        assert rflags & 2
        cr0, cr1, _cr2, cr3, cr4 = struct.unpack_from("<5Q", about[2], 8 + 18 * 8 + 10 * 24)
        assert cr0 & 0x8000_0001 == 0x8000_0001 and cr1 == 0 and cr4 & 0x20
        assert 0 < cr3 < 192 << 20
        # The same instruction pointer and stack in both.
        registers = struct.unpack_from("<27Q", status[2], 112)
        (rsp,) = struct.unpack_from("<Q", about[2], 8 + 6 * 8)
        assert (registers[16], registers[18], registers[19]) == (rip, rflags, rsp)


def test_volatility_reads_it(snapshot: Path, core: Path) -> None:
    """It finds the same banner as level memory does, by a reader that knows nothing of us."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("vol")), "--offline", "-q", "-f", str(core),
         "banners.Banners"], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done
    found = re.findall(r"^(0x[0-9a-f]+)\s+(Linux version \d.*)$", done.stdout, re.M)
    assert found, done.stdout
    for address, text in found:
        read = run("read", snapshot / "ram.lsnap", "--gpa", address, "--length", 200).stdout
        assert read.startswith(text.strip().encode()[:100]), (address, text, read)


def test_what_it_does_not_do(snapshot: Path, tmp_path: Path) -> None:
    for words, message in (
        (("--pages", "none", snapshot, tmp_path / "x"), "all pages, and to a file"),
        ((snapshot, "-"), "all pages, and to a file"),
        (("--paused", snapshot, tmp_path / "x"), "only format libvirt"),
        ((snapshot, tmp_path / "nowhere" / "x"), "cannot create"),
    ):
        done = run("export", "--format", "elf", *words)
        assert done.returncode != 0 and message in (done.stdout + done.stderr).decode(), done
    assert list(tmp_path.iterdir()) == []
