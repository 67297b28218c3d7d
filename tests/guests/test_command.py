# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scheme command: the example for btrfs of docs/commands.md; commands that fail, hang or lie."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.livesnap.qemu.plugins.module_utils import _recover
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import (
    plan_snapshot,
    remove_snapshot,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.clone import (
    CloneRequest,
    create_clone,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.plain import plain_restore
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import manifest
from ansible_collections.livesnap.qemu.plugins.module_utils._store.listing import list_snapshots
from bracket_kit import fault, living, wait, well
from lab import DiskSpec, FileSystem, Guest
from taking import TestStore, folder_of, helper, verdict

REPO = Path(__file__).resolve().parents[2]
DOCS = (REPO / "docs" / "commands.md").read_text()
ALL_COMMAND = [{"match": "*", "scheme": "command"}]


def example(heading: str) -> dict[str, Any]:
    """disk_commands of an example in the documentation."""
    block = DOCS.partition(f"\n## {heading}")[2].partition("```yaml\n")[2].partition("```")[0]
    commands: dict[str, Any] = yaml.safe_load(block)["livesnap_disk_commands"]
    return {**commands, "limit": 5}


@pytest.mark.parametrize("heading", ["LVM", "ZFS", "Ceph", "btrfs"])
def test_each_example_is_shell(heading: str) -> None:
    for action in ("create", "remove", "restore"):
        subprocess.run(["/bin/sh", "-n", "-c", example(heading)[action]], check=True, timeout=10)


# -- btrfs, as documented


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_one_instant_on_btrfs(make_guest: Callable[..., Guest], store: TestStore,
                              rounds: Callable[[int, int], int]) -> None:
    with FileSystem("btrfs") as mounted:
        # A guest's folder has a name of its own: the subvolume is the base, and holds the images.
        volume = mounted.path / "tree"
        subprocess.run(["btrfs", "-q", "subvolume", "create", str(volume)], check=True, timeout=60)
        disks = (DiskSpec(folder=str(volume)), DiskSpec(format="qcow2", folder=str(volume)))
        guest = make_guest(name="tree", disks=disks)
        try:
            _rounds_on_btrfs(guest, store, volume, rounds(2, 20))
        finally:
            guest.stop()


def _rounds_on_btrfs(guest: Guest, store: TestStore, volume: Path, count: int) -> None:
    pages, boot = guest.witness()["pages"], guest.counts()["boot"]
    options = {"disk_commands": example("btrfs"), "disk_scheme": "command"}
    for number in range(count):
        result = store.take(guest, f"s{number}", **options)
        snapshot = result["snapshot"]
        assert [disk["scheme"] for disk in snapshot["disks"]] == ["command"] * 2
        assert [disk["file"] for disk in snapshot["disks"]] == [None, None]
        copies = [Path(f"{volume}.livesnap-{snapshot['id'][:8]}-{index}") for index in (0, 1)]
        images = [copy / path.name for copy, path in zip(copies, guest.disk_paths)]
        assert verdict(guest, result, pages, images) == ""
    with store.clone(guest, "s0") as clone:
        assert clone.counts()["boot"] == boot
        assert clone.devices()["disk1"] == "ok"
    with pytest.raises(RefusedError, match="is not in the store; make a clone"):
        plain_restore(str(store.path), "tree", "s0", "/tmp/nowhere", helper())
    for number in range(1, count):
        remove_snapshot(store.spec(guest, f"s{number}"))
    with store.gone_back(guest, "s0") as back:
        assert back.counts()["boot"] == boot
        remove_snapshot(store.spec(guest, "s0"))
        assert [path.name for path in volume.parent.iterdir()] == [volume.name]
        assert back.counts()["boot"] == boot


# -- other commands, which copy files


class Copies:
    """Commands that copy images into a folder, and a note of what they were told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"

    def commands(self, **changed: Any) -> dict[str, Any]:
        copy = f'"{self.folder}/$LIVESNAP_KEY"'
        note = f'echo "$LIVESNAP_ACTION $LIVESNAP_DISK" >> {self.log}; '
        return {
            "create": f'{note}cp --sparse=always "$LIVESNAP_SOURCE" {copy}',
            "remove": f"{note}rm -f {copy}",
            "restore": f'{note}cp --sparse=always {copy} "$LIVESNAP_TARGET"',
            "limit": 5, **changed}

    @property
    def said(self) -> list[str]:
        return sorted(self.log.read_text().splitlines()) if self.log.exists() else []

    @property
    def left(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("livesnap-*"))


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    return Copies(tmp_path)


@pytest.fixture(scope="module")
def pair() -> Iterator[Guest]:
    with Guest(name="pair", disks=(DiskSpec(), DiskSpec())) as guest:
        yield guest


def take(pair: Guest, store: TestStore, commands: dict[str, Any], /, **given: Any) -> Any:
    return store.take(pair, "one", disks=ALL_COMMAND, disk_commands=commands, **given)


def test_what_commands_are_told_is_documented(
        pair: Guest, store: TestStore, copies: Copies) -> None:
    told = copies.folder / "told"
    create = f'[ "${{LIVESNAP_KEY##*-}}" = 1 ] || env > {told}; ' + copies.commands()["create"]
    result = take(pair, store, copies.commands(create=create))
    found = dict(line.split("=", 1) for line in told.read_text().splitlines())
    disk = result["snapshot"]["disks"][0]
    assert found.items() >= {
        "LIVESNAP_ACTION": "create", "LIVESNAP_GUEST": "pair", "LIVESNAP_SNAPSHOT": "one",
        "LIVESNAP_ID": result["snapshot"]["id"], "LIVESNAP_DISK": disk["match"],
        "LIVESNAP_SOURCE": str(pair.disk_paths[0]), "LIVESNAP_FORMAT": "raw",
        "LIVESNAP_BYTES": str(64 << 20), "LIVESNAP_KEY": copies.left[0]}.items()
    documented = set(re.findall(r"`(LIVESNAP_[A-Z]+)`", DOCS))
    assert {name for name in found if name.startswith("LIVESNAP_")} == documented - {
        "LIVESNAP_TARGET"}
    # The commands are kept with the snapshot, and are not in what modules return.
    assert "commands" not in disk
    kept = manifest.read(folder_of(result))["disks"][0]["commands"]
    assert kept["restore"] == copies.commands()["restore"]
    (listed,) = list_snapshots(str(store.path))
    assert "commands" not in listed["disks"][0] and listed["complete"]


def test_check_mode_runs_none(pair: Guest, store: TestStore, copies: Copies) -> None:
    spec = store.spec(pair, "one", disks=ALL_COMMAND, disk_commands=copies.commands())
    plan = plan_snapshot(spec)
    assert [disk["stored_bytes"] for disk in plan["snapshot"]["disks"]] == [0, 0]
    assert copies.said == [] and list(store.path.iterdir()) == []


def test_without_commands_it_is_refused(pair: Guest, store: TestStore) -> None:
    with pytest.raises(LivesnapError, match="by scheme 'command': no commands are given"):
        store.take(pair, "one", disks=ALL_COMMAND)


@pytest.mark.parametrize(("changed", "message"), [
    ({"create": " "}, "disk_commands has no 'create'"),
    ({"limit": 9}, "limit '9' of disk_commands is not between 1 and deadline '9'"),
])
def test_commands_that_cannot_be_are_refused(
        changed: dict[str, Any], message: str, pair: Guest, store: TestStore, copies: Copies
) -> None:
    with pytest.raises(LivesnapError, match=message):
        take(pair, store, copies.commands(**changed))


def test_one_that_fails_undoes_all(pair: Guest, store: TestStore, copies: Copies) -> None:
    create = copies.commands()["create"] + '; [ "${LIVESNAP_KEY##*-}" = 0 ] || { echo no room >&2;'
    with pytest.raises(LivesnapError, match=r"failed at disks: command 'create' of .*code 3: no r"):
        take(pair, store, copies.commands(create=create + " exit 3; }"))
    assert copies.left == []
    assert [line.split()[0] for line in copies.said] == ["create"] * 2 + ["remove"] * 2
    assert list(store.path.iterdir()) == []
    well(pair)


def test_one_that_hangs_is_killed_with_its_children(
        pair: Guest, store: TestStore, copies: Copies) -> None:
    pid = copies.folder / "pid"
    create = f"sleep 61 & echo $! > {pid}; wait"
    begun = time.monotonic()
    with pytest.raises(LivesnapError, match=r"command 'create' of .* did not end within 1 s"):
        take(pair, store, copies.commands(create=create, limit=1), deadline=6)
    assert time.monotonic() - begun < 20
    wait(lambda: not living(int(pid.read_text())), 20)
    well(pair)


def test_before_the_pause_nothing_is_removed(
        pair: Guest, store: TestStore, copies: Copies) -> None:
    with fault("bracket", "RAISE"), pytest.raises(LivesnapError, match="failed at bracket"):
        take(pair, store, copies.commands())
    assert copies.said == [] and list(store.path.iterdir()) == []


@pytest.mark.parametrize("step", ["arm", "sweep"])
def test_the_owner_is_killed(step: str, pair: Guest, store: TestStore, copies: Copies) -> None:
    with fault(step, "KILL"), pytest.raises(LivesnapError):
        take(pair, store, copies.commands())
    assert len(copies.left) == 2
    # It dies a moment after its socket was closed.
    wait(lambda: _recover.plan_recovery(str(store.path), "pair"), 20)
    _recover.recover(str(store.path), "pair", helper())
    assert copies.left == [] and list(store.path.iterdir()) == []
    well(pair)


def test_a_copy_that_cannot_be_removed_is_tried_again(
        pair: Guest, store: TestStore, copies: Copies) -> None:
    stuck = copies.folder / "stuck"
    stuck.touch()
    remove = f"[ ! -e {stuck} ] || {{ echo busy >&2; exit 1; }}; " + copies.commands()["remove"]
    take(pair, store, copies.commands(remove=remove))
    with pytest.raises(LivesnapError, match=r"'remove' of .*code 1: busy.* run livesnap_recover"):
        remove_snapshot(store.spec(pair, "one"))
    (left,) = list_snapshots(str(store.path))
    assert not left["complete"] and len(copies.left) == 2
    with pytest.raises(LivesnapError, match=r"recovery is not complete: .*code 1: busy"):
        _recover.recover(str(store.path), "pair", helper())
    stuck.unlink()
    _recover.recover(str(store.path), "pair", helper())
    assert copies.left == [] and list(store.path.iterdir()) == []


def test_what_is_not_the_whole_disk_is_refused(
        pair: Guest, store: TestStore, copies: Copies) -> None:
    result = take(pair, store, copies.commands(restore='head -c 1M /dev/zero > "$LIVESNAP_TARGET"'))
    request = CloneRequest(str(store.path), "pair", f"cut{os.getpid()}", "one", helper=helper())
    with pytest.raises(LivesnapError, match="is of 1048576 bytes, and the disk of 67108864"):
        create_clone(request)
    assert request.place.left() == []
    assert folder_of(result).exists()


def test_a_note_that_others_may_have_written_is_not_run(
        pair: Guest, store: TestStore, copies: Copies) -> None:
    result = take(pair, store, copies.commands())
    (folder_of(result) / "outside.json").chmod(0o666)
    with pytest.raises(LivesnapError, match="could have been written by somebody else"):
        remove_snapshot(store.spec(pair, "one"))
    assert len(copies.left) == 2
