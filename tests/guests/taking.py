# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes snapshots of test guests by the collection's code, and judges them by the laboratory's.

What modules do with their arguments, without Ansible around it: the integration tests have that.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import shutil
import signal
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import layout
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import (
    SnapshotSpec,
    take_snapshot,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._clone import clone as cloning
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.plain import plain_restore
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._options import argument_spec
from ansible_collections.livesnap.qemu.plugins.module_utils._prune import PruneRequest, prune
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.plan import RestoreRequest
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.restore import restore
from bracket_kit import living
from lab import Domain, Guest, Reach, disk_state, judge, ram_state

T = TypeVar("T")


@functools.cache
def helper(faults: bool = False) -> str:
    """livesnap-helper, built if it is not up to date; with faults the build for tests."""
    layout.make_native("faults" if faults else "all")
    name = "livesnap-helper-faults" if faults else "livesnap-helper"
    return str(layout.NATIVE / "build" / name)


class TestStore:
    """A store of its own, where QEMU's user can reach disk images, removed at the end."""

    __test__ = False

    def __init__(self, base: str = "/tmp") -> None:
        self.path = Path(tempfile.mkdtemp(prefix="livesnap-store-", dir=base))
        self.path.chmod(0o711)

    def remove(self) -> None:
        """Everything in it, whatever its state."""
        shutil.rmtree(self.path, ignore_errors=True)

    def spec(self, guest: Guest | Domain, name: str, /, **options: Any) -> SnapshotSpec:
        """What module livesnap is asked for, to take one snapshot."""
        return SnapshotSpec.of({
            "guest": guest.options.name, "name": name, "store": str(self.path),
            "_livesnap_helper": helper(), **_reached(guest), **options})

    def take(self, guest: Guest | Domain, name: str, /, **options: Any) -> dict[str, Any]:
        """One snapshot, as module livesnap takes it: its whole result."""
        return take_snapshot(self.spec(guest, name, **options))

    def request(
            self, guest: Guest | Domain, snapshot: str, /, **options: Any) -> RestoreRequest:
        """What module livesnap_restore is asked for."""
        return RestoreRequest.of({
            "guest": guest.options.name, "snapshot": snapshot, "store": str(self.path),
            "keep_current": True, "force": False, "_livesnap_helper": helper(), **_reached(guest),
            **options})

    def restore(self, guest: Guest | Domain, snapshot: str, /, **options: Any) -> dict[str, Any]:
        """A guest goes back to a snapshot, as module livesnap_restore does it: its whole result."""
        return restore(self.request(guest, snapshot, **options))

    @contextlib.contextmanager
    def gone_back(self, guest: Guest, snapshot: str) -> Iterator[Reach]:
        """A guest after a restore in place. Its QEMU, no child of this process, ends at the end."""
        pid = self.restore(guest, snapshot, keep_current=False)["pid"]
        try:
            yield Reach(guest.qmp_path, guest.agent_path, pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 10
            while living(pid):
                assert time.monotonic() < deadline, "the guest's QEMU is still there"
                time.sleep(0.05)

    def prune(self, apply: bool = True, **options: Any) -> dict[str, Any]:
        """Removes what no rule keeps, as module livesnap_prune does with these options."""
        spec = argument_spec("livesnap_prune")
        params = {name: about.get("default") for name, about in spec.items()}
        given = {**params, "store": str(self.path), "_livesnap_helper": helper(), **options}
        return prune(PruneRequest.of(given), apply)

    def forget(self) -> None:
        """Everything in it goes, the store stays."""
        for entry in self.path.iterdir():
            shutil.rmtree(entry)

    @contextlib.contextmanager
    def clone(self, guest: Guest, snapshot: str, **options: Any) -> Iterator[Reach]:
        """A running clone; removed at the end, and seen to be gone."""
        # Clones have one place on a machine: two test runs must not take each other's.
        name = f"twin{os.getpid()}"
        request = cloning.CloneRequest(
            store=str(self.path), guest=guest.options.name, name=name, snapshot=snapshot,
            helper=helper(), **options)
        try:
            found = cloning.create_clone(request)
            agent = found["agent_socket"]
            yield Reach(Path(found["qmp_socket"]), Path(agent) if agent else None, found["pid"])
        finally:
            cloning.remove_clone(request)
        # Ansible's module ends and leaves its clone to init; this process has to do init's work.
        deadline = time.monotonic() + 10
        while os.path.exists(f"/proc/{found['pid']}"):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(found["pid"], os.WNOHANG)
            assert time.monotonic() < deadline, "the clone's QEMU is still there"
            time.sleep(0.05)
        assert not any(os.path.exists(path) for path in found["overlays"])

    @contextlib.contextmanager
    def restored_by_hand(self, guest: Guest, snapshot: str) -> Iterator[Reach]:
        """What an operator gets who pastes the printed commands: stock QEMU, then the thaw."""
        root = Path(tempfile.mkdtemp(prefix="livesnap-hand-", dir="/tmp"))
        root.chmod(0o755)
        folder = root / "restored"
        lines = plain_restore(
            str(self.path), guest.options.name, snapshot, str(folder), helper())
        at = [" -incoming " in line for line in lines].index(True)
        qemu: subprocess.Popen[bytes] | None = None
        try:
            for line in lines[:at]:
                subprocess.run(["sh", "-c", line], check=True, timeout=300)
            # In a session of its own: the shell does not hand its signals on to QEMU.
            qemu = subprocess.Popen(["sh", "-c", lines[at]], start_new_session=True)
            reach = Reach(folder / "qmp.sock", folder / "agent.sock", qemu.pid)
            reach.wait_status("running")
            for line in lines[at + 1:]:
                subprocess.run(["sh", "-c", line], check=True, timeout=60)
            yield reach
        finally:
            if qemu is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(qemu.pid, signal.SIGKILL)
                qemu.wait()
            shutil.rmtree(root)


def _reached(guest: Guest | Domain) -> dict[str, Any]:
    if isinstance(guest, Domain):
        # Where layers are the subject, test_overlay_libvirt.py takes what auto takes.
        return {"uri": guest.libvirtd.uri, "disk_scheme": "backup"}
    return {"qmp_socket": str(guest.qmp_path),
            "agent_socket": str(guest.agent_path) if guest.agent_path else None}


def as_module(work: Callable[[], T]) -> T:
    """What it returns or raises in a process of its own, as modules run.

    libvirt's client must not be used by a process that forks afterwards, and tests do.
    """
    end, start = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with open(start, "wb") as file:
                try:
                    pickle.dump((work(), None), file)
                except LivesnapError as error:
                    pickle.dump((None, error), file)
        finally:
            os._exit(0)
    os.close(start)
    with open(end, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    value, error = pickle.loads(data)
    if error is not None:
        raise error
    return value


def folder_of(result: dict[str, Any]) -> Path:
    """Where the snapshot of a result lies."""
    return Path(result["snapshot"]["path"])


def images_of(result: dict[str, Any]) -> list[Path]:
    """The disk images of a snapshot, in the guest's order."""
    folder = folder_of(result)
    return [folder / disk["file"] for disk in result["snapshot"]["disks"]]


def verdict(guest: Guest | Domain, result: dict[str, Any], pages: int,
            images: list[Path] | None = None) -> str:
    """Empty if RAM and disks of a snapshot are of one instant, otherwise why not.

    `images`: those of the disks, where they are not in the store.
    """
    disks = [disk_state(image) for image in images or images_of(result)]
    with tempfile.TemporaryDirectory(prefix="livesnap-raw-", dir="/tmp") as raw:
        out = Path(raw) / "blocks"
        subprocess.run(
            [helper(), "export", "--format", "raw", str(folder_of(result) / "ram.lsnap"), str(out)],
            stdin=subprocess.DEVNULL, check=True, capture_output=True, timeout=300)
        return judge(ram_state(out, disks[0].boot), disks, pages)


def note_states(real: Callable[..., None], domain: Domain, told: Path,
                written: str) -> Callable[..., None]:
    """A call that first adds the domain's state to a file, a line each.

    `written`: a disk that is written to right after it, if the domain runs; "" is none.
    """
    def noting(*given: Any) -> None:
        state = domain.virsh("domstate").split()[0]
        with told.open("a") as file:
            file.write(f"{state}\n")
        real(*given)
        if written and state == "running":
            # Nothing of the file system is in the first sector.
            backend = f"/machine/peripheral/{written}/virtio-backend"
            write = f'qemu-io -d {backend} "write -z 0 512"'
            assert domain.virsh("qemu-monitor-command", "--hmp", write).strip() == ""

    return noting


def export(result: dict[str, Any], stream: Path, kind: str = "qemu", *options: str) -> Path:
    """The snapshot as a migration stream for stock QEMU, or as what libvirt takes."""
    subprocess.run(
        [helper(), "export", "--format", kind, *options, str(folder_of(result)), str(stream)],
        stdin=subprocess.DEVNULL, check=True, capture_output=True, timeout=300)
    return stream


def overlays(folder: Path, images: list[Path]) -> dict[str, Path]:
    """target -> an overlay on an image of the snapshot, where QEMU's user may write."""
    found = {}
    for number, image in enumerate(images):
        path = folder / f"restored{number}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(image),
                        str(path)], check=True, timeout=60)
        found[f"vd{chr(ord('a') + number)}"] = path
    return found


def restored_xml(folder: Path, disks: dict[str, Path]) -> str:
    """The domain's XML of the instant, with its disks where they are now."""
    root = ET.parse(folder / "domain.xml").getroot()
    for disk in root.iterfind("./devices/disk"):
        target, driver, source = (disk.find(tag) for tag in ("target", "driver", "source"))
        assert target is not None and driver is not None and source is not None
        source.attrib = {"file": str(disks[target.attrib["dev"]])}
        driver.set("type", "qcow2")
        for stale in disk.findall("backingStore"):
            disk.remove(stale)
    return ET.tostring(root, encoding="unicode")
