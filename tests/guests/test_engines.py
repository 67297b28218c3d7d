# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes an engine stand aside is found before anything is touched, and named; `auto` takes the
next one, which captures one instant as well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import plan_snapshot
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from bracket_kit import clean, in_child, kill, read, run_dir, wait, well
from capture_by_hand import Capture
from lab import Guest
from taking import TestStore, folder_of, helper, verdict

MEMORY = 192
PAUSE: dict[str, Any] = {"allow_pause": True, "freeze": "never"}
#: What maps a file as another program would, one that shares the guest's memory.
SHARER = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    memory = mmap.mmap(file.fileno(), 0)
print("mapped", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def odd() -> Iterator[tuple[Guest, Path]]:
    """A guest with its RAM in a file on a disk and a balloon that gives memory back; that file."""
    with tempfile.TemporaryDirectory(prefix="livesnap-ram-", dir="/var/tmp") as folder:
        kind = subprocess.run(["stat", "-f", "-c", "%T", folder], check=True, text=True,
                              capture_output=True, timeout=10).stdout.strip()
        if kind in ("tmpfs", "ramfs", "hugetlbfs"):
            pytest.skip(f"/var/tmp is {kind}, and no file system on a disk")
        file = Path(folder) / "ram"
        os.chmod(folder, 0o777)  # QEMU makes the file, as libvirt's does in its sandbox
        with Guest(
            name="odd", user="nobody", sandbox=True, memory=MEMORY, buffer=64,
            machine_options="memory-backend=ram0",
            args=("-object", f"memory-backend-file,id=ram0,size={MEMORY}M,mem-path={file},share=on",
                  "-device", "virtio-balloon-pci,free-page-reporting=on")) as guest:
            yield guest, file


@pytest.fixture
def sharer(odd: tuple[Guest, Path]) -> Iterator[int]:
    """A process that maps the guest's RAM as well, and may write there."""
    with subprocess.Popen([sys.executable, "-c", SHARER, str(odd[1])], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mapped\n"
        yield process.pid
        process.kill()


def untouched(guest: Guest, store: TestStore) -> None:
    """Nothing is in QEMU, in the run folder or in the store, and the guest counts on."""
    clean(guest)
    assert list(store.path.iterdir()) == []
    guest.counts()


def refusal(guest: Guest, store: TestStore, **options: Any) -> RefusedError:
    """What a snapshot is refused with, in check mode as well, and nothing is touched."""
    with pytest.raises(RefusedError) as foreseen:
        plan_snapshot(store.spec(guest, "no", **options))
    with pytest.raises(LivesnapError) as caught:
        store.take(guest, "no", **options)
    untouched(guest, store)
    # What QEMU itself says of its own engine is not asked for in check mode.
    assert foreseen.value.msg.partition("; engine 'qemu'")[0] in caught.value.msg
    # An error comes back from the owner's process by its words.
    return RefusedError(caught.value.msg, caught.value.hint, foreseen.value.reason)


def test_every_reason_is_named_and_uffd_fails(
    odd: tuple[Guest, Path], sharer: int, store: TestStore
) -> None:
    guest, file = odd
    for engine in ("uffd", "auto"):
        found = refusal(guest, store, engine=engine)
        assert "free-page-reporting" in found.msg
        assert "it is a file on a disk" in found.msg and str(file) in found.msg
        assert f"process {sharer} (" in found.msg and "maps RAM block" in found.msg
        assert ("allow_pause: true" in found.hint) == (engine == "auto")
    assert "allow_pause: true" in str(refusal_of_the_option(guest, store))


def refusal_of_the_option(guest: Guest, store: TestStore) -> LivesnapError:
    with pytest.raises(LivesnapError) as caught:
        store.take(guest, "no", engine="pause")
    untouched(guest, store)
    return caught.value


def test_a_file_on_a_disk_takes_the_pause(
    odd: tuple[Guest, Path], sharer: int, store: TestStore
) -> None:
    """allow_pause: the same snapshot, of one instant; and all that is known of why."""
    guest, file = odd
    pages = guest.witness()["pages"]
    foreseen = plan_snapshot(store.spec(guest, "one", allow_pause=True))["snapshot"]
    result = store.take(guest, "one", allow_pause=True)
    well(guest)
    clean(guest)
    snapshot = result["snapshot"]
    manifest = json.loads((folder_of(result) / "manifest.json").read_text())
    assert foreseen["engine"] == snapshot["engine"] == manifest["engine"] == "pause"
    assert snapshot["consistency"]["level"] == "filesystem"
    said = snapshot["consistency"]["indications"]
    assert said == manifest["consistency"]["indications"]
    assert said[1] == foreseen["consistency"]["indications"][1]
    for engine, why in zip(("uffd", "qemu"), said[1:], strict=True):
        assert why.startswith(f"engine '{engine}': ") and "free-page-reporting" in why
        assert f"process {sharer} (" in why
        assert [why in warning for warning in result["warnings"]] == [True]
    assert str(file) in said[1]
    assert "Background-snapshot is not supported by host kernel" in said[2]
    memory, timings = snapshot["memory"], snapshot["timings"]
    assert memory["proof"] == {"scans": 0, "chunks": 0} and memory["faults"] == 0
    assert timings["protected_s"] is None and timings["pause_ms"] > 0
    assert verdict(guest, result, pages) == ""
    print(f"{memory['bytes'] >> 20} MiB, of them {memory['zero_bytes'] >> 20} zero:"
          f" paused for {timings['pause_ms']:.0f} ms")
    subprocess.run([helper(), "verify", str(folder_of(result))], check=True, capture_output=True,
                   timeout=60)
    before = guest.counts()
    with store.clone(guest, "one") as clone:
        assert clone.counts(limit=30.0)["boot"] == before["boot"]


def test_a_migration_blocker_is_every_engines(
    guest: Guest, store: TestStore, tmp_path: Path
) -> None:
    image = tmp_path / "blocker.vdi"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vdi", str(image), "1M"], check=True,
                   timeout=30)
    with guest.look() as qmp:
        qmp.execute("blockdev-add", {"driver": "vdi", "node-name": "blocker",
                                     "file": {"driver": "file", "filename": str(image)}})
    try:
        found = refusal(guest, store, **PAUSE)
    finally:
        with guest.look() as qmp:
            qmp.execute("blockdev-del", {"node-name": "blocker"})
    assert found.reason == "migration_blocked"
    for engine in ("uffd", "qemu", "pause"):
        assert f"engine '{engine}': QEMU cannot migrate it: The vdi format" in found.msg


#: What QEMU has here and no engine can capture.
ODD_DEVICES = (
    "-blockdev driver=null-co,node-name=n0,size=1048576,read-zeroes=on",
    "-blockdev driver=null-co,node-name=n1,size=1048576,read-zeroes=on",
    "-device nvme,id=fast,drive=n0,serial=n0",
    "-device qemu-xhci,id=xhci",
    "-device usb-uas,id=stick,bus=xhci.0",
    "-device scsi-hd,bus=stick.0,drive=n1",
    "-object memory-backend-ram,id=shared,size=1M,share=on",
    "-device ivshmem-plain,id=window,memdev=shared",
    "-m maxmem=1G",
    "-object memory-backend-ram,id=more,size=256M",
    "-device virtio-mem-pci,id=elastic,memdev=more",
)


def test_devices_that_no_engine_can_capture(
    make_guest: Callable[..., Guest], store: TestStore
) -> None:
    args = tuple(word for option in ODD_DEVICES for word in option.split(" "))
    guest = make_guest(name="devices", memory=MEMORY, args=args)
    found = refusal(guest, store, **PAUSE)
    for engine in ("uffd", "pause"):
        why = found.msg.partition(f"engine '{engine}': ")[2].partition("engine '")[0]
        for device, words in (
            ("fast' (nvme)", "has no device state that can be saved"),
            ("stick' (usb-uas)", "has no device state that can be saved"),
            ("window' (ivshmem-plain)", "shares memory with other processes"),
            ("elastic' (virtio-mem-pci)", "changes how much memory the guest has"),
        ):
            assert f"device '{device} {words}" in why


def test_a_guest_that_was_never_started(store: TestStore) -> None:
    guest = Guest(name="waits", memory=MEMORY, paused=True)
    try:
        guest.start(wait=False)
        with pytest.raises(LivesnapError, match="is 'prelaunch', neither running nor paused"):
            store.take(guest, "no")
        clean(guest)
        assert list(store.path.iterdir()) == []
    finally:
        guest.stop()


def test_another_userfaultfd(guest: Guest, store: TestStore, tmp_path: Path) -> None:
    """RAM that somebody else protects can be read all the same."""
    pages = guest.witness()["pages"]
    other = Capture(Path(helper()), guest, tmp_path / "other")
    try:
        other.attached()
        with guest.look() as qmp:
            qmp.execute("stop")
        other.protect()
        with guest.look() as qmp:
            qmp.execute("cont")
        guest.counts()
        found = refusal(guest, store, engine="uffd")
        assert found.reason == "userfaultfd-in-use" and "RAM block 'pc.ram'" in found.msg
        result = store.take(guest, "one", **PAUSE)
        assert result["snapshot"]["engine"] == "pause"
        for said in result["snapshot"]["consistency"]["indications"][1:]:
            assert "has a userfaultfd already" in said
        assert verdict(guest, result, pages) == ""
    finally:
        other.leave()
        other.wait()
    well(guest)
    store.forget()
    # Nothing is in the way any more.
    result = store.take(guest, "one", **PAUSE)
    assert result["snapshot"]["engine"] == "uffd" and result["warnings"] == []
    assert len(result["snapshot"]["consistency"]["indications"]) == 1


#: RAM that has to be stored while the guest stands still, at a pace that takes some seconds.
SLOW: dict[str, Any] = {"engine": "pause", "allow_pause": True, "compression": "none",
                        "staging": "32M", "bandwidth": 14 << 20}


def test_longer_than_the_deadline(guest: Guest, store: TestStore) -> None:
    """What the guest stands still for is not part of the deadline."""
    pages = guest.witness()["pages"]
    result = store.take(guest, "one", deadline=3, freeze_timeout=2, **SLOW)
    snapshot = result["snapshot"]
    assert snapshot["timings"]["pause_ms"] > 3000
    assert snapshot["consistency"]["level"] == "filesystem"
    assert verdict(guest, result, pages) == ""
    well(guest)


def in_the_copy(guest: Guest, store: TestStore, **options: Any) -> tuple[int, Path]:
    """(pid of a module whose guest stands still for the copy, its run folder)."""
    module = in_child(lambda: store.take(guest, "one", **{**SLOW, **options}))
    folder = wait(lambda: run_dir(guest), 20)
    wait(lambda: read(folder / "progress.json").get("phase") == "copy", 20)
    with guest.look() as qmp:
        assert qmp.execute("query-status")["status"] == "paused"
    return module, folder


def ended(guest: Guest, store: TestStore, module: int, limit: float) -> None:
    """It failed within the limit, and left nothing."""
    gone = _reaped(module)
    assert wait(gone, limit) != 0
    well(guest)
    clean(guest)
    assert [path.name for path in store.path.glob("*/*")] == []


def _reaped(pid: int) -> Callable[[], int]:
    """Asks for its exit status; 0 while it runs."""

    def ask() -> int:
        done, status = os.waitpid(pid, os.WNOHANG)
        return status if done else 0

    return ask


@pytest.mark.parametrize("who", ["keeper", "writer"])
def test_the_helper_dies_while_the_guest_stands_still(
    who: str, guest: Guest, store: TestStore
) -> None:
    module, folder = in_the_copy(guest, store)
    kill(read(folder / "helper.json")[who]["pid"])
    ended(guest, store, module, 5.0)


def test_not_longer_than_it_may(guest: Guest, store: TestStore) -> None:
    """timeout: the guest goes on, and there is no snapshot."""
    module, _folder = in_the_copy(guest, store, timeout=2, bandwidth=1 << 20)
    ended(guest, store, module, 8.0)
