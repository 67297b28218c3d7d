# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Links of a chain go: real images, made by qemu-io; a guest's are in tests/guests."""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _recover, _remove
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import merge
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import (
    chain,
    listing,
    manifest,
    rundir,
    status,
    sums,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store
from ansible_collections.livesnap.qemu.plugins.module_utils._verify import checksum
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.request import (
    Check,
    VerifyRequest,
)
from test_store import fields

pytestmark = pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-utils is not there")
MIB = 1 << 20
FILES = ("disks/0-d0.qcow2", "disks/1-d1.qcow2")


class Cut(BaseException):
    """The end of a process, as far as its own code is concerned."""


@pytest.fixture(autouse=True)
def own_run_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rundir, "root", lambda: tmp_path / "run")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, list[Path]]]:
    """Four snapshots, each on the one before; name -> its disks as raw files of their own."""
    folder = tmp_path_factory.mktemp("made")
    store = Store(str(folder / "store"))
    store.root.mkdir(mode=0o711)
    copies: dict[str, list[Path]] = {}
    base = None
    for name in ("s0", "s1", "s2", "s3"):
        base = take(store, name, base)
        copies[name] = [folder / f"{name}-{number}.raw" for number in range(len(FILES))]
        for file, raw in zip(FILES, copies[name]):
            run("qemu-img", "convert", "-O", "raw", store.snapshot("web1", name) / file, raw)
    return store, copies


@pytest.fixture
def store(tmp_path: Path, made: tuple[Store, dict[str, list[Path]]]) -> Store:
    """A copy of those, to be changed."""
    root = tmp_path / "store"
    shutil.copytree(made[0].root, root)
    return Store(str(root))


@pytest.fixture
def copies(made: tuple[Store, dict[str, list[Path]]]) -> dict[str, list[Path]]:
    return dict(made[1])


def run(*argv: object) -> str:
    return subprocess.run([str(word) for word in argv], check=True, capture_output=True, text=True,
                          timeout=60).stdout


def take(store: Store, name: str, base: dict[str, Any] | None) -> dict[str, Any]:
    """A snapshot of two disks of 8 MiB; on another one, with what was written since."""
    folder = store.begin("web1", name)
    order = random.Random(name)
    disks = []
    for number, file in enumerate(FILES):
        stands = [] if base is None else ["-F", "qcow2", "-b", f"../../{base['name']}/{file}"]
        run("qemu-img", "create", "-q", "-f", "qcow2", *stands, folder / file, 8 * MIB)
        commands = []
        for verb in ("write -P {}", "write -P {}", "write -z", "write -z -u"):
            offset = order.randrange(100) * (64 << 10)
            commands += ["-c", f"{verb.format(order.randrange(1, 256))} {offset} 192k"]
        run("qemu-io", "-f", "qcow2", *commands, folder / file)
        about = (folder / file).stat()
        disks.append({
            **fields()["disks"][0], "match": f"d{number}", "file": file, "bytes": 8 * MIB,
            "stored_bytes": about.st_blocks * 512, "file_bytes": about.st_size,
            "base": None if base is None else {
                "id": base["id"], "name": base["name"], "file": file},
            "full_because": None if base is not None else "it is the first"})
    with sums.of_disks(folder, disks) as digests:
        while not digests.finished():
            pass
        disks = sums.added(disks, digests)
    made = fields(name=name, id=str(uuid.uuid4()), disks=disks, memory=None, devices=None)
    store.publish(folder, made, status.default())
    return made


def check(store: Store, copies: dict[str, list[Path]]) -> None:
    """All that there should be is there, sound, and what it was; nothing else is there."""
    infos = listing.of_guest(store, "web1")
    assert {info["name"]: info["problem"] for info, _fields in infos} == dict.fromkeys(copies)
    for name, raws in copies.items():
        folder = store.snapshot("web1", name)
        chain.read(folder)
        for file, raw in zip(FILES, raws):
            assert "identical" in run("qemu-img", "compare", folder / file, raw), name
            run("qemu-img", "check", "-q", folder / file)
        for disk in manifest.read(folder)["disks"]:
            path, chunk = folder / disk["file"], disk["checksums"]["chunk_bytes"]
            with sums.Digests([sums.Subject(path, disk["file_bytes"], chunk, {})], 1) as digests:
                while not digests.finished():
                    pass
                (found,) = digests.found()
            assert [found[piece] for piece in sorted(found)] == disk["checksums"]["sha256"]


def test_each_order(
        made: tuple[Store, dict[str, list[Path]]], tmp_path: Path,
        rounds: Callable[[int, int], int]) -> None:
    """A chain is as long as there are snapshots, whichever went."""
    orders = list(itertools.permutations(made[1]))
    for number, order in enumerate(random.Random(3).sample(orders, rounds(3, 24))):
        store = Store(str(tmp_path / f"store{number}"))
        shutil.copytree(made[0].root, store.root)
        kept = dict(made[1])
        for name in order:
            later = [each for each in kept if each > name]
            said = _remove.remove_complete(store, "web1", name, True)
            assert ("merged its disks into those of" in said) == bool(later)
            del kept[name]
            check(store, kept)
            links = [chain.links(store.snapshot("web1", each), disk)
                     for each in kept for disk in manifest.read(
                         store.snapshot("web1", each))["disks"]]
            assert sorted(map(len, links)) == sorted(2 * list(range(1, len(kept) + 1)))
        assert not (store.root / "web1").exists()


def _cut_at(patch: pytest.MonkeyPatch, point: str) -> None:
    """Have the removal end at a point, as if its process had been killed there."""
    exchange, commit = merge._exchange, merge._commit

    def cut(*_given: object) -> None:
        raise Cut

    def commit_one(pair: Any) -> None:
        commit(pair)
        raise Cut

    def exchange_until(owner: object, name: str) -> Callable[..., None]:
        def until(*given: Any) -> None:
            patch.setattr(owner, name, cut)
            exchange(*given)
        return until

    if point == "between the commits":
        patch.setattr(merge, "_commit", commit_one)
    elif point == "before the exchange":
        patch.setattr(merge, "_exchange", cut)
    elif point == "between the renames":
        patch.setattr(merge, "_exchange", exchange_until(merge.files, "sync_folder"))
    elif point == "before the manifest":
        patch.setattr(merge, "_exchange", exchange_until(merge.files, "write_whole"))
    else:
        patch.setattr(Store, "retire", cut)


POINTS = ("between the commits", "before the exchange", "between the renames",
          "before the manifest", "before the name goes")


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", ["s0", "s2"])
def test_cut_short_it_is_ended_by_recovery(
        store: Store, copies: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch, point: str,
        name: str) -> None:
    with monkeypatch.context() as patch:
        _cut_at(patch, point)
        with pytest.raises(Cut):
            _remove.remove_complete(store, "web1", name, True)
    infos = {info["name"]: info for info, _fields in listing.of_guest(store, "web1")}
    assert "is being removed" in infos[name]["problem"]
    del copies[name]
    if point in POINTS[:2]:
        for each, raws in copies.items():
            for file, raw in zip(FILES, raws):
                there = store.snapshot("web1", each) / file
                assert "identical" in run("qemu-img", "compare", there, raw), each
        assert all(infos[each]["problem"] is None for each in copies)
    root = str(store.root)
    assert _recover.plan_recovery(root) == [
        f"would finish removing snapshot '{name}' of guest 'web1'"]
    with chain.locked(store.guest("web1"), 0.0):
        assert _recover.plan_recovery(root) == _recover.recover(root) == []
    (said,) = _recover.recover(root)
    assert said.startswith(f"finished removing snapshot '{name}' of guest 'web1'")
    check(store, copies)
    assert _recover.recover(root) == []


def test_damage_is_not_merged(
        store: Store, copies: dict[str, list[Path]]) -> None:
    path = store.snapshot("web1", "s0") / FILES[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    with pytest.raises(LivesnapError, match="is damaged, so it is not merged"):
        _remove.remove_complete(store, "web1", "s0", True)
    assert not chain.is_merging(store.snapshot("web1", "s0"))
    # From the upper end they go as ever.
    for name in reversed(copies):
        _remove.remove_complete(store, "web1", name, True)


def test_a_full_store(
        store: Store, copies: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge.space, "free_bytes", lambda _folder: 1 << 20)
    with pytest.raises(RefusedError, match="1 MiB are free"):
        _remove.remove_complete(store, "web1", "s0", True)
    check(store, copies)


def test_others_are_waited_for(
        store: Store, copies: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_remove, "_CHAIN_LIMIT", 0.2)
    monkeypatch.setattr(merge, "_LOCK_LIMIT", 0.2)
    with chain.locked(store.guest("web1"), 0.0, shared=True):
        with pytest.raises(RefusedError, match="is in use"):
            _remove.remove_complete(store, "web1", "s0", True)
    with chain.locked(store.snapshot("web1", "s1"), 0.0, shared=True):
        with pytest.raises(RefusedError, match="is in use"):
            _remove.remove_complete(store, "web1", "s0", True)
    making = store.begin("web1", "s4")
    chain.note_needs(making, ["s3"])
    with pytest.raises(RefusedError, match="'s4', which is in the making, stands on it"):
        _remove.remove_complete(store, "web1", "s3", True)
    check(store, copies)


def test_a_check_that_waited_reads_again(
        store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it found before a merge, which it waited for, is not true any more."""
    exchange, merging = merge._exchange, threading.Event()

    def slowly(*given: Any) -> None:
        merging.set()
        time.sleep(0.5)
        exchange(*given)

    monkeypatch.setattr(merge, "_exchange", slowly)
    work = threading.Thread(
        target=lambda: _remove.remove_complete(store, "web1", "s0", True))
    work.start()
    assert merging.wait(10)
    request = VerifyRequest(str(store.root), "web1", "s1", "checksum")
    about = Check(request, store.snapshot("web1", "s1"), {}, rundir.VerifyDir("web1", "s1"))
    about.run.make()
    with contextlib.ExitStack() as stack:
        about.hold(stack)
        assert [len(about.links(disk)) for disk in about.fields["disks"]] == [1, 1]
        assert checksum.check(about)["disk_bytes"] == sum(
            path.stat().st_size for path in (about.folder / "disks").iterdir())
        # And nobody changes what is being read.
        with pytest.raises(RefusedError, match="is in use"):
            with chain.locked(about.folder, 0.0):
                pass
    work.join()


def test_a_check_holds_all_that_it_reads(store: Store) -> None:
    request = VerifyRequest(str(store.root), "web1", "s2", "checksum")
    about = Check(request, store.snapshot("web1", "s2"), {}, rundir.VerifyDir("web1", "s2"))
    with contextlib.ExitStack() as stack:
        about.hold(stack)
        for name in ("s0", "s1", "s2"):
            with pytest.raises(RefusedError, match="is in use"):
                with chain.locked(store.snapshot("web1", name), 0.0):
                    pass
        with chain.locked(store.snapshot("web1", "s3"), 0.0):
            pass
    (store.snapshot("web1", "s0") / manifest.MERGING).write_text("{}")
    with contextlib.ExitStack() as stack:
        with pytest.raises(RefusedError, match=r"removing snapshot 's0'.* was cut short"):
            about.hold(stack)


def test_a_chain_that_is_broken(store: Store) -> None:
    shutil.rmtree(store.snapshot("web1", "s1"))
    take(store, "s1", None)
    infos = {info["name"]: info["problem"] for info, _fields in listing.of_guest(store, "web1")}
    assert infos["s0"] is infos["s1"] is None
    assert "stands on snapshot 's1' with id" in infos["s2"]
    assert "stands on snapshot 's2' with id" in infos["s3"]
    with pytest.raises(LivesnapError, match="of the snapshot with id"):
        chain.read(store.snapshot("web1", "s2"))
    with pytest.raises(LivesnapError, match="stands on another snapshot"):
        _remove.remove_complete(store, "web1", "s1", True)
