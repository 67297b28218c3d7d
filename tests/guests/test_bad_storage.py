# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Storage that fails below a disk of the guest: nothing is lost, the guest runs on, and the error
says what failed.

The images are files whose reads and writes QEMU's storage daemon answers, by FUSE, with errors in
places that nobody but the test uses.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import remove_snapshot
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._store import listing
from bracket_kit import clean, wait, well
from lab import Guest
from taking import TestStore

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="FUSE and root are needed")

SIZE = 16 << 20
SECTOR = 512
#: Where each image fails, once or always.
FULL_ONCE, UNREADABLE = 4 << 20, 8 << 20


@contextlib.contextmanager
def failing(path: Path, errors: list[dict[str, Any]]) -> Iterator[Path]:
    """The image behind a path, which fails where `errors` say (see QEMU's blkdebug)."""
    behind = path.with_name(f"behind-{path.name}")
    path.rename(behind)
    path.write_bytes(b"")
    rules = [{"event": "none", **error} for error in errors]
    daemon = subprocess.Popen([
        "qemu-storage-daemon",
        "--blockdev", f"driver=file,node-name=behind,filename={behind}",
        "--blockdev", json.dumps({"driver": "blkdebug", "node-name": "bad", "image": "behind",
                                  "inject-error": rules}),
        "--export", f"type=fuse,id=export,node-name=bad,mountpoint={path},writable=on,growable=on"])
    try:
        wait(lambda: path.stat().st_dev != behind.stat().st_dev, 20)
        yield behind
    finally:
        daemon.terminate()
        daemon.wait(timeout=20)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Node name -> the image behind it. raw: a write and a read fail. qcow2: it cannot grow."""
    folder = tmp_path_factory.mktemp("bad")
    raw, inside = folder / "raw.raw", folder / "inside.qcow2"
    raw.write_bytes(bytes(SIZE))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(inside), str(SIZE)],
                   check=True, timeout=60)
    end = inside.stat().st_size
    with failing(raw, [
        {"iotype": "write", "errno": 28, "once": True, "sector": FULL_ONCE // SECTOR},
        {"iotype": "read", "errno": 5, "sector": UNREADABLE // SECTOR},
    ]) as behind, failing(inside, [
        {"iotype": "write", "errno": 28, "sector": -(-end // (64 << 10)) * (64 << 10) // SECTOR},
    ]) as grows:
        yield {"raw": behind, "qcow2": grows}


@pytest.fixture(scope="module")
def weak(images: dict[str, Path]) -> Iterator[Guest]:
    """A guest with these two disks beside its own."""
    args: list[str] = []
    for kind, behind in images.items():
        path = behind.with_name(behind.name.removeprefix("behind-"))
        args += ["-blockdev", f"driver={kind},node-name={kind},file.driver=file,"
                              f"file.filename={path}",
                 "-device", f"virtio-blk-pci,drive={kind},serial={kind}"]
    with Guest(name="weak", args=tuple(args)) as guest:
        yield guest


def only(node: str, scheme: str) -> dict[str, Any]:
    """Options of a snapshot of one of these disks alone."""
    chosen = [{"match": node, "scheme": scheme}, {"match": "*", "scheme": "none"}]
    return {"memory": False, "disks": chosen}


def fails(store: TestStore, guest: Guest, pattern: str, **options: Any) -> None:
    with pytest.raises(LivesnapError, match=pattern):
        store.take(guest, "one", **options)
    assert list(store.path.iterdir()) == []
    well(guest)
    clean(guest)


def test_a_read_fails_in_the_copy(weak: Guest, store: TestStore) -> None:
    fails(store, weak, "Input/output error", **only("raw", "backup"))


def test_a_write_fails_in_the_transaction(weak: Guest, store: TestStore) -> None:
    fails(store, weak, "No space left on device", **only("qcow2", "internal"))


def test_a_write_fails_in_the_merge(
        weak: Guest, store: TestStore, images: dict[str, Path]) -> None:
    def run(line: str) -> str:
        with weak.agent() as agent:
            return str(agent.run("/bin/sh", "-c", line))

    store.take(weak, "one", **only("raw", "overlay"))
    device = run("cd /sys/block && grep -l '^raw$' */serial").partition("/")[0]
    block = f"bs=512 count=8 of=/dev/{device} seek={FULL_ONCE // SECTOR} conv=fsync"
    run(f"tr '\\0' 'x' </dev/zero | dd iflag=fullblock {block}")
    with pytest.raises(LivesnapError, match="No space left on device"):
        remove_snapshot(store.spec(weak, "one"))
    well(weak)
    # There is one reader of what was written, and it reads it from where it is.
    read = f"dd if=/dev/{device} bs=512 count=8 skip={FULL_ONCE // SECTOR} iflag=direct | md5sum"
    before = run(read)
    (left,) = listing.list_snapshots(str(store.path), "weak")
    assert left["problem"]
    remove_snapshot(store.spec(weak, "one"))
    assert run(read) == before
    data = images["raw"].read_bytes()
    assert data[FULL_ONCE:FULL_ONCE + 8 * SECTOR] == b"x" * 8 * SECTOR
    assert list(store.path.iterdir()) == []
    well(weak)
    clean(weak)
