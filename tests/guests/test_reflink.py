# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scheme reflink: image files cloned in the pause, on file systems that can, or refused."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.reflink import Reflink
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.scheme import Subject
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import Disk
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.process import QemuProcess
from ansible_collections.livesnap.qemu.plugins.module_utils._store.listing import list_snapshots
from lab import DiskSpec, FileSystem, Guest
from taking import TestStore, folder_of, images_of, verdict

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture(scope="module")
def xfs() -> Iterator[Path]:
    """A mounted XFS."""
    with FileSystem("xfs") as mounted:
        yield mounted.path


@pytest.fixture(scope="module")
def pair(xfs: Path) -> Iterator[Guest]:
    """A guest with a raw and a qcow2 disk there, unprivileged and in a sandbox."""
    disks = (DiskSpec(), DiskSpec(format="qcow2"))
    with Guest(name="pair", base=str(xfs), disks=disks, user="nobody", sandbox=True) as guest:
        yield guest


@pytest.fixture
def here(xfs: Path) -> Iterator[TestStore]:
    """An empty store on the same file system."""
    made = TestStore(str(xfs))
    yield made
    made.remove()


def shared(image: Path) -> int:
    """Bytes of a file's extents that another one has as well, as filefrag counts them."""
    lines = subprocess.run(["filefrag", "-b1", "-v", str(image)], capture_output=True, text=True,
                           check=True, timeout=60).stdout.splitlines()
    # "0: 0.. 4095: 135168.. 139263: 4096: shared,eof"
    return sum(int(line.split(":")[3]) for line in lines if "shared" in line)


def held(store: TestStore) -> dict[str, tuple[int, int]]:
    """Name -> (own_bytes, shared_bytes) of each snapshot, as livesnap_info tells them."""
    return {each["name"]: (each["own_bytes"], each["shared_bytes"])
            for each in list_snapshots(str(store.path))}


def test_one_instant(pair: Guest, here: TestStore, rounds: Callable[[int, int], int]) -> None:
    pages, boot = pair.witness()["pages"], pair.counts()["boot"]
    for number in range(rounds(2, 20)):
        result = here.take(pair, f"s{number}", disk_scheme="reflink",
                           freeze=("never", "required")[number % 2])
        disks = result["snapshot"]["disks"]
        assert [(disk["scheme"], disk["format"]) for disk in disks] == [
            ("reflink", "raw"), ("reflink", "qcow2")]
        assert verdict(pair, result, pages) == ""
        for image, disk, original in zip(images_of(result), disks, pair.disk_paths):
            about, theirs = image.stat(), original.stat()
            assert shared(image) and about.st_ino != theirs.st_ino
            assert (about.st_mode & 0o777, about.st_uid) == (0o400, theirs.st_uid)
            assert (disk["file_bytes"], disk["bytes"]) == (about.st_size, 64 << 20)
    with here.clone(pair, "s1") as clone:
        assert clone.counts()["boot"] == boot
        assert clone.devices()["disk1"] == "ok"
    with here.restored_by_hand(pair, "s0") as restored:
        assert restored.counts()["boot"] == boot
    pair.counts()


def test_copied_beside_a_clone(pair: Guest, here: TestStore) -> None:
    pages = pair.witness()["pages"]
    result = here.take(pair, "both", disks=[{"match": "disk1", "scheme": "reflink"},
                                            {"match": "*", "scheme": "backup"}])
    assert [disk["scheme"] for disk in result["snapshot"]["disks"]] == ["backup", "reflink"]
    assert [disk["format"] for disk in result["snapshot"]["disks"]] == ["qcow2", "qcow2"]
    assert verdict(pair, result, pages) == ""
    with pair.look() as qmp:
        assert qmp.execute("query-block-jobs") == []
        nodes = qmp.execute("query-named-block-nodes", {"flat": True})
        assert not [node for node in nodes if node["node-name"].startswith("livesnap-")]


def test_goes_back_in_place(make_guest: Callable[..., Guest], xfs: Path, here: TestStore) -> None:
    guest = make_guest(name="back", base=str(xfs), disks=(DiskSpec(), DiskSpec(format="qcow2")))
    first, pages = guest.counts(), guest.witness()["pages"]
    result = here.take(guest, "one", disk_scheme="reflink")
    then = guest.counts()["counter"]
    assert then > first["counter"]
    with here.gone_back(guest, "one") as back:
        assert back.counts()["boot"] == first["boot"]
        assert verdict(guest, result, pages) == ""


def test_what_is_shared_is_told(pair: Guest, here: TestStore) -> None:
    def write(*more: str) -> None:
        with pair.agent() as agent:
            agent.run("/bin/dd", "if=/dev/urandom", "of=/mnt/disk0/more", "bs=1M", "count=8", *more)
            agent.run("/bin/sync")
        os.sync()

    write()
    result = here.take(pair, "one", disk_scheme="reflink", memory=False)
    own, theirs = held(here)["one"]
    assert theirs == sum(map(shared, images_of(result))) > 8 << 20
    write("conv=notrunc")
    # What the guest wrote over is the snapshot's own now.
    mine, left = held(here)["one"]
    assert mine >= own + (8 << 20) and mine + left == own + theirs
    here.take(pair, "two", disk_scheme="reflink", memory=False)
    freed = here.prune(guest="pair", keep_last=1)["freed_bytes"]
    assert mine <= freed < mine + left
    assert held(here).keys() == {"two"}


def test_a_failure_leaves_nothing(pair: Guest, here: TestStore) -> None:
    with pytest.raises(LivesnapError, match="guest 'pair' failed at"):
        here.take(pair, "late", disk_scheme="reflink", staging="1M", bandwidth="4k", timeout=1)
    assert list(here.path.iterdir()) == []
    pair.counts()


def test_on_btrfs_across_subvolumes(make_guest: Callable[..., Guest]) -> None:
    with FileSystem("btrfs") as mounted:
        volume = mounted.path / "guests"
        subprocess.run(["btrfs", "-q", "subvolume", "create", str(volume)], check=True, timeout=60)
        guest = make_guest(name="tree", base=str(volume))
        store = TestStore(str(mounted.path))
        try:
            result = store.take(guest, "one", disk_scheme="reflink")
            assert verdict(guest, result, guest.witness()["pages"]) == ""
            assert shared(folder_of(result) / result["snapshot"]["disks"][0]["file"])
        finally:
            guest.stop()
            store.remove()


def test_refused_where_the_store_is_elsewhere(pair: Guest, store: TestStore) -> None:
    with pytest.raises(LivesnapError, match=f"store '{store.path}' is on another file system than"):
        store.take(pair, "one", disk_scheme="reflink")
    assert list(store.path.iterdir()) == []


# -- what is refused, of images that this process has open


def image(path: Path, *more: str, kind: str = "qcow2") -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, *more, str(path), "1M"], check=True,
                   timeout=60)
    return path


def refusal(path: Path, store: Path, kind: str = "qcow2", **changed: Any) -> str:
    """Why the image cannot be cloned; ''."""
    values: dict[str, Any] = {
        "device": "", "node": "n", "qdev": "d", "serial": "", "file": str(path), "format": kind,
        "virtual_bytes": 1 << 20, "read_only": False, "removable": False, "inserted": True}
    disk = Disk(**{**values, **changed})
    no_qmp: Any = None
    subject = Subject("web1", str(store), QemuProcess.of(os.getpid()))
    opened = os.open(path, os.O_RDONLY)
    try:
        Reflink.check(subject, no_qmp, [disk])
    except RefusedError as err:
        assert err.msg.startswith("disk 'd' cannot be captured by scheme 'reflink': ")
        assert err.hint.startswith("choose scheme 'backup' for it")
        return err.msg.partition("reflink': ")[2]
    finally:
        os.close(opened)
    return ""


@pytest.fixture
def folder(xfs: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=xfs) as made:
        yield Path(made)


def test_what_is_a_whole_image_is_taken(folder: Path) -> None:
    assert refusal(image(folder / "a"), folder) == ""
    assert refusal(image(folder / "b", kind="raw"), folder, "raw") == ""


def test_what_is_not_a_whole_image_is_refused(folder: Path) -> None:
    base = image(folder / "base")
    over = image(folder / "over", "-F", "qcow2", "-b", str(base))
    assert refusal(over, folder) == f"'{over}' has a backing file, '{base}'"
    data = image(folder / "outside", "-o", f"data_file={folder}/data")
    assert refusal(data, folder) == f"'{data}' has a data file of its own"
    raw = image(folder / "raw", kind="raw")
    assert refusal(raw, folder, "raw", virtual_bytes=512 << 10) == f"it is not all of '{raw}'"
    assert "cannot be read" in refusal(raw, folder)
    assert refusal(raw, folder, "luks") == "its format is 'luks', neither raw nor qcow2"
    assert refusal(raw, folder, "raw", file="nbd://h/x") == "'nbd://h/x' is not a file"


def test_a_file_that_took_the_images_name_is_refused(folder: Path) -> None:
    raw, other = image(folder / "raw", kind="raw"), image(folder / "other", kind="raw")
    assert "not the file that the guest's QEMU has open" in refusal(
        raw, folder, "raw", file=str(other))


def test_a_file_system_that_cannot_is_named(folder: Path) -> None:
    with FileSystem("ext4", 64) as mounted:
        plain = image(mounted.path / "raw", kind="raw")
        said = refusal(plain, folder, "raw")
        assert said == f"'{plain}' is on ext2/ext3, which cannot clone files"


def test_an_xfs_made_without_is_found_before_the_pause(
        make_guest: Callable[..., Guest]) -> None:
    with FileSystem("xfs", 4096, "-m", "reflink=0") as mounted:
        guest = make_guest(name="old", base=str(mounted.path))
        store = TestStore(str(mounted.path))
        try:
            with pytest.raises(LivesnapError, match=r"failed at targets: .* cannot clone"):
                store.take(guest, "one", disk_scheme="reflink")
            assert list(store.path.iterdir()) == []
            guest.counts()
        finally:
            guest.stop()
            store.remove()
