# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several schemes in one snapshot, with schemes and a QEMU that are fakes of this file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _options
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import captured, uncover
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.scheme import (
    Image,
    Making,
    Outside,
    Scheme,
    Share,
    Subject,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.table import OUTSIDE, SCHEMES
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import Disk
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.process import QemuProcess
from ansible_collections.livesnap.qemu.plugins.module_utils._store import manifest
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store

SAID: list[str] = []


class Left(Scheme):
    """Notes what it is told."""

    NAME = "left"
    PROBLEM = ""

    def say(self, what: str) -> None:
        SAID.append(f"{what} {self.NAME} {' '.join(share.disk.node for share in self.shares)}")

    @classmethod
    def check(cls, subject: Subject, qmp: Connection, disks: Sequence[Disk]) -> None:
        SAID.append(f"check {cls.NAME} {subject.guest} {' '.join(disk.node for disk in disks)}")

    @classmethod
    def estimate(
            cls, subject: Subject, qmp: Connection, disks: Sequence[Disk]) -> dict[str, int]:
        return {disk.node: len(cls.NAME) for disk in disks}

    def prepare(self, qmp: Connection) -> None:
        self.say("prepare")

    def actions(self) -> list[dict[str, Any]]:
        return [{"type": self.NAME, "data": share.disk.node} for share in self.shares]

    def commit(self, qmp: Connection, timeout: float) -> None:
        self.say("commit")

    def commit_frozen(self, qmp: Connection, timeout: float) -> None:
        self.say("first")

    def poll(self, qmp: Connection) -> tuple[bool, int, int]:
        return self.NAME == "left", 1, 2

    def finish(self, qmp: Connection) -> list[dict[str, Any]]:
        return [{"node": share.disk.node, "place": share.index} for share in self.shares]

    def undo(self, qmp: Connection) -> str:
        self.say("undo")
        if self.PROBLEM == "raises":
            raise LivesnapError("it raises")
        return self.PROBLEM


class Right(Left):
    """Another one, which undoes nothing."""

    NAME = "right"
    PROBLEM = "raises"


class Still(Left):
    """One without a part in the transaction, which need not wait for the pause."""

    NAME = "still"
    PROBLEM = "it stays"

    def __init__(self, making: Making, shares: Sequence[Share]) -> None:
        super().__init__(making, shares)
        self.goes_first = True

    def actions(self) -> list[dict[str, Any]]:
        return []


class Qmp:
    """Notes transactions."""

    def execute(self, command: str, arguments: dict[str, Any], timeout: float) -> None:
        SAID.append(f"{command} {' '.join(each['data'] for each in arguments['actions'])}")


def disk(number: int) -> Disk:
    return Disk(device="", node=f"n{number}", qdev=f"d/{number}", serial="", file=f"/f{number}",
                format="raw", virtual_bytes=1, read_only=False, removable=False, inserted=True)


SUBJECT = Subject("web1", "/s", QemuProcess(1, 1, 5, 6, (), "u", (), "/", "/q", "/"))

MAKING = Making(SUBJECT, "p-", Path("/f"), {"id": "1", "guest": "web1", "name": "one"})


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Disk, str]]:
    SAID.clear()
    for each in (Left, Right, Still):
        monkeypatch.setitem(SCHEMES, each.NAME, each)
    names = ("right", "left", "still", "right")
    return [(disk(number), name) for number, name in enumerate(names)]


def test_each_scheme_has_its_disks_and_all_have_one_transaction(
        chosen: list[tuple[Disk, str]]) -> None:
    qmp: Any = Qmp()
    captured.check(SUBJECT, qmp, chosen)
    assert SAID == ["check right web1 n0 n3", "check left web1 n1", "check still web1 n2"]
    SAID.clear()
    estimates = captured.estimate(SUBJECT, qmp, chosen)
    assert estimates == {"n0": 5, "n1": 4, "n2": 5, "n3": 5}
    disks = captured.CapturedDisks(MAKING, chosen)
    disks.prepare(qmp)
    disks.commit(qmp, 1.0)
    assert SAID == [
        "prepare right n0 n3", "prepare left n1", "prepare still n2",
        "transaction n0 n3 n1", "commit right n0 n3", "commit left n1", "commit still n2"]
    assert disks.poll(qmp) == (False, 3, 6)
    assert disks.finish(qmp) == [
        {"node": f"n{number}", "place": number} for number in range(4)]


def test_all_are_undone_whatever_fails(chosen: list[tuple[Disk, str]]) -> None:
    qmp: Any = Qmp()
    disks = captured.CapturedDisks(MAKING, chosen)
    assert disks.undo(qmp) == "it stays; it raises"
    assert SAID == ["undo still n2", "undo left n1", "undo right n0 n3"]


def test_without_actions_there_is_no_transaction(chosen: list[tuple[Disk, str]]) -> None:
    qmp: Any = Qmp()
    disks = captured.CapturedDisks(MAKING, chosen[2:3])
    disks.commit(qmp, 1.0)
    assert SAID == ["commit still n2"]


def test_options_and_manifest_know_the_schemes_of_the_table() -> None:
    default = next(each for each in _options.SNAPSHOT if each.name == "disk_scheme")
    each = next(each for each in _options.DISKS.suboptions if each.name == "scheme")
    assert set(default.choices) == {"auto", *SCHEMES}
    assert set(each.choices) == {"auto", "none", *SCHEMES}
    assert set(manifest.SCHEMES) == set(SCHEMES)
    assert set(manifest.OUTSIDE) == set(OUTSIDE)
    assert set(OUTSIDE) == {n for n, each in SCHEMES.items() if issubclass(each, Outside)}


def test_what_a_clone_reads_is_in_the_snapshots_folder_or_was_the_guests() -> None:
    stored = {"file": "disks/0-d.qcow2", "format": "qcow2"}
    assert SCHEMES["backup"].image(Path("/s/one"), stored) == Image(
        "/s/one/disks/0-d.qcow2", "qcow2")
    covered = {"file": None, "format": "raw", "covered": "/d", "overlay": "/d.x"}
    assert SCHEMES["overlay"].image(Path("/s/one"), covered) == Image("/d", "raw")


def test_a_manifest_says_where_each_disk_is() -> None:
    check, _expected = manifest.FIELDS["disks"]
    commands = {"commands": {"key": "k", "remove": "r", "restore": "r"}}
    stored = {
        "match": "d", "device": None, "qdev": None, "node": "n", "serial": None, "format": "raw",
        "scheme": "reflink", "file": "disks/0-d.raw", "bytes": 1, "stored_bytes": 0,
        "file_bytes": 1, "source": {"file": "/d", "format": "raw"}}
    elsewhere = {**stored, "scheme": "command", "file": None}
    assert check([stored]) and check([{**elsewhere, **commands}])
    assert not check([{**stored, "file": None}])
    assert not check([elsewhere])
    assert not check([{**elsewhere, **commands, "file": "disks/0-d.raw"}])
    assert check([{**elsewhere, "scheme": "internal", "internal": "livesnap-1"}])
    assert not check([{**elsewhere, "scheme": "internal"}])
    layers = {"covered": "/d.qcow2", "overlay": "/d.qcow2.livesnap-1a2b3c4d.qcow2"}
    assert check([{**elsewhere, "scheme": "overlay", **layers}])
    # A restore in place has taken what covered it.
    assert check([{**elsewhere, "scheme": "overlay", **layers, "overlay": None}])
    for wrong in ({"covered": "d.qcow2"}, {"overlay": "/etc/passwd"}, {"covered": None}):
        assert not check([{**elsewhere, "scheme": "overlay", **layers, **wrong}])


@pytest.mark.parametrize(("names", "forgotten"), [
    (("left", "right"), ["/f"]), (("left", "still"), [])])
def test_what_captured_nothing_has_nothing_to_take_back(
    chosen: list[tuple[Disk, str]], monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...],
    forgotten: list[str],
) -> None:
    """A frozen guest alone changes nothing about what was made: commands of an operator's did not
    run."""
    forgot: list[str] = []
    monkeypatch.setattr(captured.outside, "forget", lambda folder: forgot.append(str(folder)))
    qmp: Any = Qmp()
    disks = captured.CapturedDisks(MAKING, [each for each in chosen if each[1] in names])
    disks.commit_frozen(qmp, 1.0)
    disks.undo(qmp)
    assert forgot == forgotten
    assert ("first still n2" in SAID) == ("still" in names)


def test_a_refused_removal_leaves_what_nothing_covers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mock of a snapshot with a disk of each kind, of which one cannot be merged now."""
    layer = tmp_path / "d.raw.livesnap-1a2b3c4d.qcow2"
    layer.touch()

    def refuse(*_given: object) -> None:
        raise RefusedError("the guest is off")

    disks = [{"overlay": None, "covered": str(layer)}, {"overlay": "/over", "covered": "/d"}]
    monkeypatch.setattr(uncover, "_layers", lambda _folder: disks)
    monkeypatch.setattr(uncover, "_covers", lambda *_given: ["a cover"])
    monkeypatch.setattr(uncover, "_merge", refuse)
    with pytest.raises(RefusedError):
        uncover.uncover(Store(str(tmp_path)), "web1", "one")
    assert layer.exists()
