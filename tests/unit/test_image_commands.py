# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The helper's subcommands on RAM images, on the small images that are kept in tests/golden."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
GOLDEN = REPO / "tests" / "golden"
SEEDS = REPO / "native" / "fuzz" / "seeds"


@pytest.fixture(scope="module")
def helper() -> Path:
    subprocess.run(["make", "-s", "-j2", "build/plain/livesnap-helper"], cwd=REPO / "native",
                   check=True, timeout=300, stdout=subprocess.DEVNULL)
    return REPO / "native" / "build" / "plain" / "livesnap-helper"


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A snapshot's folder: RAM and device state."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    shutil.copy(GOLDEN / "image-v1-lz4.lsnap", folder / "ram.lsnap")
    shutil.copy(SEEDS / "fuzz_devices" / "two-sections", folder / "devices")
    return folder


def run(helper: Path, *argument: Any, code: int = 0) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run([str(helper), *map(str, argument)], capture_output=True, check=False,
                          stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == code, (done.stdout[:500], done.stderr[:500])
    return done


def last(output: bytes) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(output.splitlines()[-1])
    return event


def test_info(helper: Path, snapshot: Path) -> None:
    info = last(run(helper, "info", snapshot).stdout)
    assert info == last(run(helper, "info", snapshot / "ram.lsnap").stdout)
    assert info["version"] == 1
    assert info["id"] == "5c1f0304-0506-0708-090a-0b0c0d0e0f00"
    assert info["compression"] == "lz4"
    assert info["main_block"] == "pc.ram"
    assert (info["machine"], info["qemu_version"], info["arch"]) == (
        "pc-i440fx-7.2", "7.2.22", "x86_64")
    assert info["strings"]["machine"] == "pc-i440fx-7.2"
    assert info["ram_bytes"] == 15 * 4096 == sum(block["length"] for block in info["blocks"])
    assert info["file_bytes"] == (snapshot / "ram.lsnap").stat().st_size
    assert len(info["checksum"]) == 32
    assert info["gpa"][1] == {"gpa": 1 << 32, "block": "pc.ram", "offset": 3 * 4096,
                              "length": 4 * 4096}


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
def test_verify(helper: Path, codec: str, tmp_path: Path) -> None:
    image = tmp_path / "ram.lsnap"
    shutil.copy(GOLDEN / f"image-v1-{codec}.lsnap", image)
    done = last(run(helper, "verify", image).stdout)
    assert done["event"] == "done" and done["ram_bytes"] > 0
    data = bytearray(image.read_bytes())
    data[100] ^= 1
    image.write_bytes(data)
    error = last(run(helper, "verify", image, code=6).stdout)
    assert (error["event"], error["class"]) == ("error", "torn")
    assert "block '" in error["message"] and "file offset " in error["message"]
    assert "guest address 0x" in error["message"] or "no guest address" in error["message"]
    image.write_bytes(data[:-4096])
    assert last(run(helper, "verify", image, code=6).stdout)["reason"] == "cut"


def test_not_images(helper: Path, tmp_path: Path) -> None:
    for command in ("info", "verify"):
        assert last(run(helper, command, tmp_path / "none", code=5).stdout)["class"] == "storage"
        assert last(run(helper, command, tmp_path, code=5).stdout)["class"] == "storage"
        run(helper, command, code=1)
        run(helper, command, "a", "b", code=1)
    (tmp_path / "text").write_text("no image\n" * 1000)
    assert last(run(helper, "info", tmp_path / "text", code=6).stdout)["reason"] == "cut"


def test_read(helper: Path, snapshot: Path, tmp_path: Path) -> None:
    run(helper, "export", "--format", "raw", snapshot, tmp_path / "raw")
    ram = (tmp_path / "raw" / "pc.ram").read_bytes()
    assert len(ram) == 7 * 4096
    read = run(helper, "read", snapshot, "--gpa", 1 << 32, "--length", 5000)
    assert read.stdout == ram[3 * 4096:3 * 4096 + 5000]
    read = run(helper, "read", "--gpa", "0x10", "--length", "0x20", snapshot)
    assert read.stdout == ram[16:48]
    read = run(helper, "read", snapshot, "--block", "pc.ram", "--offset", 7 * 4096 - 9,
               "--length", 9)
    assert read.stdout == ram[-9:]
    assert run(helper, "read", snapshot, "--gpa", 0, "--length", 0).stdout == b""


@pytest.mark.parametrize(("arguments", "reason"), [
    (["--gpa", "0", "--length", "12289"], "address"),  # goes beyond low RAM: nothing is written
    (["--gpa", "0x80000000", "--length", "1"], "address"),
    (["--block", "none", "--offset", "0", "--length", "1"], "block"),
    (["--block", "pc.ram", "--offset", "28672", "--length", "1"], "address"),
    (["--gpa", "0"], "usage"),
    (["--gpa", "-1", "--length", "1"], "usage"),
    (["--gpa", "1x", "--length", "1"], "usage"),
    (["--gpa", "0", "--block", "pc.ram", "--offset", "0", "--length", "1"], "usage"),
    (["--gpa", "99999999999999999999999", "--length", "1"], "usage"),
])
def test_read_refuses(helper: Path, snapshot: Path, arguments: list[str], reason: str) -> None:
    done = run(helper, "read", snapshot, *arguments, code=1)
    assert done.stdout == b""
    assert last(done.stderr)["reason"] == reason


def test_export(helper: Path, snapshot: Path, tmp_path: Path) -> None:
    out = tmp_path / "stream"
    out.write_text("an older one")
    assert last(run(helper, "export", "--format", "qemu", snapshot, out).stdout)["event"] == "done"
    stream = out.read_bytes()
    assert stream[:9] == b"QEVM" + struct.pack(">IB", 3, 7)
    assert stream[-8:] == b"\0\x06\0\0\0\2{}"
    assert out.stat().st_mode & 0o777 == 0o600
    assert run(helper, "export", "--format", "qemu", snapshot, "-").stdout == stream
    assert run(helper, "export", "--format", "qemu", snapshot / "ram.lsnap", "-").stdout == stream
    shutil.move(str(snapshot / "devices"), str(tmp_path / "elsewhere"))
    assert run(helper, "export", "--format", "qemu", "--devices", tmp_path / "elsewhere", snapshot,
               "-").stdout == stream
    fewer = run(helper, "export", "--format", "qemu", "--pages", "none", "--devices",
                tmp_path / "elsewhere", snapshot, "-").stdout
    assert len(fewer) < len(stream) and b"vga.vram" in fewer
    assert {path.name for path in tmp_path.iterdir()} == {"stream", "snapshot", "elsewhere"}


def test_export_to_a_fifo(helper: Path, snapshot: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()), daemon=True)
    reader.start()
    run(helper, "export", "--format", "qemu", snapshot, fifo)
    reader.join(10)
    assert got[0] == run(helper, "export", "--format", "qemu", snapshot, "-").stdout
    assert fifo.is_fifo()


def test_export_refuses(helper: Path, snapshot: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arguments in (["--format", "qemu", snapshot], ["--format", "tape", snapshot, out],
                      ["--format", "qemu", "--pages", "some", snapshot, out],
                      ["--format", "raw", "--pages", "all", snapshot, out],
                      ["--format", "raw", snapshot, "-"], [snapshot, out], ["--help"]):
        assert last(run(helper, "export", *arguments, code=1).stderr)["class"] == "usage"
    error = last(run(helper, "export", "--format", "qemu", snapshot, tmp_path / "no" / "out",
                     code=5).stdout)
    assert str(tmp_path / "no" / "out") in error["message"]
    # A damaged page: no stream at all, not one that ends early.
    data = bytearray((snapshot / "ram.lsnap").read_bytes())
    data[100] ^= 1
    (snapshot / "ram.lsnap").write_bytes(data)
    assert last(run(helper, "export", "--format", "qemu", snapshot, out, code=6).stdout)[
        "class"] == "torn"
    run(helper, "export", "--format", "raw", snapshot, tmp_path / "raw", code=6)
    (snapshot / "devices").write_bytes(b"QEVM")
    assert last(run(helper, "export", "--format", "qemu", snapshot, out, code=6).stdout)[
        "reason"] == "devices"
    (snapshot / "devices").unlink()
    run(helper, "export", "--format", "qemu", snapshot, out, code=5)
    assert {path.name for path in tmp_path.iterdir()} == {"snapshot", "raw"}
    assert not [path for path in (tmp_path / "raw").iterdir() if path.name.endswith(".part")]
