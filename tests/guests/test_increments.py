# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of what was written since an earlier snapshot: the same as full ones."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import remove_snapshot
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import bitmaps
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import listing
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.request import VerifyRequest
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.verify import verify
from bracket_kit import wait, well
from lab import DiskSpec, Guest
from taking import TestStore, folder_of, helper, images_of, verdict

KIB = 1 << 10
DISKS_ALONE = {"memory": False, "freeze": "never"}


@pytest.fixture
def two() -> Iterator[Guest]:
    """A guest whose second disk, a qcow2 image, is written to by the test alone."""
    with Guest(name="two", disks=(DiskSpec(), DiskSpec(format="qcow2"))) as guest:
        yield guest


def do(guest: Guest, disk: str, *commands: str) -> None:
    """Write to a disk by its own device in QEMU, as a guest does."""
    with guest.look() as qmp:
        device = next(each["qdev"] for each in qmp.execute("query-block")
                      if each["inserted"]["node-name"] == disk)
        for command in commands:
            said = qmp.execute("human-monitor-command", {
                "command-line": f'qemu-io -d {device} "{command}"'})
            assert "rror" not in said and "ailed" not in said, said


def scribble(guest: Guest, seed: int, disk: str = "disk1") -> None:
    """Seeded writes, and what makes a disk smaller again: discards and zeroes.

    Where the file system of the guest has nothing: it is mounted again later.
    """
    order = random.Random(seed)
    commands = []
    for verb in ["write -P {pattern}"] * 12 + ["discard", "write -z", "write -z -u"] * 2:
        offset = (44 << 20) + order.randrange(17 << 10) * KIB
        length = order.choice((1, 4, 60, 64, 68, 256, 700)) * KIB
        pattern = order.randrange(1, 256)
        commands.append(f"{verb.format(pattern=pattern)} {offset} {length}")
    do(guest, disk, *commands)


def same(image: Path, original: Path) -> bool:
    """Whether both are the same disk, whatever their formats and chains."""
    said = subprocess.run(["qemu-img", "compare", "-U", str(image), str(original)],
                          check=False, capture_output=True, text=True, timeout=60)
    return said.stdout.startswith("Images are identical")


def copied(guest: Guest, number: int, path: Path) -> Path:
    """A full copy of a disk made by other means: a stopped guest's image, copied by qemu-img."""
    with guest.look() as qmp:
        assert not qmp.execute("query-status")["running"]
    do(guest, f"disk{number}", "flush")
    subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", str(guest.disk_paths[number]),
                    str(path)], check=True, timeout=60)
    return path


def series(guest: Guest, store: TestStore, folder: Path, count: int) -> dict[str, Path]:
    """Snapshots of the second disk of a stopped guest, and copies of the same instants."""
    found = {}
    with guest.look() as qmp:
        qmp.execute("stop")
    for number in range(count):
        scribble(guest, number)
        result = store.take(guest, f"s{number}", **DISKS_ALONE)
        check_base(result, f"s{number - 1}" if number else None)
        found[f"s{number}"] = copied(guest, 1, folder / f"s{number}.raw")
    return found


def check_base(result: dict[str, Any], base: str | None) -> None:
    for disk in result["snapshot"]["disks"]:
        assert (disk["base"] or {"name": None})["name"] == base, disk
        assert (disk["full_because"] is None) == (base is not None), disk


def image(store: TestStore, guest: Guest, name: str, number: int = 1) -> Path:
    about = next(each for each in listing.list_snapshots(str(store.path), guest.options.name)
                 if each["name"] == name)
    assert about["problem"] is None, about
    return Path(about["path"]) / about["disks"][number]["file"]


def checked(
        store: TestStore, guest: Guest, name: str, level: str = "checksum") -> dict[str, Any]:
    request = VerifyRequest(str(store.path), guest.options.name, name, level, helper=helper())
    found: dict[str, Any] = verify(request)["verdict"]
    return found


def of_ours(guest: Guest) -> dict[str, list[str]]:
    """Disk -> the bitmaps of ours that it has."""
    with guest.look() as qmp:
        nodes = qmp.execute("query-named-block-nodes", {"flat": True})
    return {each["node-name"]: [bitmap["name"] for bitmap in each.get("dirty-bitmaps", ())]
            for each in nodes if each["node-name"] in ("disk0", "disk1")}


def test_one_instant_with_ram(
        two: Guest, store: TestStore, rounds: Callable[[int, int], int]) -> None:
    pages = two.witness()["pages"]
    for number in range(rounds(3, 12)):
        result = store.take(two, f"s{number}")
        check_base(result, f"s{number - 1}" if number else None)
        assert verdict(two, result, pages) == ""
        found = checked(store, two, f"s{number}", "structure")
        assert found["result"] == "passed", found["evidence"]["problem"]
        if number:
            assert all(disk["stored_bytes"] < 40 << 20 for disk in result["snapshot"]["disks"])
    with store.clone(two, "s1") as clone:
        clone.counts()
        assert clone.devices()["disk0"] == "ok"
        with pytest.raises(RefusedError, match=r"s0.*clones stand on its images \(by.*'s1'"):
            remove_snapshot(store.spec(two, "s0"))
    well(two)


def test_the_same_as_full_copies(
        two: Guest, store: TestStore, tmp_path: Path, rounds: Callable[[int, int], int]) -> None:
    copies = series(two, store, tmp_path, rounds(4, 10))
    for name, original in copies.items():
        assert same(image(store, two, name), original), name


def test_removed_under_load(
        two: Guest, store: TestStore, tmp_path: Path, rounds: Callable[[int, int], int]) -> None:
    """Whichever goes, what stays is its own instant, while the guest writes and copies are made."""
    copies = series(two, store, tmp_path, rounds(3, 8))
    with two.look() as qmp:
        qmp.execute("cont")
    order = random.Random(7).sample(list(copies), len(copies))
    for number, name in enumerate(order[:-1]):
        remove_snapshot(store.spec(two, name))
        del copies[name]
        for left, original in copies.items():
            assert same(image(store, two, left), original), (order, name, left)
        result = store.take(two, f"n{number}", memory=False)
        assert checked(store, two, f"n{number}")["result"] == "passed"
    assert verdict(two, store.take(two, "last"), two.witness()["pages"]) == ""
    assert result["snapshot"]["complete"]
    well(two)


def test_goes_on_from_what_is_there(two: Guest, store: TestStore, tmp_path: Path) -> None:
    """After the end of QEMU a qcow2 image has its bitmap still, and a raw one none."""
    store.take(two, "s0", **DISKS_ALONE)
    two.shut_down()
    two.start()
    scribble(two, 1)
    with two.look() as qmp:
        qmp.execute("stop")
    result = store.take(two, "s1", **DISKS_ALONE)
    first, second = result["snapshot"]["disks"]
    assert first["base"] is None and "no bitmap" in first["full_because"]
    assert second["base"]["name"] == "s0" and second["full_because"] is None
    assert same(images_of(result)[1], copied(two, 1, tmp_path / "s1.raw"))
    # Killed, QEMU has stored nothing of it.
    assert two.pid is not None
    os.kill(two.pid, signal.SIGKILL)
    two.shut_down()
    two.start()
    result = store.take(two, "s2", **DISKS_ALONE)
    assert [disk["base"] for disk in result["snapshot"]["disks"]] == [None, None]
    # The newest one is gone: nothing counts from what is left.
    remove_snapshot(store.spec(two, "s2"))
    result = store.take(two, "s3", **DISKS_ALONE)
    assert "is not in the store" in result["snapshot"]["disks"][1]["full_because"]
    result = store.take(two, "s4", **DISKS_ALONE)
    check_base(result, "s3")


def about_image(path: Path) -> dict[str, Any]:
    said = subprocess.run(["qemu-img", "info", "-U", "--output=json", str(path)], check=True,
                          capture_output=True, timeout=60).stdout
    return dict(json.loads(said))


def test_compressed_copies(two: Guest, store: TestStore, tmp_path: Path) -> None:
    """Full ones and increments; merged like any others."""
    with two.look() as qmp:
        qmp.execute("stop")
    do(two, "disk1", f"write -P 7 {40 << 20} 2M")
    store.take(two, "plain", **DISKS_ALONE, max_chain=0)
    originals = {}
    for name, kind in (("s0", "zstd"), ("s1", "zlib"), ("s2", "none")):
        check_base(store.take(two, name, **DISKS_ALONE, disk_compression=kind),
                   f"s{int(name[1]) - 1}" if name != "s0" else None)
        originals[name] = copied(two, 1, tmp_path / f"{name}.raw")
        scribble(two, int(name[1]))
    plain, small = image(store, two, "plain"), image(store, two, "s0")
    assert small.stat().st_size < plain.stat().st_size - (1 << 20)
    assert about_image(small)["format-specific"]["data"]["compression-type"] == "zstd"
    assert about_image(image(store, two, "s1"))["format-specific"]["data"][
        "compression-type"] == "zlib"
    for name, original in originals.items():
        assert same(image(store, two, name), original), name
    remove_snapshot(store.spec(two, "s0"))
    for name in ("s1", "s2"):
        assert same(image(store, two, name), originals[name]), name
        assert checked(store, two, name, "structure")["result"] == "passed", name


def test_disk_bandwidth(two: Guest, store: TestStore) -> None:
    """Shared by the disks. What the guest writes waits for nothing but its own copy."""
    spec = {**DISKS_ALONE, "max_chain": 0}
    do(two, "disk1", f"write -P 7 {24 << 20} 24M")
    seen: list[Any] = []

    def look() -> None:
        with two.look() as qmp:
            # Until the thaw it is a byte a second.
            seen.append(wait(lambda: [job for job in qmp.execute("query-block-jobs")
                                      if job["speed"] > 1], 30))

    looking = threading.Thread(target=look)
    looking.start()
    result = store.take(two, "slow", **spec, disk_bandwidth="16M")
    looking.join()
    assert {job["speed"] for job in seen[0]} == {8 << 20}
    assert result["snapshot"]["timings"]["disk_copy_s"] > 0.7 * 24 / 8
    with pytest.raises(LivesnapError, match="disk_bandwidth 'fast'"):
        store.spec(two, "no", disk_bandwidth="fast")


def test_max_chain(two: Guest, store: TestStore) -> None:
    spec = {**DISKS_ALONE, "max_chain": 1}
    check_base(store.take(two, "s0", **spec), None)
    check_base(store.take(two, "s1", **spec), "s0")
    result = store.take(two, "s2", **spec)
    check_base(result, None)
    assert "as long as max_chain allows" in result["snapshot"]["disks"][0]["full_because"]
    id_ = result["snapshot"]["id"]
    name = bitmaps.name_of(id_, bitmaps.tag(str(store.path), "two"))
    assert of_ours(two) == {"disk0": [name], "disk1": [name]}
    result = store.take(two, "s3", **{**spec, "max_chain": 0})
    assert {(disk["base"], disk["full_because"]) for disk in result["snapshot"]["disks"]} == {
        (None, None)}
    assert of_ours(two) == {"disk0": [], "disk1": []}
    for wrong in (-1, 65):
        with pytest.raises(LivesnapError, match=f"max_chain '{wrong}'"):
            store.spec(two, "s4", max_chain=wrong)


def test_a_failed_one_leaves_no_bitmap(two: Guest, store: TestStore) -> None:
    taken = store.take(two, "s0", **DISKS_ALONE)
    before = of_ours(two)
    with pytest.raises(LivesnapError, match="before"):
        store.take(two, "s1", **DISKS_ALONE, before=[{
            "command": ["/bin/false"], "where": "host", "timeout": 5}])
    assert of_ours(two) == before
    check_base(store.take(two, "s1", **DISKS_ALONE), taken["snapshot"]["name"])


def test_a_link_that_is_not_there(two: Guest, store: TestStore) -> None:
    store.take(two, "s0", **DISKS_ALONE)
    store.take(two, "s1", **DISKS_ALONE)
    subprocess.run(["rm", "-r", str(store.path / "two" / "s0")], check=True)
    (about,) = listing.list_snapshots(str(store.path), "two")
    assert not about["complete"] and "stands on snapshot 's0'" in about["problem"]
    found = checked(store, two, "s1")
    assert found["result"] == "failed" and "s0" in found["evidence"]["problem"]
    # A new one does not stand on it either.
    result = store.take(two, "s2", **DISKS_ALONE)
    assert [disk["base"] for disk in result["snapshot"]["disks"]] == [None, None]
    manifest = json.loads((folder_of(result) / "manifest.json").read_text())
    assert all("s1" in disk["full_because"] for disk in manifest["disks"])
