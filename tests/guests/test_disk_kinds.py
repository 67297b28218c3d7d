# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every kind of disk that a guest can have is captured as it is, left out, or refused by name."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import remove_snapshot
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from bracket_kit import clean, wait, well
from lab import Guest
from overlay_kit import chains
from taking import TestStore, folder_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")

SIZE = 16 << 20


@dataclass(frozen=True)
class Kind:
    """One disk. image: the file that holds it, and its format. arguments: those of QEMU."""

    image: Path
    format: str
    arguments: tuple[str, ...]


def filled(path: Path, backing: Path | None = None) -> Path:
    """An image with data of its own."""
    if path.suffix == ".raw":
        path.write_bytes(random.Random(path.name).randbytes(1 << 20) + bytes(SIZE - (1 << 20)))
        return path
    below = ["-b", str(backing), "-F", "qcow2"] if backing else []
    fill = f"write -P {sum(path.name.encode()) % 251 + 1} 1M 1M"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *below, str(path), str(SIZE)],
                   check=True, timeout=60)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", fill, str(path)], check=True, timeout=60,
                   stdout=subprocess.DEVNULL)
    return path


def node(name: str, image: Path, kind: str, **file: str) -> tuple[str, ...]:
    """-blockdev of an image."""
    file = file or {"driver": "file", "filename": str(image)}
    below = ",".join(f"file.{key}={value}" for key, value in file.items())
    return ("-blockdev", f"driver={kind},node-name={name},{below}")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Kind]]:
    """Node name, or id of a -drive -> the disk."""
    folder = tmp_path_factory.mktemp("kinds")
    base = filled(folder / "base.qcow2")
    chain = filled(folder / "chain.qcow2", base)
    scsi, nvme, old = (filled(folder / name) for name in ("scsi.raw", "nvme.raw", "old.qcow2"))
    loop, far = filled(folder / "loop.raw"), filled(folder / "far.raw")
    socket = folder / "nbd"
    with contextlib.ExitStack() as stack:
        device = subprocess.run(["losetup", "-f", "--show", str(loop)], check=True, timeout=20,
                                capture_output=True, text=True).stdout.strip()
        stack.callback(subprocess.run, ["losetup", "-d", device], check=True, timeout=20)
        server = stack.enter_context(subprocess.Popen(
            ["qemu-nbd", "-t", "-f", "raw", "-k", str(socket), str(far)]))
        stack.callback(server.terminate)
        wait(socket.exists, 20)
        yield {
            "chain": Kind(chain, "qcow2", (
                *node("chain", chain, "qcow2"), "-object", "iothread,id=io0",
                "-device", "virtio-blk-pci,drive=chain,iothread=io0")),
            "scsi": Kind(scsi, "raw", (
                *node("scsi", scsi, "raw"), "-object", "iothread,id=io1",
                "-device", "virtio-scsi-pci,id=bus,iothread=io1",
                "-device", "scsi-hd,bus=bus.0,drive=scsi")),
            "nvme": Kind(nvme, "raw", (
                *node("nvme", nvme, "raw"), "-device", "nvme,id=fast,drive=nvme,serial=fast")),
            "loop": Kind(loop, "raw", (
                *node("loop", loop, "raw", driver="host_device", filename=device),
                "-device", "virtio-blk-pci,drive=loop")),
            "far": Kind(far, "raw", (
                *node("far", far, "raw", **{
                    "driver": "nbd", "server.type": "unix", "server.path": str(socket)}),
                "-device", "virtio-blk-pci,drive=far")),
            "old": Kind(old, "qcow2", (
                "-drive", f"if=none,id=old,file={old},format=qcow2",
                "-device", "virtio-blk-pci,drive=old")),
        }


@pytest.fixture(scope="module")
def many(kinds: dict[str, Kind], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest with all of them, an empty drive and one that cannot be written to."""
    fixed = filled(tmp_path_factory.mktemp("fixed") / "fixed.raw")
    args = [word for kind in kinds.values() for word in kind.arguments]
    args += ["-device", "ide-cd,id=empty", "-blockdev", f"driver=raw,node-name=fixed,read-only=on,"
             f"file.driver=file,file.filename={fixed}", "-device", "virtio-blk-pci,drive=fixed"]
    with Guest(name="many", memory=128, args=tuple(args)) as guest:
        yield guest


def same(image: Path, image_format: str, other: Path, other_format: str) -> None:
    done = subprocess.run(
        ["qemu-img", "compare", "-U", "-f", image_format, "-F", other_format, str(image),
         str(other)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{other.name}: {done.stdout}{done.stderr}"


def test_each_is_captured_as_it_is(
        many: Guest, kinds: dict[str, Kind], store: TestStore) -> None:
    result = store.take(many, "all", memory=False)
    disks = {disk["match"]: disk for disk in result["snapshot"]["disks"]}
    named = {disk["node"]: disk for disk in disks.values()} | disks
    assert len(disks) == len(kinds) + 1
    # The drive without a medium, and what nobody can write to.
    excluded = json.loads((folder_of(result) / "manifest.json").read_text())["excluded_disks"]
    assert len(excluded) == 2
    assert {"empty", "fixed"} <= {word for each in excluded for word in each.values()}
    for name, kind in kinds.items():
        same(kind.image, kind.format, folder_of(result) / named[name]["file"], "qcow2")
    well(many)
    clean(many)
    again = store.take(many, "again", memory=False)
    assert [disk["base"]["name"] for disk in again["snapshot"]["disks"]] == ["all"] * len(disks)
    with pytest.raises(LivesnapError, match=r"no disk of the guest|has no medium"):
        store.take(many, "no", memory=False, disks=[{"match": "empty", "scheme": "backup"}])


def test_ram_of_a_machine_that_does_not_migrate_is_refused(many: Guest, store: TestStore) -> None:
    with pytest.raises(LivesnapError, match=r"fast' \(nvme\).* has no device state"):
        store.take(many, "no")
    assert list(store.path.iterdir()) == []
    well(many)


def test_layers_upon_files_of_each_kind(
        many: Guest, kinds: dict[str, Kind], store: TestStore) -> None:
    """Also where a thread of its own does the I/O, and upon a chain that was there before."""
    covered = ("chain", "scsi", "nvme", "old")
    before = chains(many)
    wanted: list[dict[str, Any]] = [{"match": name, "scheme": "overlay"} for name in covered]
    result = store.take(many, "one", memory=False,
                        disks=[*wanted, {"match": "*", "scheme": "none"}])
    assert len(result["snapshot"]["disks"]) == len(covered)
    for disk in result["snapshot"]["disks"]:
        image = next(kind.image for kind in kinds.values() if str(kind.image) == disk["covered"])
        assert image.exists() and Path(disk["overlay"]).exists()
    well(many)
    for name in ("loop", "far"):
        with pytest.raises(LivesnapError, match="cannot be captured by scheme 'overlay'"):
            store.take(many, "no", memory=False, disks=[
                {"match": name, "scheme": "overlay"}, {"match": "*", "scheme": "none"}])
    remove_snapshot(store.spec(many, "one"))
    assert chains(many) == before
    well(many)
    clean(many)
