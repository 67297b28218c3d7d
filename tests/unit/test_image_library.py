# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""liblivesnap-image.so and its binding, on the golden images; the helper is the other witness."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._image import binding
from ansible_collections.livesnap.qemu.plugins.module_utils._image.binding import (
    ImageError,
    RamImage,
)

REPO = Path(__file__).resolve().parents[2]
NATIVE = REPO / "native"
GOLDEN = sorted((REPO / "tests" / "golden").glob("image-v1-*.lsnap"))


@pytest.fixture(scope="module")
def library() -> str:
    subprocess.run(
        ["make", "-s", "-C", str(NATIVE), "all", "library"], check=True, timeout=600,
        capture_output=True)  # fmt: skip
    return str(NATIVE / "build" / "liblivesnap-image.so")


def helper(*words: str | Path) -> bytes:
    argv = [str(NATIVE / "build" / "livesnap-helper"), *map(str, words)]
    return subprocess.run(argv, check=True, capture_output=True, timeout=60).stdout


def declarations(text: str) -> list[str]:
    """Without comments, preprocessor and white space."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    text = re.sub(r"^\s*#.*$", " ", text, flags=re.M)
    return [" ".join(each.split()) for each in text.split(";") if each.strip()]


def test_the_binding_declares_what_the_header_does() -> None:
    header = (NATIVE / "lib" / "livesnap_image.h").read_text()
    assert declarations(binding.CDEF) == declarations(header)


def test_it_shows_its_interface_alone_and_needs_libc_alone(library: str) -> None:
    names = subprocess.run(
        ["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True
    ).stdout
    shown = {line.split()[-1] for line in names.splitlines()}
    assert shown == set(re.findall(r"(livesnap_image_\w+)\(", binding.CDEF))
    needed = subprocess.run(
        ["readelf", "-d", library], check=True, capture_output=True, text=True
    ).stdout
    assert re.findall(r"NEEDED.*\[(.*)\]", needed) == ["libc.so.6"]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_it_tells_what_the_helper_tells(library: str, path: Path) -> None:
    told: dict[str, Any] = json.loads(helper("info", path))
    with RamImage.open(str(path), library) as image:
        about = image.about
        for key in ("version", "id", "checksum", "compression", "ram_bytes", "zero_bytes",
                    "stored_bytes", "file_bytes"):  # fmt: skip
            assert getattr(about, key) == told[key], key
        assert image.blocks[about.main_block].name == told["main_block"]
        assert [(each.name, each.length, each.page_size) for each in image.blocks] == [
            (each["name"], each["length"], each["page_size"]) for each in told["blocks"]
        ]  # fmt: skip
        assert [
            (each.address, image.blocks[each.block].name, each.offset, each.length)
            for each in image.ranges
        ] == [(each["gpa"], each["block"], each["offset"], each["length"]) for each in told["gpa"]]
        assert image.string("machine") == told["machine"]
        assert image.string("nothing") is None


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_it_reads_what_the_helper_reads(library: str, path: Path) -> None:
    with RamImage.open(str(path), library) as image:
        image.verify()
        for block in image.blocks:
            image.verify_range(block.index, 0, block.length)
            for offset, length in ((0, block.length), (block.length - 1, 1), (4090, 12)):
                expected = helper("read", path, "--block", block.name, "--offset", str(offset),
                                  "--length", str(min(length, block.length - offset)))  # fmt: skip
                assert image.read(block.index, offset, len(expected)) == expected
        for each in image.ranges:
            expected = helper(
                "read", path, "--gpa", str(each.address), "--length", str(each.length)
            )
            assert image.read_physical(each.address, each.length) == expected
        assert image.read(0, 0, 0) == b""


def test_what_it_refuses(library: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    shutil.copy(GOLDEN[0], path)
    with RamImage.open(str(path), library) as image:
        for wrong in (
            lambda: image.read(99, 0, 1),
            lambda: image.read(0, image.blocks[0].length, 1),
            lambda: image.read(0, -1, 1),
            lambda: image.read(0, 0, 1 << 63),
            lambda: image.read_physical(1 << 63, 1),
            lambda: image.verify_range(0, 0, image.blocks[0].length + 1),
        ):
            with pytest.raises(ImageError) as caught:
                wrong()
            assert caught.value.word == "usage"
    image.close()
    with pytest.raises(ImageError, match="was closed"):
        image.read(0, 0, 1)
    with path.open("r+b") as file:
        byte = os.pread(file.fileno(), 1, 10)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), 10)
    with RamImage.open(str(path), library) as image:
        with pytest.raises(ImageError, match="wrong checksum") as caught:
            image.verify()
        assert caught.value.word == "torn"
    os.truncate(path, 8192)
    for name, word in ((path, "torn"), (tmp_path / "nothing", "storage")):
        with pytest.raises(ImageError) as caught:
            RamImage.open(str(name), library)
        assert caught.value.word == word
    assert caught.value.system_error == 2
    with pytest.raises(ImageError, match="cannot be loaded") as caught:
        RamImage.open(str(GOLDEN[0]), "/nowhere/liblivesnap-image.so")
    assert caught.value.word == "library"


def test_it_closes_what_it_opens(library: str) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for _unused in range(50):
        with RamImage.open(str(GOLDEN[0]), library) as image:
            image.read_physical(0, 16)
        with pytest.raises(ImageError):
            RamImage.open("/etc/passwd", library)
    assert sorted(os.listdir("/proc/self/fd")) == before
