# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""File systems of all kinds on a disk with partitions are looked at through the real window."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._store.rundir import VerifyDir
from ansible_collections.livesnap.qemu.plugins.module_utils._verify import filesystems
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.request import (
    BadSnapshot,
    Check,
    VerifyRequest,
)

MIB = 1 << 20
#: Type of the partition, its size, what makes what is in it.
PARTS: tuple[tuple[int, int, tuple[str, ...]], ...] = (
    (0x83, 16 * MIB, ("mke2fs", "-q", "-F", "-t", "ext4")),
    (0x83, 320 * MIB, ("mkfs.xfs", "-q", "-f")),
    (0x82, 4 * MIB, ("mkswap", "-q")),
    (0x8E, 4 * MIB, ()),
)


def run(*argv: str | Path) -> None:
    env = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    subprocess.run([str(word) for word in argv], check=True, capture_output=True, timeout=60,
                   env=env)


def disk(folder: Path, damaged: int | None = None) -> Check:
    """A disk with PARTS, as an image of a snapshot; one of them without its root folder."""
    raw, entries, start = folder / "raw", b"", MIB
    raw.write_bytes(b"")
    os.truncate(raw, MIB + sum(size for _kind, size, _make in PARTS))
    for number, (kind, size, make) in enumerate(PARTS):
        part = folder / f"part{number}"
        part.write_bytes(b"")
        os.truncate(part, size)
        if make:
            run(*make, part)
        if number == damaged:
            run("debugfs", "-w", "-R", "clri <2>", part)
        run("dd", f"if={part}", f"of={raw}", "bs=1M", f"seek={start // MIB}", "conv=notrunc,sparse")
        entries += bytes(4) + bytes([kind]) + bytes(3) + struct.pack(
            "<II", start // 512, size // 512)
        start += size
    with raw.open("r+b") as file:
        os.pwrite(file.fileno(), entries + b"\x55\xaa", 446)
    (folder / "disks").mkdir()
    run("qemu-img", "convert", "-O", "qcow2", raw, folder / "disks/0-vda.qcow2")
    (folder / "disks/0-vda.qcow2").chmod(0o400)
    run_dir = VerifyDir(f"fs{os.getpid()}", "one")
    run_dir.make()
    entry = {"match": "vda", "file": "disks/0-vda.qcow2", "format": "qcow2",
             "bytes": raw.stat().st_size}
    request = VerifyRequest("/", "fs", "one", "structure")
    return Check(request, folder, {"disks": [entry]}, run_dir)


def look(about: Check) -> list[dict[str, Any]]:
    try:
        return filesystems.check(about, about.fields["disks"][0], "qemu-img")
    finally:
        about.run.remove()


@pytest.mark.skipif(shutil.which("mkfs.xfs") is None, reason="mkfs.xfs is not installed")
def test_each_partition_by_its_own_program(tmp_path: Path) -> None:
    about = disk(tmp_path)
    image = tmp_path / "disks/0-vda.qcow2"
    before = hashlib.sha256(image.read_bytes()).hexdigest()
    assert look(about) == [
        {"disk": "vda", "partition": 1, "type": "ext4", "repaired": False},
        {"disk": "vda", "partition": 2, "type": "xfs", "repaired": False},
    ]
    assert about.not_done == []
    assert hashlib.sha256(image.read_bytes()).hexdigest() == before


@pytest.mark.skipif(shutil.which("mkfs.xfs") is None, reason="mkfs.xfs is not installed")
def test_a_bad_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSnapshot, match="disk 'vda', partition 1, ext4, has errors"):
        look(disk(tmp_path, damaged=0))


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disks").mkdir()
    about = Check(VerifyRequest("/", "fs", "one", "structure"), tmp_path, {}, VerifyDir("fs", "x"))
    monkeypatch.setattr(filesystems, "_PROGRAMS", {"no-such-program": "nothing"})
    assert filesystems.check(about, {"match": "vda"}, "qemu-img") == []
    assert about.not_done == [
        "file systems of disk 'vda': 'no-such-program' is not installed (nothing)"]
