# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scheme internal: snapshots inside the guest's own qcow2 images, copied out, removed, refused."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _recover
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import remove_snapshot
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.clone import (
    CloneRequest,
    create_clone,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.internal import Internal
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
)
from bracket_kit import fault, wait, well
from lab import DiskSpec, Guest
from taking import TestStore, helper, verdict


@pytest.fixture(scope="module")
def pair() -> Iterator[Guest]:
    disks = (DiskSpec(format="qcow2"), DiskSpec(format="qcow2"))
    with Guest(name="pair", disks=disks, user="nobody", sandbox=True) as guest:
        yield guest


def inside(guest: Guest) -> list[list[str]]:
    """Names of the snapshots inside each image."""
    found = []
    for path in guest.disk_paths:
        done = subprocess.run(["qemu-img", "info", "-U", "--output=json", str(path)],
                              capture_output=True, check=True, timeout=60)
        found.append([each["name"] for each in json.loads(done.stdout).get("snapshots", [])])
    return found


def copied_out(images: list[Path], name: str, folder: Path) -> list[Path]:
    """What a snapshot inside these has, by qemu-img alone."""
    found = []
    for path in images:
        out = folder / f"{path.name}.out"
        subprocess.run(["qemu-img", "convert", "-U", "-l", f"snapshot.name={name}", "-O", "qcow2",
                        str(path), str(out)], check=True, timeout=60)
        found.append(out)
    return found


def test_one_instant(pair: Guest, store: TestStore, tmp_path: Path,
                     rounds: Callable[[int, int], int]) -> None:
    pages, boot = pair.witness()["pages"], pair.counts()["boot"]
    names = []
    for number in range(rounds(2, 20)):
        result = store.take(pair, f"s{number}", disk_scheme="internal")
        assert result["warnings"] == [Internal.WARNING]
        snapshot = result["snapshot"]
        names.append(f"livesnap-{snapshot['id']}")
        assert [disk["file"] for disk in snapshot["disks"]] == [None, None]
        assert verdict(pair, result, pages, copied_out(pair.disk_paths, names[-1], tmp_path)) == ""
    assert inside(pair) == [names, names]
    with store.clone(pair, "s0") as clone:
        assert clone.counts()["boot"] == boot
        assert clone.devices()["disk1"] == "ok"
    with pytest.raises(LivesnapError, match=rf"snapshot '{names[0]}' inside .* would be gone"):
        store.restore(pair, "s0", keep_current=False)
    for number in range(len(names)):
        remove_snapshot(store.spec(pair, f"s{number}"))
        assert inside(pair) == [names[number + 1:]] * 2
    well(pair)


def test_beside_a_copy(pair: Guest, store: TestStore, tmp_path: Path) -> None:
    result = store.take(pair, "both", disks=[{"match": "disk1", "scheme": "internal"}])
    name = f"livesnap-{result['snapshot']['id']}"
    assert inside(pair) == [[], [name]]
    (out,) = copied_out(pair.disk_paths[1:], name, tmp_path)
    copy = Path(result["snapshot"]["path"]) / result["snapshot"]["disks"][0]["file"]
    assert verdict(pair, result, pair.witness()["pages"], [copy, out]) == ""
    remove_snapshot(store.spec(pair, "both"))
    assert inside(pair) == [[], []]


def test_a_failure_leaves_nothing(pair: Guest, store: TestStore) -> None:
    with fault("sweep", "RAISE"), pytest.raises(LivesnapError, match="failed at sweep"):
        store.take(pair, "one", disk_scheme="internal")
    assert inside(pair) == [[], []] and list(store.path.iterdir()) == []
    well(pair)


def test_the_owner_is_killed(pair: Guest, store: TestStore) -> None:
    with fault("arm", "KILL"), pytest.raises(LivesnapError):
        store.take(pair, "one", disk_scheme="internal")
    assert [len(names) for names in inside(pair)] == [1, 1]
    # It dies a moment after its socket was closed.
    wait(lambda: _recover.plan_recovery(str(store.path), "pair"), 20)
    _recover.recover(str(store.path), "pair", helper())
    assert inside(pair) == [[], []] and list(store.path.iterdir()) == []
    well(pair)


def test_removed_while_the_guest_is_off_and_gone_with_its_image(
        make_guest: Callable[..., Guest], store: TestStore) -> None:
    guest = make_guest(name="off", disks=(DiskSpec(format="qcow2"),))
    for name in ("one", "two"):
        store.take(guest, name, disk_scheme="internal")
    guest.shut_down()
    remove_snapshot(store.spec(guest, "one"))
    assert len(inside(guest)[0]) == 1
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(guest.disk_paths[0]), "64M"],
                   check=True, timeout=60)
    request = CloneRequest(str(store.path), "off", f"gone{os.getpid()}", "two", helper=helper())
    with pytest.raises(LivesnapError, match=r"cannot be copied out of .* goes with the image"):
        create_clone(request)
    assert request.place.left() == []
    remove_snapshot(store.spec(guest, "two"))
    assert list(store.path.iterdir()) == []


def test_a_raw_image_is_refused(guest: Guest, store: TestStore) -> None:
    with pytest.raises(LivesnapError, match="'internal': its format is 'raw', not qcow2"):
        store.take(guest, "one", disk_scheme="internal")
    assert list(store.path.iterdir()) == []
