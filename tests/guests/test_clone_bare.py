# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clones of a QEMU without a guest's system in it: what is started, what is checked, what is left.

The stream is one of QEMU's own migration; a script that prints it stands for livesnap-helper.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._clone import clone as module
from ansible_collections.livesnap.qemu.plugins.module_utils._clone import launch, standing
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.clone import (
    CloneRequest,
    create_clone,
    plan_clone,
    remove_clone,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.plain import plain_restore
from ansible_collections.livesnap.qemu.plugins.module_utils._connection._peer import is_qemu
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.qmp import Qmp
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    CloneError,
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.facts import read_facts
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.process import QemuProcess
from ansible_collections.livesnap.qemu.plugins.module_utils._store import manifest, rundir

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
UUID = "6b0a1c6e-1111-4222-8333-444455556666"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def listens(path: object) -> bool:
    """Whether a socket takes connections: between its file and that, QEMU has a moment."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


class Made:
    """A store with one snapshot in it."""

    def __init__(self, root: Path, extra: tuple[str, ...] = (), user: str = "root") -> None:
        self.root = root
        self.store = root / "store"
        self.folder = self.store / "bare" / "one"
        (self.folder / "disks").mkdir(parents=True)
        root.chmod(0o755)
        self.work = root / "work"
        self.work.mkdir()
        self.user = pwd.getpwnam(user)
        os.chown(self.work, self.user.pw_uid, self.user.pw_gid)
        for parent in [*self.folder.parents, self.folder, self.folder / "disks"]:
            if root in parent.parents:
                parent.chmod(0o711)
        self.disk("a.raw", "raw")
        self.disk("b.qcow2", "qcow2")
        self.take(extra)

    def disk(self, name: str, kind: str) -> None:
        path = self.work / name
        subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, "8M"], check=True)
        os.chown(path, self.user.pw_uid, self.user.pw_gid)

    def take(self, extra: tuple[str, ...]) -> None:
        argv = [
            *("qemu-system-x86_64", "-name", "bare", "-uuid", UUID, "-nodefaults", "-m", "64"),
            *("-machine", "pc", "-display", "none", "-sandbox", SANDBOX),
            *("-qmp", f"unix:{self.work}/qmp,server=on,wait=off"),
            *("-drive", "file=a.raw,format=raw,if=virtio,id=sys"),
            *("-blockdev", "driver=file,node-name=f1,filename=b.qcow2"),
            *("-blockdev", "driver=qcow2,node-name=d1,file=f1"),
            *("-device", "virtio-blk-pci,drive=d1,id=data", "-serial", "file:serial.log"),
            *("-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0", "-vga", "std"),
            *extra,
        ]
        as_user = {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}
        qemu = subprocess.Popen(argv, cwd=self.work, stdin=subprocess.DEVNULL, **as_user)
        try:
            deadline = time.monotonic() + 30
            while not listens(self.work / "qmp"):
                assert qemu.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            with Qmp.connect(str(self.work / "qmp")) as qmp:
                time.sleep(1)  # the firmware writes to memory
                qmp.execute("stop")
                process = QemuProcess.of(qmp.peer_pid)
                self.facts = read_facts(qmp, process)
                with open(self.root / "stream", "wb") as stream:
                    qmp.getfd("stream", stream.fileno())
                qmp.execute("migrate", {"uri": "fd:stream"})
                while qmp.execute("query-migrate")["status"] != "completed":
                    assert time.monotonic() < deadline + 20
                    time.sleep(0.05)
        finally:
            qemu.kill()
            qemu.wait()
        self.process = process
        disks = []
        for number, disk in enumerate(self.facts.disks):
            file = f"disks/{number}-{disk.label}.qcow2"
            subprocess.run(
                ["qemu-img", "convert", "-O", "qcow2", disk.file, self.folder / file], check=True
            )
            os.chown(self.folder / file, self.user.pw_uid, self.user.pw_gid)
            (self.folder / file).chmod(0o400)
            disks.append(
                {
                    **{"match": disk.label, "device": disk.device or None, "qdev": disk.qdev},
                    **{"node": disk.node, "serial": None, "scheme": "backup", "file": file},
                    **{"format": "qcow2", "bytes": disk.virtual_bytes, "stored_bytes": 0},
                    "file_bytes": (self.folder / file).stat().st_size,
                    "source": {"file": disk.file, "format": disk.format},
                }
            )
        (self.folder / "ram.lsnap").write_bytes(b"x" * 4096)
        (self.folder / "devices").write_bytes(b"x")
        self.fields = self.manifest(disks)
        self.save()

    def manifest(self, disks: list[dict[str, Any]]) -> dict[str, Any]:
        facts, process = self.facts, self.process
        numbers = {"bytes": 64 << 20, "zero_bytes": 0, "stored_bytes": 0, "file_bytes": 4096}
        return {
            **{"livesnap": "0.1.0", "id": UUID, "guest": "bare", "name": "one", "uuid": UUID},
            **{"created": "2026-11-23T01:00:07Z", "started": "2026-11-23T01:00:07Z"},
            **{"complete": True, "was_running": True, "engine": "uffd", "disks": disks},
            "consistency": {
                "level": "crash",
                "indications": [],
                "freeze": {"asked": "never", "achieved": False, "reason": None, "filesystems": 0},
            },
            "timings": dict.fromkeys(manifest.TIMINGS),
            "memory": {
                **numbers,
                **{"file": "ram.lsnap", "checksum": "", "compression": "lz4", "faults": 0},
                "fault_us": dict.fromkeys(("p50", "p99", "max")),
                "proof": {"scans": 1, "chunks": 1},
                "gpa": [vars(entry) for entry in facts.gpa],
                "ramblock": facts.ramblock,
            },
            "devices": {"file": "devices", "bytes": 1, "sha256": ""},
            "excluded_disks": [],
            "guest_facts": {
                **{"name": facts.name, "qemu_version": facts.qemu_version, "qemu_package": ""},
                **{"machine": facts.machine, "arch": facts.arch, "accelerator": facts.accel},
                **{"cpu": facts.cpu, "vcpus": 1, "memory_bytes": facts.memory_bytes},
                **{"argv": list(process.argv), "cwd": process.cwd, "exe": process.exe},
                **{"user": process.user, "uid": process.uid, "gid": process.gid, "cgroup": "/"},
                **{"firmware": [], "device_tree": {}, "block_nodes": []},
            },
            **{"restore_blockers": facts.restore_blockers, "schedule": None, "slot": None},
            "bracket": {"attempts": 1, "deadline_s": 9, "warnings": []},
            **{"parent": None, "encryption": None},
        }

    def save(self) -> None:
        (self.folder / "manifest.json").write_bytes(manifest.encode(self.fields))

    def helper(self, script: str = 'exec cat "$STREAM"') -> str:
        path = self.root / "helper"
        # Replaced, not rewritten: an earlier one may still run.
        fresh = path.with_suffix(".new")
        fresh.write_text(f"#!/bin/sh\nSTREAM={self.root}/stream\n{script}\n")
        fresh.chmod(0o755)
        fresh.replace(path)
        return str(path)

    def request(self, name: str = "look", **given: Any) -> CloneRequest:
        given["helper"] = given.get("helper") or self.helper()
        # There is nothing but the stream: no image to bring RAM from.
        given.setdefault("lazy", False)
        return CloneRequest(
            store=str(self.store),
            guest="bare",
            name=name,
            snapshot="one",
            run_root=str(self.root / "run"),
            **given,
        )

    def traces(self) -> list[str]:
        """Whatever is there of clones."""
        found = [str(path) for path in (self.root / "run").rglob("*")]
        found += [str(path) for path in (self.store / "bare").glob(".clones*")]
        return found + qemus_below(self.root / "run")


def qemus_below(folder: Path) -> list[str]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                cwd = os.readlink(f"/proc/{entry}/cwd")
            except OSError:
                continue
            if cwd.startswith(str(folder)):
                found.append(f"{entry}: {cwd}")
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    root = Path("/tmp") / f"livesnap-clone-{os.getpid()}"
    root.mkdir()
    yield Made(root)
    shutil.rmtree(root)


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's /run/livesnap stays as it is."""
    monkeypatch.setattr(rundir, "_ROOT", tmp_path / "locks")


@pytest.fixture
def one(made: Made) -> Iterator[Made]:
    """The snapshot, as it was; nothing is left of any clone afterwards."""
    yield made
    for name in ("look", "other"):
        remove_clone(made.request(name))
    assert [path for path in made.traces() if not path.endswith("/run/clone")] == []
    made.save()


def test_life_of_a_clone(one: Made) -> None:
    request = one.request()
    predicted = plan_clone(request)
    assert one.traces() == []
    made = create_clone(request)
    assert made["changed"] and made["running"] and made["actions"] == predicted["actions"]
    assert (made["qmp_socket"], made["overlays"]) == (
        predicted["qmp_socket"],
        predicted["overlays"],
    )
    assert made["agent_socket"] is None
    with Qmp.connect(made["qmp_socket"]) as qmp:
        assert qmp.peer_pid == made["pid"]
        facts = read_facts(qmp, QemuProcess.of(made["pid"]))
        assert (facts.uuid, facts.machine) == (UUID, one.facts.machine)
        assert facts.name == "bare.look"
        assert [disk.file for disk in facts.disks] == made["overlays"]
        assert [device.type for device in facts.devices] == [
            device.type for device in one.facts.devices
        ]
        assert "restrict=on" in qmp.hmp("info network")
        # Its memory is that of the snapshot: the firmware waits for a disk, and does not move.
        qmp.execute("stop")
    argv = list(QemuProcess.of(made["pid"]).argv)
    assert argv[argv.index("-sandbox") + 1] == SANDBOX
    assert standing.unfinished(request.store, "bare", request.run_root) == []
    again = create_clone(request)
    assert not again["changed"] and again["pid"] == made["pid"] and not again["running"]
    assert plan_clone(request)["changed"] is False
    other = create_clone(one.request("other"))
    assert other["pid"] != made["pid"]
    assert remove_clone(request, check_mode=True)["changed"]
    assert remove_clone(request)["changed"]
    assert not remove_clone(request)["changed"]
    assert not os.path.exists(made["overlays"][0])


def test_another_snapshot_of_that_name(one: Made) -> None:
    create_clone(one.request())
    with pytest.raises(CloneError, match="there already"):
        create_clone(one.request(network=True))


def test_dead_clone_is_made_again(one: Made) -> None:
    first = create_clone(one.request())
    with Qmp.connect(first["qmp_socket"]) as qmp:
        qmp.execute("quit")
    second = create_clone(one.request())
    assert second["changed"] and "removed what was left" in second["actions"][0]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo no such block >&2; exit 5", "no such block"),
        ("head -c 100000 $STREAM", "ended at once"),
        ("echo rubbish", "Not a migration stream"),
        ("cat $STREAM; echo sorry >&2; exit 6", "sorry"),
    ],
)
def test_bad_stream_leaves_nothing(one: Made, script: str, words: str) -> None:
    with pytest.raises(CloneError, match=words):
        create_clone(one.request(helper=one.helper(script)))
    assert [path for path in one.traces() if not path.endswith("/run/clone")] == []


def test_stuck_stream_is_bounded(one: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.launch, "START_LIMIT", 1.0)
    start = time.monotonic()
    with pytest.raises(CloneError, match="not loaded within"):
        create_clone(one.request(helper=one.helper("head -c 100000 $STREAM; exec sleep 100")))
    assert time.monotonic() - start < 12


def test_maker_dies(one: Made) -> None:
    """SIGKILL to the module in the middle: the next run removes what it left, QEMU included."""
    code = (
        "import sys; sys.path[:0] = {path!r}\n"
        "from ansible_collections.livesnap.qemu.plugins.module_utils._clone.clone import *\n"
        "from ansible_collections.livesnap.qemu.plugins.module_utils._store import rundir\n"
        "import pathlib; rundir._ROOT = pathlib.Path({root!r})\n"
        "create_clone(CloneRequest(**{fields!r}))\n"
    )
    request = one.request(helper=one.helper("head -c 100000 $STREAM; exec sleep 100"))
    text = code.format(path=sys.path, fields=vars(request), root=str(rundir.root()))
    child = subprocess.Popen([sys.executable, "-c", text])
    deadline = time.monotonic() + 30
    try:
        while not (request.place.sockets / "qmp.sock").exists():
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    except BaseException:
        child.kill()
        child.wait()
        raise
    assert standing.unfinished(request.store, None, request.run_root) == []
    child.kill()
    child.wait()
    assert qemus_below(request.place.sockets)
    assert standing.unfinished(request.store, None, request.run_root) == [request.place]
    assert create_clone(one.request())["changed"]
    remove_clone(one.request())
    request.place.overlays.mkdir(parents=True)  # as after a reboot: /run is empty
    assert standing.remove_unfinished(request.store, "bare", request.run_root) == [request.place]
    assert request.place.left() == []


def test_a_container_may_have_a_folder_of_that_name(tmp_path: Path) -> None:
    """In a mount namespace of its own; what works in it belongs to no clone of ours."""
    folder = tmp_path / "look"
    folder.mkdir()
    begin = f"cd {folder} && exec qemu-system-x86_64 -M none -S -nodefaults -display none"
    apart = f"mount -t tmpfs tmpfs {tmp_path} && mkdir {folder} && {begin}"
    started = [subprocess.Popen(argv, stdin=subprocess.DEVNULL)
               for argv in (["sh", "-c", begin], ["unshare", "--mount", "sh", "-c", apart])]
    try:
        deadline = time.monotonic() + 10
        while not all(is_qemu(each.pid) for each in started):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert [pid for pid, _started in launch.processes_in(str(folder))] == [started[0].pid]
    finally:
        for each in started:
            each.kill()
            each.wait(10)


def change(made: Made, **facts: Any) -> None:
    fields = json.loads(json.dumps(made.fields))
    for key, value in facts.items():
        (fields["guest_facts"] if key in fields["guest_facts"] else fields)[key] = value
    (made.folder / "manifest.json").write_bytes(manifest.encode(fields))


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"machine": "pc-i440fx-99.9"}, "machine"),
        ({"qemu_version": "99.1.0"}, "qemu_version"),
        ({"exe": "/usr/bin/qemu-none"}, "qemu"),
        ({"firmware": [{"path": "/etc/hostname", "sha256": "0"}]}, "firmware"),
        ({"restore_blockers": ["a TPM"]}, "restore_blockers"),
        ({"memory": None, "devices": None, "engine": None}, "no_memory"),
    ],
)
def test_refusals_touch_nothing(one: Made, facts: dict[str, Any], reason: str) -> None:
    change(one, **facts)
    with pytest.raises(RefusedError) as caught:
        create_clone(one.request())
    assert caught.value.reason == reason
    with pytest.raises(RefusedError):
        plan_clone(one.request())
    assert one.traces() == []


def test_names(one: Made) -> None:
    for name in ("", "../x", "a/b", "x.partial", "-x", "x" * 129):
        with pytest.raises(LivesnapError, match="not usable"):
            create_clone(one.request(name))
    with pytest.raises(RefusedError, match="not in store"):
        create_clone(CloneRequest(str(one.store), "bare", "look", "none"))


def test_plain_commands_as_printed(one: Made, tmp_path: Path) -> None:
    """By a shell, and nothing of ours but the stream."""
    folder = tmp_path / "back"
    helper = one.helper('for last; do :; done; exec cp "$STREAM" "$last"')
    lines = plain_restore(str(one.store), "bare", "one", str(folder), helper)
    for line in lines[:-1]:
        subprocess.run(["sh", "-ec", line], check=True)
    qemu = subprocess.Popen(["sh", "-ec", "exec 3<&-; " + lines[-1].replace("&& ", "&& exec ", 1)])
    try:
        deadline = time.monotonic() + 30
        while not listens(folder / "qmp.sock"):
            assert qemu.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        with Qmp.connect(str(folder / "qmp.sock")) as qmp:
            while (status := qmp.execute("query-status")["status"]) == "inmigrate":
                assert time.monotonic() < deadline
                time.sleep(0.02)
            # As it was in this stream: QEMU's own migration says what the guest was.
            assert status == "paused"
    finally:
        qemu.kill()
        qemu.wait()


def test_taps_are_cut_off(tmp_path: Path) -> None:
    """A card on a tap needs one again (its virtio header), and it must lead nowhere."""
    root = Path("/tmp") / f"livesnap-clone-tap-{os.getpid()}"
    root.mkdir()
    cards = (
        *("-netdev", "tap,id=t0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=t0"),
        *("-netdev", "tap,id=t1,script=no,downscript=no,queues=2"),
        *("-device", "virtio-net-pci,netdev=t1,mq=on,vectors=6"),
    )
    try:
        one = Made(root, cards)
        interfaces = set(os.listdir("/sys/class/net"))
        made = create_clone(one.request())
        assert made["running"]
        assert set(os.listdir("/sys/class/net")) == interfaces
        with Qmp.connect(made["qmp_socket"]) as qmp:
            assert "fd=" in qmp.hmp("info network")
        remove_clone(one.request())
    finally:
        shutil.rmtree(root)


def test_unprivileged_user(tmp_path: Path) -> None:
    root = Path("/tmp") / f"livesnap-clone-user-{os.getpid()}"
    root.mkdir()
    try:
        one = Made(root, user="nobody")
        made = create_clone(one.request("look" + "x" * 60))
        process = QemuProcess.of(made["pid"])
        assert (process.user, process.groups) == ("nobody", (process.gid,))
        assert os.stat(made["overlays"][0]).st_mode & 0o777 == 0o600
        lines = plain_restore(str(one.store), "bare", "one", "/tmp/back")
        assert "runuser -u nobody -- /usr/bin/qemu-system-x86_64" in lines[-1]
        remove_clone(one.request("look" + "x" * 60))
        assert [path for path in one.traces() if not path.endswith("/run/clone")] == []
    finally:
        shutil.rmtree(root)
