# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pure parts of the bracket, and its order of undo with steps that are fakes of this file."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _helper, _options, _owner
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket import (
    faults,
    quiet,
    steps,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import (
    SnapshotSpec,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.link import (
    Aborted,
    Limit,
    Unlinked,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.run import Run
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import leftovers
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.select import select
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    HelperError,
    LivesnapError,
    QmpCommandError,
    RefusedError,
    TimedOutError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.address import (
    DomainAddress,
    SocketAddress,
    address_of,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import Disk

REPO = Path(__file__).resolve().parents[2]
BASE = {"guest": "web1", "name": "one", "qmp_socket": "/q"}


# -- options


def test_spec_has_every_option_with_its_default() -> None:
    known = {item.name: item for item in dataclasses.fields(SnapshotSpec)}
    spec = SnapshotSpec.of(BASE)
    for option in _options.SNAPSHOT:
        if option.name == "state":
            continue
        assert option.name in known, option.name
        if option.name not in ("guest", "name", "staging", "disks", "qmp_socket"):
            assert getattr(spec, option.name) == option.default, option.name


def test_spec_takes_params_of_a_module() -> None:
    spec = SnapshotSpec.of({**BASE, "staging": "1G", "bandwidth": "10M", "agent_socket": None,
                            "_livesnap_helper": "/h", "unknown": 1})
    assert (spec.staging, spec.bandwidth, spec.helper) == (1 << 30, 10 << 20, "/h")
    assert SnapshotSpec.of({**BASE, "staging": "auto"}).staging == 0


@pytest.mark.parametrize(("changed", "message"), [
    ({"guest": "../x"}, "guest '../x'"),
    ({"name": "x.partial"}, "name 'x.partial'"),
    ({"store": "relative"}, "store 'relative'"),
    ({"qmp_socket": "relative"}, "qmp_socket 'relative'"),
    ({"agent_socket": "relative"}, "agent_socket 'relative'"),
    ({"qmp_socket": None, "agent_socket": "/a"}, "has an agent_socket, and no qmp_socket"),
    ({"freeze_timeout": 0}, "freeze_timeout '0'"),
    ({"deadline": 1}, "deadline '1'"),
    ({"deadline": 5}, "leaves nothing of deadline '5'"),
    ({"timeout": -1}, "timeout '-1'"),
    ({"engine": "pause"}, "engine 'pause' stops the guest"),
    ({"workers": -1}, "workers '-1'"),
    ({"lock_timeout": -1}, "lock_timeout '-1'"),
    ({"labels": ["ok", "not ok"]}, "label 'not ok'"),
    ({"disks": [{"scheme": "none"}]}, "no 'match'"),
    ({"staging": "much"}, "staging 'much'"),
    ({"bandwidth": "-5"}, "bandwidth '-5'"),
])
def test_spec_refuses(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(LivesnapError, match=re.escape(message)):
        SnapshotSpec.of({**BASE, **changed})


def test_without_a_socket_it_is_libvirts() -> None:
    spec = SnapshotSpec.of({**BASE, "qmp_socket": None, "uri": "qemu:///session"})
    assert spec.address == DomainAddress("qemu:///session", "web1")
    assert SnapshotSpec.of(BASE).address == SocketAddress("/q", None)
    for address in (spec.address, SocketAddress("/q", "/a")):
        assert address_of(address.noted()) == address
    assert address_of({}) is None


def test_a_long_deadline_warns() -> None:
    assert SnapshotSpec.of({**BASE, "deadline": 10}).warnings()
    assert not SnapshotSpec.of({**BASE, "deadline": 10, "freeze": "never"}).warnings()
    assert not SnapshotSpec.of(BASE).warnings()


# -- disks


def disk(number: int, **changed: Any) -> Disk:
    values: dict[str, Any] = {
        "device": "", "node": f"node{number}", "qdev": f"disk{number}", "serial": f"S{number}",
        "file": f"/d{number}", "format": "raw", "virtual_bytes": 1 << 20, "read_only": False,
        "removable": False, "inserted": True}
    return Disk(**{**values, **changed})


KNOWN = {"backup"}


def chosen(disks: list[Disk], wanted: list[dict[str, str]]) -> list[str]:
    found = select(disks, wanted, "auto", KNOWN, lambda _disk: "backup")
    return [each.qdev for each, _scheme in found.chosen]


def test_all_writable_disks_are_captured() -> None:
    cdrom = disk(2, read_only=True, removable=True)
    empty = disk(3, inserted=False, node="")
    found = select([disk(0), disk(1), cdrom, empty], [], "auto", KNOWN, lambda _disk: "backup")
    assert [(each.qdev, scheme) for each, scheme in found.chosen] == [
        ("disk0", "backup"), ("disk1", "backup")]
    assert [each.qdev for each in found.excluded] == ["disk2", "disk3"]


@pytest.mark.parametrize("match", ["disk1", "node1", "S1", "*1"])
def test_a_disk_is_matched_by_any_of_its_names(match: str) -> None:
    assert chosen([disk(0), disk(1)], [{"match": match, "scheme": "none"}]) == ["disk0"]


def test_the_first_match_wins() -> None:
    wanted = [{"match": "disk1"}, {"match": "*", "scheme": "none"}]
    assert chosen([disk(0), disk(1)], wanted) == ["disk1"]


def test_a_read_only_disk_is_captured_when_it_is_named() -> None:
    assert chosen([disk(0, read_only=True)], [{"match": "disk0"}]) == ["disk0"]


@pytest.mark.parametrize(("disks", "wanted", "reason"), [
    ([disk(0)], [{"match": "nosuch", "scheme": "none"}], "unknown_disk"),
    ([disk(0, inserted=False)], [{"match": "disk0"}], "disk_empty"),
    ([disk(0)], [{"match": "disk0", "scheme": "other"}], "unknown_scheme"),
    ([disk(0), disk(1, node="node0")], [], "disk_shared"),
])
def test_selection_refuses(disks: list[Disk], wanted: list[dict[str, str]], reason: str) -> None:
    with pytest.raises(RefusedError) as caught:
        select(disks, wanted, "auto", KNOWN, lambda _disk: "backup")
    assert caught.value.reason == reason


class FakeQmp:
    """Block jobs and nodes of a QEMU that exists in this file only."""

    def __init__(self) -> None:
        self.jobs = {"livesnap-1-d0-job": "running", "livesnap-1-d1-job": "concluded",
                     "theirs": "running"}
        self.nodes = ["livesnap-1-d0", "theirs"]
        self.sets = {3: "livesnap-1-x", 4: "theirs"}

    def execute(self, command: str, arguments: Any = None, timeout: float = 0) -> Any:
        if command == "query-jobs":
            return [{"id": name, "status": state} for name, state in self.jobs.items()]
        if command == "query-named-block-nodes":
            return [{"node-name": name} for name in self.nodes]
        if command == "query-fdsets":
            return [{"fdset-id": number, "fds": [{"fd": 1, "opaque": text}]}
                    for number, text in self.sets.items()]
        if command == "job-cancel":
            self.jobs[arguments["id"]] = "concluded"
        elif command == "job-dismiss":
            if self.jobs[arguments["id"]] != "concluded":
                raise QmpCommandError(command, "GenericError", "not concluded")
            del self.jobs[arguments["id"]]
        elif command == "blockdev-del":
            self.nodes.remove(arguments["node-name"])
        return {}

    def remove_fdset(self, number: int) -> None:
        del self.sets[number]


def test_leftovers_are_ours_alone() -> None:
    qmp: Any = FakeQmp()
    assert len(leftovers.found(qmp, "livesnap-1-")) == 4
    assert len(leftovers.remove(qmp, "livesnap-1-")) == 4
    assert list(qmp.jobs) == qmp.nodes == list(qmp.sets.values()) == ["theirs"]
    assert leftovers.remove(qmp, "livesnap-1-") == []


def test_prefix_leaves_room_for_node_names() -> None:
    assert len(leftovers.prefix_of("1b671a64-40d5-491e-99b0-da01ff1f3341") + "d999") <= 31


# -- order


class FakeRun(Run):
    """A run without a guest: only what execute() itself needs."""

    def __init__(self) -> None:
        self.link = Unlinked()
        self.instant = False
        self.snapshot = None
        self.problems = []
        self.warnings = []
        self.spec = SnapshotSpec.of(BASE)
        self.rundir = self  # type: ignore[assignment]
        self.noted: list[str] = []

    def note(self, line: dict[str, Any]) -> None:
        self.noted.append(" ".join(f"{key} {value}" for key, value in line.items()))

    def progress(self, phase: str, percent: float, done: int = 0, total: int = 0) -> None:
        pass


def table(monkeypatch: pytest.MonkeyPatch, failing: str, undo_fails: str = "") -> None:
    def do(run: Run, name: str) -> None:
        if name == failing:
            raise LivesnapError("no")
        if name == "c":
            run.snapshot = {"name": "one"}

    def undo(run: Run, name: str) -> None:
        if name == undo_fails:
            raise LivesnapError("cannot")

    monkeypatch.setattr(steps, "STEPS", tuple(
        steps.Step(name, lambda run, name=name: do(run, name),  # type: ignore[misc]
                   lambda run, name=name: undo(run, name))  # type: ignore[misc]
        for name in ("a", "b", "c", "d")))


def test_steps_are_written_down_and_undone_in_reverse(monkeypatch: pytest.MonkeyPatch) -> None:
    table(monkeypatch, "b", "b")
    run = FakeRun()
    with pytest.raises(LivesnapError, match=r"'one' of guest 'web1' failed at b: no.*b: cannot"):
        steps.execute(run)
    assert run.noted == ["step a", "step b", "undo b", "undo a"]


@pytest.mark.parametrize(
    ("step", "changed", "told"),
    [
        ("thaw", {"bandwidth": 1 << 20}, True),
        ("thaw", {}, False),
        ("thaw", {"bandwidth": 1 << 20, "memory": False}, False),
        ("sweep", {"bandwidth": 1 << 20}, False),
    ],
)
def test_a_late_thaw_names_the_limit_that_may_have_delayed_it(
    step: str, changed: dict[str, Any], told: bool
) -> None:
    run = FakeRun()
    run.spec = SnapshotSpec.of({**BASE, **changed})
    error = LivesnapError("it took longer than 7.65 s")
    steps.explain(run, error, step)
    assert f"failed at {step}: it took longer than 7.65 s" in str(error)
    assert ("give 'staging' more room" in str(error)) is told


def test_what_is_published_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    table(monkeypatch, "d")
    run = FakeRun()
    assert steps.execute(run) == {"name": "one"}
    assert run.warnings == ["no"]
    assert "undo a" not in run.noted


def test_the_callers_death_counts_before_the_instant_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(Unlinked):
        def caller_gone(self) -> bool:
            return True

    table(monkeypatch, "")
    run = FakeRun()
    run.link = Gone()
    with pytest.raises(Aborted):
        steps.execute(run)
    run = FakeRun()
    run.link = Gone()
    run.instant = True
    steps.execute(run)


def test_faults_need_the_word_that_this_is_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVESNAP_FAULT_STEP", "stop:RAISE")
    faults.strike("stop")
    monkeypatch.setenv("LIVESNAP_TESTING", "1")
    faults.strike("cont")
    with pytest.raises(LivesnapError, match="injected"):
        faults.strike("stop")


@pytest.mark.parametrize("name", ["RESUME", "RESET", "SHUTDOWN", "GUEST_PANICKED",
                                  "BLOCK_IO_ERROR", "DEVICE_DELETED"])
def test_events_that_void_the_instant(name: str) -> None:
    with pytest.raises(LivesnapError, match=f"QEMU sent {name}"):
        quiet.refuse_events([{"event": "JOB_STATUS_CHANGE"}, {"event": name}])
    quiet.refuse_events([{"event": "JOB_STATUS_CHANGE"}])


def test_limit() -> None:
    assert Limit(None, "x").left(7.0) == 7.0
    assert Limit(100.0, "x").left(7.0) == 7.0
    assert Limit(5.0, "x").left(7.0) <= 5.0
    limit = Limit(0.0, "the sweep")
    assert limit.reached()
    with pytest.raises(LivesnapError, match="the sweep took longer than 0 s"):
        limit.left(1.0)


def test_the_steps_are_those_of_the_failure_model() -> None:
    text = (REPO / "docs" / "failure-model.md").read_text()
    for name in steps.FAULT_POINTS:
        assert re.search(rf"^\|[^|]*\b{name}\b", text, re.M), name


# -- helper and owner


def script(folder: Path, text: str) -> str:
    """A program that stands in for the helper."""
    path = folder / "helper"
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_helper_answers(tmp_path: Path) -> None:
    path = script(tmp_path, """read x
echo '{"event":"progress"}'; echo '{"event":"a"}'; cat""")
    helper = _helper.HelperProcess(path, ["capture"])
    helper.send({"request": "start"})
    seen: list[_helper.Event] = []
    assert helper.wait_for("a", 5, seen.append) == {"event": "a"}
    assert seen == [{"event": "progress"}]
    assert helper.event(0.05) is None
    with pytest.raises(TimedOutError, match="did not say 'b' within"):
        helper.wait_for("b", 0.1)
    assert os.getsid(helper.pid) == helper.pid
    assert helper.end(5) == 0


@pytest.mark.parametrize(("text", "word", "message"), [
    ('echo \'{"event":"error","class":"torn","reason":"proof","message":"said"}\'; exit 6', "torn",
     "said"),
    ("echo why >&2; exit 5", "storage", "ended with code 5: why"),
    ("kill -9 $$", "internal", "killed by signal 9"),
    ("echo nonsense", "internal", "what is no event"),
])
def test_helper_fails(tmp_path: Path, text: str, word: str, message: str) -> None:
    helper = _helper.HelperProcess(script(tmp_path, text), ["capture"], str(tmp_path / "log"))
    with pytest.raises(HelperError, match=message) as caught:
        helper.wait_for("attached", 5)
    assert caught.value.word == word
    helper.end(5)


def test_helper_that_hangs_is_ended(tmp_path: Path) -> None:
    path = script(tmp_path, "trap '' TERM; while :; do sleep 1; done")
    helper = _helper.HelperProcess(path, ["capture"])
    begun = time.monotonic()
    assert helper.end(0.2) == -signal.SIGKILL
    assert time.monotonic() - begun < 3


def test_helper_that_is_not_there() -> None:
    for path in ("", "/nowhere/helper"):
        with pytest.raises(HelperError, match="livesnap-helper"):
            _helper.run_once(path, ["features"])


def test_owner_is_detached_and_brings_its_result(tmp_path: Path) -> None:
    def work(spec: SnapshotSpec, link: Any) -> dict[str, Any]:
        return {"sid": os.getsid(0), "pid": os.getpid(), "cwd": os.getcwd(),
                "out": os.readlink("/proc/self/fd/1"), "fds": len(os.listdir("/proc/self/fd"))}

    with open(tmp_path / "ours", "w"):
        found = _owner.follow(_owner.run_detached(SnapshotSpec.of(BASE), work))
    assert found["sid"] not in (os.getsid(0), found["pid"])
    assert found["out"] == "/dev/null"
    assert found["cwd"] == "/"
    assert found["fds"] <= 5


def test_owners_error_arrives_whole() -> None:
    def work(spec: SnapshotSpec, link: Any) -> dict[str, Any]:
        raise RefusedError("what", "hint", result={"recovered": ["x"]})

    with pytest.raises(LivesnapError) as caught:
        _owner.follow(_owner.run_detached(SnapshotSpec.of(BASE), work))
    assert (caught.value.msg, caught.value.hint) == ("what", "hint")
    assert caught.value.result == {"recovered": ["x"]}


def test_owners_death_is_said() -> None:
    def work(spec: SnapshotSpec, link: Any) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    with pytest.raises(LivesnapError, match=r"\(pid \d+\) was killed"):
        _owner.follow(_owner.run_detached(SnapshotSpec.of(BASE), work))


def test_owner_sees_the_end_of_its_caller(tmp_path: Path) -> None:
    def work(spec: SnapshotSpec, link: Any) -> dict[str, Any]:
        end = time.monotonic() + 10
        while time.monotonic() < end and not link.caller_gone():
            time.sleep(0.01)
        (tmp_path / "seen").write_text(str(link.caller_gone()))
        return {}

    handle = _owner.run_detached(SnapshotSpec.of(BASE), work)
    time.sleep(0.2)
    assert not (tmp_path / "seen").exists()
    handle.sock.close()
    end = time.monotonic() + 5
    while not (tmp_path / "seen").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert (tmp_path / "seen").read_text() == "True"
