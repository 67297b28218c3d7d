# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of a restore in place that need no guest: command lines, XML, images, names."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import Disk
from ansible_collections.livesnap.qemu.plugins.module_utils._restore import (
    command,
    disks,
    images,
    xml,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.places import Place
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.plan import kept_name
from ansible_collections.livesnap.qemu.plugins.module_utils._store import names

QEMU_IMG = shutil.which("qemu-img") or ""
needs_qemu_img = pytest.mark.skipif(not QEMU_IMG, reason="qemu-img is not installed")


def test_a_command_line_is_started_again_as_it_was() -> None:
    first = ["qemu", "-m", "1G", "-S", "-daemonize", "-device", "virtio-rng-pci", "-loadvm", "x"]
    again = command.again(first, incoming=True)
    rest = ["qemu", "-m", "1G", "-device", "virtio-rng-pci"]
    assert again == [*rest, "-S", "-incoming", "fd:@incoming@"]
    assert command.again(again, incoming=True) == again
    assert command.again(again, incoming=False) == rest
    assert command.incoming(again) and not command.incoming(first)


def test_a_machine_that_goes_back_learns_of_it() -> None:
    argv = ["qemu", "-device", "vmgenid,guid=324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87,id=g"]
    assert command.again(argv, False) == ["qemu", "-device", "vmgenid,guid=auto,id=g"]


@pytest.mark.parametrize(
    "words",
    [
        "-netdev tap,id=n,fd=17,vhost=on",
        "-netdev tap,id=n,ifname=t0,vhostfds=3:4",
        '-netdev {"type":"tap","id":"n","fd":"17"}',
        "-chardev socket,id=c,fd=4",
        "-add-fd fd=3,set=2",
        "-drive file=/dev/fdset/2,format=raw",
        "-blockdev driver=qcow2,node-name=a,file=b,backing=base",
        '-blockdev {"driver":"qcow2","node-name":"a","file":"b","backing":{"driver":"raw"}}',
    ],
)
def test_what_cannot_be_started_again_is_named(words: str) -> None:
    option, _sep, value = words.partition(" ")
    found = command.problems(["qemu", "-m", "1G", option, value])
    assert len(found) == 1 and words in found[0]


@pytest.mark.parametrize(
    "words",
    [
        "-netdev tap,id=n,ifname=t0",
        "-append fd=3",
        "-incoming fd:7",
        "-blockdev driver=raw,node-name=a,file.driver=file,file.filename=/x",
    ],
)
def test_what_can_be_started_again(words: str) -> None:
    option, _sep, value = words.partition(" ")
    assert command.problems(["qemu", option, value]) == []


@pytest.mark.parametrize(
    ("words", "drops"),
    [("-runas nobody", True), ("-run-with user=nobody", True), ("-run-with chroot=/x", False)],
)
def test_whose_start_it_was(words: str, drops: bool) -> None:
    assert command.drops_privileges(["qemu", *words.split()]) is drops


XML = """<domain><devices>
  <disk type='file'><source file='/vm/a'/><backingStore/><target dev='vda'/></disk>
  <disk type='file'><source file='/vm/b'/><target dev='vdb'/>
    <backingStore type='file'><format type='qcow2'/><source file='/vm/base'/></backingStore></disk>
  <disk type='block'><source dev='/dev/x'/><target dev='vdc'/></disk>
</devices></domain>"""


def test_xml_less_its_chains() -> None:
    assert xml.disk_files(XML) == {"vda": "/vm/a", "vdb": "/vm/b"}
    assert xml.chained(XML) == ["vdb"]
    less = xml.without_chains(XML)
    assert "backingStore" not in less and xml.disk_files(less) == xml.disk_files(XML)


def test_the_name_of_the_present() -> None:
    assert kept_name("x", 1763942400.0) == "before-x-20251124T000000Z"
    assert not names.problem(kept_name("a" * 128, 0.0))


def image(path: Path, kind: str = "qcow2", size: str = "1M", fill: str = "0x11") -> Path:
    subprocess.run([QEMU_IMG, "create", "-q", "-f", kind, str(path), size], check=True)
    subprocess.run(
        ["qemu-io", "-f", kind, "-c", f"write -P {fill} 0 64k", str(path)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return path


def exchange(tmp_path: Path, kind: str = "raw") -> images.Exchange:
    """Of an image with 0x22 in it, for one of the snapshot with 0x11."""
    source = image(tmp_path / "source")
    path = image(tmp_path / "disk", kind, fill="0x22")
    os.chmod(path, 0o640)
    os.chown(path, 1234 if os.geteuid() == 0 else -1, -1)
    where = [Place(str(path), kind)]
    given = [disk(source, path, kind)]
    found, lost = disks.exchanges_of(tmp_path, given, where, "m", QEMU_IMG, True)
    assert lost == []
    return found[0]


def no_fetch(path: str, limit: float) -> None:
    raise AssertionError("the image is in the store")


def disk(source: Path, path: Path, kind: str) -> dict[str, object]:
    return {
        "match": "vda",
        "file": source.name,
        "scheme": "backup",
        "format": "qcow2",
        "bytes": 1 << 20,
        "stored_bytes": 200 << 10,
        "source": {"file": str(path), "format": kind},
    }


def holds(path: Path, fill: str) -> bool:
    done = subprocess.run(
        ["qemu-io", "-c", f"read -P {fill} 0 64k", str(path)], capture_output=True, check=False
    )
    return b"failed" not in done.stdout and done.returncode == 0


def test_a_disk_that_is_not_in_the_store_is_fetched(tmp_path: Path) -> None:
    one = images.Exchange(
        label="vda", source="", path=str(tmp_path / "a"), format="raw", options="",
        bytes=10 << 20, fresh=str(tmp_path / "f"), aside=str(tmp_path / "o"))

    def fetch(path: str, limit: float) -> None:
        assert limit == 61
        Path(path).write_text("all of it")

    images.make(one, "/nowhere", fetch)
    assert Path(one.fresh).read_text() == "all of it"
    assert os.stat(one.fresh).st_mode & 0o777 == 0o600


@needs_qemu_img
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_an_image_is_exchanged_and_put_back(tmp_path: Path, kind: str) -> None:
    one = exchange(tmp_path, kind)
    path, was = Path(one.path), os.stat(one.path)
    images.make(one, QEMU_IMG, no_fetch)
    assert os.stat(one.fresh).st_mode & 0o777 == 0o600 and holds(path, "0x22")
    images.put(one)
    now = os.stat(path)
    assert holds(path, "0x11") and images.left([one]) == [one.aside]
    assert (now.st_uid, now.st_gid, now.st_mode) == (was.st_uid, was.st_gid, was.st_mode)
    assert images.exchange_of(one.noted()) == one
    # As journals said it when all images of snapshots were qcow2.
    older = {key: value for key, value in one.noted().items() if key != "source_format"}
    assert images.exchange_of(older) == one
    assert images.put_back(one) and holds(path, "0x22")
    assert os.stat(path).st_ino == was.st_ino
    assert sorted(each.name for each in tmp_path.iterdir()) == ["disk", "source"]


@needs_qemu_img
def test_undone_and_finished_wherever_it_stopped(tmp_path: Path) -> None:
    one = exchange(tmp_path)
    # Nothing, the new image alone, and both names of the old one.
    assert not images.put_back(one)
    Path(one.fresh).write_bytes(b"half")
    assert not images.put_back(one) and holds(Path(one.path), "0x22")
    os.link(one.path, one.aside)
    assert not images.put_back(one) and not images.left([one])
    images.make(one, QEMU_IMG, no_fetch)
    images.put(one)
    images.finish(one)
    images.finish(one)
    assert holds(Path(one.path), "0x11")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["disk", "source"]


@needs_qemu_img
def test_a_copy_that_fails_says_so(tmp_path: Path) -> None:
    one = exchange(tmp_path)
    Path(one.source).write_bytes(b"no image")
    with pytest.raises(LivesnapError, match=r"disk 'vda' cannot be copied to .*img convert"):
        images.make(one, QEMU_IMG, no_fetch)
    images.put_back(one)
    assert holds(Path(one.path), "0x22")


@needs_qemu_img
def test_images_that_cannot_go_back(tmp_path: Path) -> None:
    source = image(tmp_path / "source")

    def refused(path: Path, kind: str) -> str:
        with pytest.raises(RefusedError) as caught:
            where, given = [Place(str(path), kind)], [disk(source, path, kind)]
            disks.exchanges_of(tmp_path, given, where, "m", QEMU_IMG, True)
        assert "disk 'vda'" in caught.value.msg
        return caught.value.reason

    assert refused(tmp_path / "gone", "raw") == "disk_missing"
    assert refused(Path("/dev/null"), "raw") == "disk_not_file"
    assert refused(source, "vmdk") == "disk_format"
    assert refused(image(tmp_path / "plain", "raw"), "qcow2") == "disk_image"
    options = f"data_file={tmp_path}/data"
    subprocess.run(
        [QEMU_IMG, "create", "-q", "-f", "qcow2", "-o", options, str(tmp_path / "apart"), "1M"],
        check=True,
    )
    assert refused(tmp_path / "apart", "qcow2") == "disk_image"


@needs_qemu_img
def test_a_layer_whose_lower_ones_were_merged(tmp_path: Path) -> None:
    covered, path = image(tmp_path / "covered"), image(tmp_path / "disk")
    entry = disk(covered, path, "qcow2")
    gone = {"below": [str(tmp_path / "gone")]}
    layers = {"scheme": "overlay", "covered": str(covered), "source": {**entry["source"], **gone}}
    where = [Place(str(path), "qcow2")]
    found, _lost = disks.exchanges_of(
        tmp_path, [{**entry, **layers}], where, "m", QEMU_IMG, True
    )
    assert found[0].source == str(covered)


@needs_qemu_img
def test_what_would_be_lost(tmp_path: Path) -> None:
    source, path = image(tmp_path / "source"), image(tmp_path / "disk")
    subprocess.run([QEMU_IMG, "snapshot", "-c", "theirs", str(path)], check=True)
    _found, lost = disks.exchanges_of(
        tmp_path, [disk(source, path, "qcow2")], [Place(str(path), "qcow2")], "m", QEMU_IMG, True
    )
    assert lost == [f"snapshot 'theirs' inside '{path}' would be gone"]
    with pytest.raises(RefusedError, match=r"'theirs'.*; set force: true"):
        disks.refuse_lost(lost, force=False)
    assert disks.refuse_lost(lost, force=True) == lost


def drive(file: str, kind: str, target: str = "", read_only: bool = False) -> Disk:
    return Disk("", "node", "q", "", file, kind, 1 << 20, read_only, False, True, target)


def test_places() -> None:
    snapshot, where = [disk(Path("/store/s"), Path("/vm/a"), "raw")], [Place("/vm/a", "raw")]
    disks.check_places(snapshot, where, [drive("/vm/a", "raw")])
    # Newer libvirt has no node of its own for raw.
    disks.check_places(snapshot, where, [drive("/vm/a", "file")])
    for now, words in (
        (drive("/vm/a", "qcow2"), "'/vm/a' as raw, and is opened as qcow2"),
        (drive("/vm/b", "raw", "vda"), "was '/vm/a' at the snapshot, and is '/vm/b' now"),
        (drive("/vm/b", "raw"), "is no disk of the guest now"),
    ):
        with pytest.raises(RefusedError, match=words):
            disks.check_places(snapshot, where, [now])
    cd = drive("/cd", "raw", read_only=True)
    assert disks.not_in(where, [drive("/vm/a", "raw"), cd]) == []
    assert len(disks.not_in(where, [drive("/vm/b", "raw")])) == 1


def test_room(tmp_path: Path) -> None:
    one = images.Exchange("vda", "/s", str(tmp_path / "a"), "raw", "", 1 << 60, "/f", "/o")
    disks.check_space(tmp_path, 0, [])
    with pytest.raises(RefusedError, match="is too full"):
        disks.check_space(tmp_path, 0, [one])
