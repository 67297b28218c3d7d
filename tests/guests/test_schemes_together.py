# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk for each scheme in one guest, a witness on each: one instant over all of them and RAM."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import (
    plan_snapshot,
    remove_snapshot,
)
from bracket_kit import well
from lab import DiskSpec, FileSystem, Guest
from taking import TestStore, folder_of, verdict
from test_command import example
from test_internal import copied_out

SCHEMES = ("backup", "reflink", "command", "internal", "overlay")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def test_one_instant_over_all(
        tmp_path: Path, rounds: Callable[[int, int], int]) -> None:
    with FileSystem("xfs") as xfs, FileSystem("btrfs") as btrfs:
        volume = btrfs.path / "volume"
        subprocess.run(["btrfs", "-q", "subvolume", "create", str(volume)], check=True, timeout=60)
        disks = (DiskSpec(), DiskSpec(), DiskSpec(folder=str(volume)), DiskSpec(format="qcow2"),
                 DiskSpec(folder=str(btrfs.path)))
        store = TestStore(str(xfs.path))
        try:
            with Guest(name="five", base=str(xfs.path), disks=disks) as guest:
                _rounds(guest, store, volume, tmp_path, rounds(2, 20))
        finally:
            store.remove()


def _rounds(guest: Guest, store: TestStore, volume: Path, folder: Path, count: int) -> None:
    options = {
        "disks": [{"match": f"disk{number}", "scheme": scheme}
                  for number, scheme in enumerate(SCHEMES)],
        "disk_commands": example("btrfs"), "max_chain": 32}
    planned = plan_snapshot(store.spec(guest, "s0", **options))["snapshot"]["disks"]
    assert [disk["scheme"] for disk in planned] == list(SCHEMES)
    # A copy alone takes room in the store: what is allocated, and some more.
    assert planned[0]["stored_bytes"] > 64 << 20
    assert [disk["stored_bytes"] for disk in planned[1:]] == [0] * 4
    pages, boot = guest.witness()["pages"], guest.counts()["boot"]
    for number in range(count):
        result = store.take(guest, f"s{number}", **options)
        snapshot = result["snapshot"]
        assert [disk["scheme"] for disk in snapshot["disks"]] == list(SCHEMES)
        images = [folder_of(result) / disk["file"] for disk in snapshot["disks"][:2]]
        images.append(Path(f"{volume}.livesnap-{snapshot['id'][:8]}-2") / "disk2.raw")
        images += copied_out(guest.disk_paths[3:4], f"livesnap-{snapshot['id']}", folder)
        images.append(Path(snapshot["disks"][4]["covered"]))
        assert verdict(guest, result, pages, images) == ""
    with store.clone(guest, "s0") as clone:
        assert clone.counts()["boot"] == boot
        devices = clone.devices()
        assert [devices[f"disk{number}"] for number in range(5)] == ["ok"] * 5
    for number in range(count):
        remove_snapshot(store.spec(guest, f"s{number}"))
    assert list(store.path.iterdir()) == []
    assert sorted(path.name for path in volume.parent.iterdir()) == ["disk4.raw", volume.name]
    well(guest)
