# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of scheme overlay share: the layers of disks, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.livesnap.qemu.plugins.module_utils._store import listing
from lab import Domain, Guest
from taking import TestStore, verdict


def chains(guest: Guest | Domain) -> list[list[str]]:
    """The images that each disk is made of, in QEMU's own words, that which is written to first."""
    found = []
    with guest.look() as qmp:
        for block in qmp.execute("query-block"):
            image, files = block.get("inserted", {}).get("image"), []
            while image:
                files.append(image["filename"])
                image = image.get("backing-image")
            found.append(files)
    return found


def alone(guest: Guest | Domain) -> None:
    """Each disk is its first image; no other file or node is there."""
    assert chains(guest) == [[str(path)] for path in guest.disk_paths]
    assert [path.name for path in guest.folder.iterdir() if ".livesnap-" in path.name] == []
    with guest.look() as qmp:
        nodes = [each["node-name"] for each in qmp.execute("query-named-block-nodes")]
    assert [name for name in nodes if name.startswith("overlay-")] == []


def entries(store: TestStore, guest: Guest | Domain) -> dict[str, dict[str, Any]]:
    """Name -> what is told of a snapshot, all of them whole."""
    found = listing.list_snapshots(str(store.path), guest.options.name)
    assert [each["problem"] for each in found if each["problem"]] == []
    return {each["name"]: each for each in found}


def allocated(*folders: Path) -> int:
    """What the files in them take, bytes."""
    files = [path.lstat() for folder in folders for path in folder.rglob("*") if path.is_file()]
    return sum(about.st_blocks * 512 for about in files)


def judged(store: TestStore, guest: Guest | Domain, name: str, pages: int) -> str:
    """Whether its RAM and its disks, wherever they are now, are of one instant."""
    snapshot = entries(store, guest)[name]
    images = [Path(disk["covered"]) for disk in snapshot["disks"]]
    return verdict(guest, {"snapshot": snapshot}, pages, images)
