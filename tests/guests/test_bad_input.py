# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input on a real guest: each a clear error, found before anything is touched."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import (
    plan_snapshot,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._store.listing import list_snapshots
from bracket_kit import Place, clean, helper, in_child, read, run_dir, wait, well
from lab import Guest


@pytest.fixture
def place(tmp_path: Path, guest: Guest) -> Place:
    return Place(tmp_path / "store", guest)


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A file system of that size."""
    folder.mkdir(mode=0o711, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0711", "livesnap-test",
                    str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def refused(place: Place, pattern: str, name: str = "one", **given: Any) -> LivesnapError:
    """Both check mode and a run refuse with that message; nothing is there afterwards."""
    before = place.left()
    if given.get("freeze") != "required":
        with pytest.raises(LivesnapError, match=pattern):
            plan_snapshot(place.spec(name, **given))
    with pytest.raises(LivesnapError, match=pattern) as caught:
        place.take(name, **given)
    assert place.left() == before
    well(place.guest)
    clean(place.guest)
    return caught.value


def test_socket_missing(place: Place) -> None:
    refused(place, "QMP socket '/nowhere/qmp.sock' does not exist", qmp_socket="/nowhere/qmp.sock")


def test_socket_is_a_file(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(place, "is not a socket", qmp_socket=str(tmp_path / "file"))


def test_socket_refuses(place: Place, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "qmp.sock"))
    refused(place, "refuses connections", qmp_socket=str(tmp_path / "qmp.sock"))


def test_socket_of_something_else(place: Place, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "qmp.sock"))
        other.listen()
        refused(place, "which is not a QEMU", qmp_socket=str(tmp_path / "qmp.sock"))


def test_socket_of_the_agent(place: Place) -> None:
    refused(place, "QMP", qmp_socket=str(place.guest.agent_path), agent_socket=None)


def test_socket_held_by_another_client(place: Place) -> None:
    with place.guest.qmp():
        begun = time.monotonic()
        with pytest.raises(LivesnapError, match="held by another client"):
            place.take("one")
        assert time.monotonic() - begun < 20
    assert place.left() == []
    well(place.guest)
    clean(place.guest)


@pytest.mark.parametrize("name", [
    "", ".", "..", "a/b", "/etc", "-a", ".a", "a b", "a\nb", "a\x00", "ä", "a.partial",
    "a" * 129, "a\\b", "_a", "a:b", "%41",
])
@pytest.mark.parametrize("what", ["name", "guest"])
def test_bad_name(name: str, what: str, place: Place) -> None:
    given = {"guest": name} if what == "guest" else {}
    with pytest.raises(LivesnapError, match=f"^{what} '"):
        place.spec("one" if what == "guest" else name, **given)


def test_unknown_disk(place: Place) -> None:
    error = refused(place, "no disk of the guest matches 'nosuch'", disks=[{"match": "nosuch"}])
    assert "disk0" in error.hint


def test_nothing_to_capture(place: Place) -> None:
    refused(place, "nothing of guest", memory=False, disks=[{"match": "disk0", "scheme": "none"}])


def test_required_freeze_without_agent_socket(place: Place) -> None:
    refused(place, "cannot be frozen.*no agent_socket", freeze="required", agent_socket=None)


def test_store_missing(place: Place) -> None:
    refused(place, "store '/nowhere/store' cannot be used: No such file", store="/nowhere/store")


def test_store_is_a_file(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(place, "is not a folder", store=str(tmp_path / "file"))


def test_store_open_to_others(place: Place) -> None:
    place.root.chmod(0o777)
    refused(place, "may be written to by others")


def test_store_read_only(place: Place, tmp_path: Path) -> None:
    with mounted(tmp_path / "ro", "1m") as folder:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        refused(place, "is read-only", store=str(folder))


def test_store_too_full(place: Place, tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "64m") as folder:
        refused(place, "is too full: the snapshot may take .* free are", store=str(folder))
        assert list(folder.iterdir()) == []
    with mounted(tmp_path / "large", "4g") as folder:
        refused(
            place,
            r"free are .* GiB, and 3\.\d+ GiB are to stay free \(reserve '95%'\)",
            store=str(folder),
            reserve="95%",
        )
        assert list(folder.iterdir()) == []


def test_folder_of_another_guest(place: Place, make_guest: Callable[..., Guest]) -> None:
    place.take("one", memory=False)
    other = make_guest(memory=128)
    try:
        there = Place(place.root, other)
        error = refused(there, "holds snapshots of another guest", name="two", memory=False)
        assert place.guest.uuid in str(error)
        assert other.uuid in str(error)
    finally:
        other.stop()


def test_helper_missing(place: Place) -> None:
    refused(place, "livesnap-helper is not at '/nowhere'", _livesnap_helper="/nowhere")


def test_store_fills_up_during_the_sweep(place: Place, tmp_path: Path) -> None:
    """The guest goes on, there is no snapshot, and the next run is as good as the first."""
    guest = place.guest
    with mounted(tmp_path / "filled", "700m") as folder:
        there = Place(folder, guest)
        module = in_child(lambda: there.take("one", bandwidth=10 << 20, compression="none"))
        run = wait(lambda: run_dir(guest), 20)
        wait(lambda: read(run / "progress.json").get("phase") == "sweep", 20)
        with open(folder / "filler", "wb") as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(1 << 20))
        assert os.waitpid(module, 0)[1] != 0
        assert there.left() == []
        well(guest)
        clean(guest)
        (folder / "filler").unlink()
        there.take("one", memory=False)


def damaged(place: Place, damage: Callable[[bytes], bytes]) -> str:
    """What is said of snapshot 'one' with a changed manifest, by both who read it."""
    path = place.folder("one") / "manifest.json"
    sound = path.read_bytes()
    path.write_bytes(damage(sound))
    try:
        entry = list_snapshots(str(place.root), place.name)[0]
        assert entry["complete"] is False
        assert entry["problem"]
        with pytest.raises(LivesnapError, match="exists, but is not sound"):
            place.take("one", memory=False)
        assert path.exists()
        return str(entry["problem"])
    finally:
        path.write_bytes(sound)


def test_manifest_edited_by_hand(place: Place) -> None:
    place.take("one", memory=False)
    sound = (place.folder("one") / "manifest.json").read_bytes()
    assert "checksum" in damaged(place, lambda data: data.replace(b'"web1"', b'"web2"', 1))
    assert "checksum" in damaged(place, lambda data: data.replace(b"  ", b" ", 1))
    assert "cut or edited" in damaged(place, lambda data: data + b"\n")
    assert "cut or edited" in damaged(place, lambda data: b"")
    generator = random.Random(1)
    for position in generator.sample(range(len(sound)), 40):
        bit = 1 << generator.randrange(8)
        damaged(place, lambda data, at=position, bit=bit: (  # type: ignore[misc]
            data[:at] + bytes([data[at] ^ bit]) + data[at + 1:]))
        damaged(place, lambda data, at=position: data[:at])  # type: ignore[misc]
    assert list_snapshots(str(place.root), place.name)[0]["complete"] is True
    moved = place.folder("two")
    shutil.copytree(place.folder("one"), moved)
    found = {entry["name"]: entry for entry in list_snapshots(str(place.root), place.name)}
    assert "moved or copied" in found["two"]["problem"]
    shutil.rmtree(moved)
    disk = next((place.folder("one") / "disks").iterdir())
    size = disk.stat().st_size
    os.truncate(disk, size - 1)
    assert "the manifest says" in list_snapshots(str(place.root), place.name)[0]["problem"]
    disk.unlink()
    disk.symlink_to("/etc/passwd")
    assert "not a regular file" in list_snapshots(str(place.root), place.name)[0]["problem"]


def test_image_flipped_or_cut(place: Place, rounds: Callable[[int, int], int]) -> None:
    """Any flipped bit and any cut of a real image is found, and the exit code says torn data."""
    place.take("one", compression="zstd")
    image = place.folder("one") / "ram.lsnap"
    size = image.stat().st_size

    def verify() -> int:
        done = subprocess.run([helper(), "verify", str(image)], capture_output=True, check=False)
        return done.returncode

    assert verify() == 0
    generator = random.Random(2)
    count = rounds(12, 300)
    # Header, index and footer are small and matter most: some of the positions fall there.
    positions = [generator.randrange(size) for _unused in range(count)]
    positions += [generator.randrange(min(4096, size)) for _unused in range(count // 3)]
    positions += [size - 1 - generator.randrange(min(4096, size)) for _unused in range(count // 3)]
    with open(image, "r+b") as file:
        for position in positions:
            sound = os.pread(file.fileno(), 1, position)
            os.pwrite(file.fileno(), bytes([sound[0] ^ (1 << generator.randrange(8))]), position)
            assert verify() != 0, f"a flipped bit of byte {position} went unseen"
            os.pwrite(file.fileno(), sound, position)
    assert verify() == 0
    whole = image.read_bytes()
    for position in positions[: count // 2]:
        image.write_bytes(whole[:position])
        assert verify() != 0, f"an image cut at {position} passes for whole"
        assert "the manifest says" in list_snapshots(str(place.root), place.name)[0]["problem"]
