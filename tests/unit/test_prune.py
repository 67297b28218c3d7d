# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pruning of stores on real files, without a guest: what goes, what stays, crashes, others."""

from __future__ import annotations

import collections
import multiprocessing
import os
import signal
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _prune
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    QmpConnectError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest import presence
from ansible_collections.livesnap.qemu.plugins.module_utils._options import argument_spec
from ansible_collections.livesnap.qemu.plugins.module_utils._store import (
    files,
    listing,
    rundir,
    status,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store
from dying import die_at
from test_store import fields

IMAGE = str(Path(__file__))


@pytest.fixture(autouse=True)
def own_run_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rundir, "_ROOT", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    root = tmp_path / "store"
    root.mkdir(mode=0o711)
    return Store(str(root))


def put(
    store: Store, name: str, hours: float, guest: str = "web1", image: str = IMAGE, **changed: Any
) -> Path:
    """A published snapshot that was made so many hours ago, of a guest with this disk image."""
    folder = store.begin(guest, name)
    (folder / "ram.lsnap").write_bytes(b"ram")
    (folder / "devices").write_bytes(b"de")
    (folder / "disks" / "0-d0.qcow2").write_bytes(b"disk")
    created = datetime.now(timezone.utc) - timedelta(hours=hours)
    state = {**status.default(), **changed.pop("state", {})}
    disk = {**fields()["disks"][0], "source": {"file": image, "format": "raw"}}
    about = fields(guest=guest, name=name, created=f"{created:%Y-%m-%dT%H:%M:%S.%fZ}", disks=[disk])
    return store.publish(folder, {**about, **changed}, state)


def request(store: Store, **options: Any) -> _prune.PruneRequest:
    spec = argument_spec("livesnap_prune")
    params = {name: about.get("default") for name, about in spec.items()}
    return _prune.PruneRequest.of({**params, "store": str(store.root), **options})


def prune(store: Store, apply: bool = True, **options: Any) -> dict[str, Any]:
    return _prune.prune(request(store, **options), apply)


def decided(result: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["decision"] for each in result["decisions"]}


def reasons(result: dict[str, Any], name: str) -> list[str]:
    return next(each["reasons"] for each in result["decisions"] if each["name"] == name)


def names(store: Store, guest: str = "web1") -> list[str]:
    return store.entries(guest)[0]


def test_what_is_inside_of_images_goes_in_its_turn(store: Store) -> None:
    def image(hexes: str) -> str:
        return f"/i/x.livesnap-{hexes}.qcow2"

    def inside(file: str) -> list[dict[str, Any]]:
        disk = {**fields()["disks"][0], "scheme": "internal", "internal": "s", "file": None}
        return [{**disk, "source": {"file": file, "format": "qcow2"}}]

    def over(file: str, overlay: str) -> list[dict[str, Any]]:
        disk = {**fields()["disks"][0], "scheme": "overlay", "covered": file, "overlay": overlay}
        return [{**disk, "file": None, "source": {"file": file, "format": "qcow2"}}]

    first, second = image("00000001"), image("00000002")
    put(store, "in-base", 5, disks=inside("/i/x"))
    put(store, "over-base", 4, disks=over("/i/x", first))
    put(store, "in-first", 3, disks=inside(first))
    put(store, "over-first", 2, disks=over(first, second), state={"pinned": True})
    put(store, "copy", 1)
    done = prune(store, apply=False, keep_last=1)
    assert set(decided(done).values()) == {"keep"}
    assert reasons(done, "in-base") == ["'over-first' needs it", "'over-base' needs it"]
    assert reasons(done, "over-base") == ["'in-first' needs it"]
    assert reasons(done, "in-first") == ["'over-first' needs it"]
    status.write(store.snapshot("web1", "over-first"), status.default())
    done = prune(store, apply=False, keep_last=1)
    order = [each.split("'")[1] for each in done["actions"]]
    assert order == ["over-first", "in-first", "over-base", "in-base"]


def test_removes_what_no_rule_keeps_and_predicts_it(store: Store) -> None:
    for number in range(4):
        put(store, f"s{number}", number + 1)
    predicted = prune(store, apply=False, keep_last=2)
    assert names(store) == ["s0", "s1", "s2", "s3"]
    done = prune(store, keep_last=2)
    assert names(store) == ["s0", "s1"]
    assert done == predicted
    assert done["changed"] is True
    assert decided(done) == {"s0": "keep", "s1": "keep", "s2": "remove", "s3": "remove"}
    assert done["actions"] == [
        "removed snapshot 's2' of guest 'web1'",
        "removed snapshot 's3' of guest 'web1'",
    ]
    freed = [each["freed_bytes"] for each in done["decisions"]]
    assert freed[:2] == [0, 0] and min(freed[2:]) > 0
    assert done["freed_bytes"] == sum(freed)
    assert [each["removed"] for each in done["decisions"]] == [False, False, True, True]
    assert len(done["table"]) == 5
    assert done["table"][0].split() == ["SNAPSHOT", "CREATED", "DECISION", "FREED", "REASONS"]
    assert done["diff"]["prepared"].splitlines() == done["table"]
    again = prune(store, keep_last=2)
    assert (again["changed"], again["freed_bytes"], again["actions"]) == (False, 0, [])


def test_one_guest_alone(store: Store) -> None:
    for guest in ("web1", "web2"):
        for number in range(3):
            put(store, f"s{number}", number + 1, guest)
    done = prune(store, guest="web2", keep_last=1)
    assert {each["guest"] for each in done["decisions"]} == {"web2"}
    assert (len(names(store)), len(names(store, "web2"))) == (3, 1)
    assert prune(store, guest="nobody", keep_last=1)["decisions"] == []
    with pytest.raises(LivesnapError, match=r"guest '\.\./x'"):
        request(store, guest="../x", keep_last=1)


def test_what_is_not_ours_or_not_sound_is_never_touched(store: Store) -> None:
    for number in range(3):
        put(store, f"s{number}", number + 1)
    edited = store.snapshot("web1", "s1") / "manifest.json"
    edited.write_bytes(edited.read_bytes().replace(b'"pinned"', b'"pinned "') + b" ")
    (store.snapshot("web1", "s2") / "ram.lsnap").write_bytes(b"cut")
    (store.snapshot("web1", "s2") / "status.json").write_text("{")
    for foreign in ("web1/mine", "web1/not a name", "lost+found", "Some Folder/x", "web1/.hidden"):
        (store.root / foreign).mkdir(parents=True)
        (store.root / foreign / "file").write_text("precious")
    (store.root / "web1" / "file").write_text("precious")
    before = {str(path) for path in store.root.rglob("*")}
    done = prune(store, keep_labels=["none such"], allow_empty=True)
    assert decided(done) == {"mine": "leave", "s0": "remove", "s1": "leave", "s2": "leave"}
    assert "cannot be read" in reasons(done, "mine")[0]
    assert "does not end with its checksum" in reasons(done, "s1")[0]
    left = {str(path) for path in store.root.rglob("*")}
    assert {path for path in before - left if "/s0" not in path} == set()


def test_every_file_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        put(store, f"s{number}", number + 1, f"web{number % 3}")
    read: collections.Counter[str] = collections.Counter()
    real = files.read_regular

    def counting(path: Path, limit: int) -> bytes:
        read[str(path)] += 1
        return real(path, limit)

    monkeypatch.setattr(files, "read_regular", counting)
    _prune.read(request(store, keep_last=1), store, None)
    inside = {path: count for path, count in read.items() if path.startswith(str(store.root))}
    assert len(inside) == 80
    assert set(inside.values()) == {1}


def test_one_that_cannot_be_removed_does_not_keep_others_from_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        put(store, f"s{number}", number + 1)
    real = os.rename

    def busy(source: Any, target: Any) -> None:
        if Path(source).name == "s2":
            raise OSError(16, "Device or resource busy")
        real(source, target)

    monkeypatch.setattr(os, "rename", busy)
    with pytest.raises(LivesnapError, match=r"not complete: .*/s2' cannot be removed") as failed:
        prune(store, keep_last=1)
    assert names(store) == ["s0", "s2"]
    result = failed.value.result
    by_name = {each["name"]: each for each in result["decisions"]}
    assert "busy" in by_name["s2"]["error"]
    assert [by_name[name]["removed"] for name in ("s1", "s2", "s3")] == [True, False, True]
    assert result["changed"] is True
    assert any("busy" in line for line in result["table"])
    monkeypatch.undo()
    monkeypatch.setattr(rundir, "_ROOT", store.root.parent / "run")
    assert prune(store, keep_last=1)["actions"] == ["removed snapshot 's2' of guest 'web1'"]


def test_more_than_max_remove_removes_nothing(store: Store) -> None:
    for number in range(4):
        put(store, f"s{number}", number + 1)
    for apply in (False, True):
        with pytest.raises(RefusedError, match=r"3 snapshots would be removed.*max_remove 2") as no:
            prune(store, apply, keep_last=1, max_remove=2)
        assert len(no.value.result["table"]) == 5
        assert no.value.result["changed"] is False
    assert len(names(store)) == 4
    prune(store, keep_last=1, max_remove=3)
    assert names(store) == ["s0"]
    with pytest.raises(RefusedError, match="max_remove '-1'"):
        request(store, keep_last=1, max_remove=-1)


def meanwhile(monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> None:
    """Somebody does this after all was decided, before the first removal."""
    real = _prune.removal_order

    def later(decisions: Any) -> Any:
        work()
        return real(decisions)

    monkeypatch.setattr(_prune, "removal_order", later)


def test_what_others_do_meanwhile_is_respected(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        put(store, f"s{number}", number + 1)

    def work() -> None:
        status.write(store.snapshot("web1", "s1"), {**status.default(), "pinned": True})
        store.discard(store.retire("web1", "s2"))
        store.discard(store.retire("web1", "s3"))
        put(store, "s3", 0, id="9f86d081-884c-4d65-9a2f-eaa0c55ad016")
        (store.snapshot("web1", "s4") / "manifest.json").write_bytes(b"{}")

    meanwhile(monkeypatch, work)
    done = prune(store, keep_last=1)
    assert names(store) == ["s0", "s1", "s3", "s4"]
    assert reasons(done, "s1") == ["pinned meanwhile"]
    assert reasons(done, "s3") == ["it is another one than before"]
    assert "checksum" in reasons(done, "s4")[0]
    assert done["actions"] == ["removed snapshot 's5' of guest 'web1'"]


def test_a_running_clone_keeps_what_it_stands_on(store: Store) -> None:
    for number in range(3):
        put(store, f"s{number}", number + 1)
    folder = rundir.root() / "clone" / "web1" / ".twin"
    folder.mkdir(parents=True)
    state = {**rundir.myself(), "store": str(store.root), "guest": "web1", "snapshot": "s1"}
    files.write_json(folder / "state.json", state)
    done = prune(store, keep_last=1)
    assert names(store) == ["s0", "s1"]
    assert reasons(done, "s1") == ["clones stand on it: 'twin'"]


def test_newest_and_newest_verified_stay_and_pins_count(store: Store) -> None:
    good = {"verdicts": [{"level": "structure", "result": "passed"}]}
    put(store, "s0", 1)
    put(store, "s1", 2, state=good)
    put(store, "s2", 3, state={"pinned": True})
    put(store, "s3", 4, state={"labels": ["audit"]})
    put(store, "s4", 5, state=good)
    done = prune(store, keep_labels=["audit"])
    assert names(store) == ["s0", "s1", "s2", "s3"]
    assert reasons(done, "s1") == ["the newest verified one"]
    prune(store, keep_labels=["audit"], allow_empty=True)
    assert names(store) == ["s2", "s3"]


def test_keep_when_sees_what_info_returns(store: Store) -> None:
    put(store, "s0", 1)
    put(store, "s1", 2, schedule="nightly")
    put(store, "s2", 3, state={"verdicts": [{"level": "drill", "result": "passed"}]})
    put(store, "s3", 4)
    prune(store, keep_when="schedule == 'nightly' || verdicts[?result == 'passed']")
    assert names(store) == ["s0", "s1", "s2"]
    for wrong in ("schedule ==", "contains(schedule, 'x')"):
        with pytest.raises(RefusedError, match=r"keep_when '.*'"):
            prune(store, keep_when=wrong)
    assert len(names(store)) == 3


def test_the_zone_has_to_be_known(store: Store) -> None:
    for wrong in ("Europe/Nowhere", "Europe", "../etc/passwd", ""):
        with pytest.raises(RefusedError, match="timezone"):
            request(store, keep_last=1, timezone=wrong)
    assert str(request(store, keep_last=1, timezone="Europe/Berlin").zone) == "Europe/Berlin"


def test_a_guest_without_its_images_is_gone(store: Store, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    for number in range(3):
        put(store, f"s{number}", number + 1, "old1", str(image))
        put(store, f"s{number}", number + 1, "web1")
    kept = prune(store, keep_last=1)
    assert (names(store), names(store, "old1")) == (["s0"], ["s0", "s1", "s2"])
    why = f"it does not run, and none of its disk images is there ('{image}')"
    assert kept["gone"] == [{"guest": "old1", "why": why}]
    assert kept["decisions"][1]["reasons"] == [f"its guest is gone: {why}"]
    image.touch()
    assert prune(store, apply=False, keep_last=1)["gone"] == []
    image.unlink()
    done = prune(store, keep_last=1, gone="prune")
    assert names(store, "old1") == ["s0"]
    assert done["gone"] == kept["gone"]


def test_a_guest_whose_command_line_runs_is_not_gone(tmp_path: Path) -> None:
    about = fields(disks=[])
    assert "no disk image on this machine" in presence.why_gone(about)
    raw = Path("/proc/self/cmdline").read_bytes().split(b"\0")[:-1]
    about["guest_facts"]["argv"] = [os.fsdecode(word) for word in raw]
    assert presence.why_gone(about) == ""


def test_a_domain_is_gone_when_libvirt_does_not_know_it(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = {"file": "domain.xml", "bytes": 1, "sha256": "0", "uri": "qemu:///nowhere"}
    for kind, said in (("missing", "no domain"), ("denied", "nobody can tell: no domain")):

        def find(uri: str, name: str, kind: str = kind) -> Any:
            assert (uri, name) == ("qemu:///nowhere", fields()["uuid"])
            raise QmpConnectError(kind, "no domain")

        monkeypatch.setattr(presence.Domain, "find", find)
        assert presence.why_gone({**fields(), "domain": domain}) == said


def test_two_at_once_remove_each_snapshot_once(store: Store, tmp_path: Path) -> None:
    for number in range(60):
        put(store, f"s{number}", number + 1)
    start = multiprocessing.Barrier(3)

    def work(name: str) -> None:
        start.wait()
        files.write_json(tmp_path / name, prune(store, keep_last=5))

    others = [multiprocessing.Process(target=work, args=(name,)) for name in "abc"]
    for each in others:
        each.start()
    for each in others:
        each.join()
    assert [each.exitcode for each in others] == [0, 0, 0]
    assert names(store) == sorted(f"s{number}" for number in range(5))
    assert store.entries("web1")[1] == []
    removed = [
        each["name"] for name in "abc"
        for each in files.read_object(tmp_path / name)["decisions"] if each["removed"]
    ]  # fmt: skip
    assert len(removed) == len(set(removed))


def test_killed_at_any_step_the_next_run_finishes(store: Store) -> None:
    step, finished, recovered = 0, False, []
    while not finished:
        for number in range(4):
            if f"s{number}" not in names(store):
                put(store, f"s{number}", number + 1)
        pid = os.fork()
        if pid == 0:
            try:
                die_at(step)
                prune(store, keep_last=2)
                os._exit(0)
            finally:
                os._exit(1)
        ended = os.waitpid(pid, 0)[1]
        finished = ended == 0
        assert finished or os.WTERMSIG(ended) == signal.SIGKILL
        done = prune(store, keep_last=2)
        assert store.entries("web1") == (["s0", "s1"], [])
        for name in ("s0", "s1"):
            assert listing.look(store, "web1", name)["problem"] is None
            assert (store.snapshot("web1", name) / "disks" / "0-d0.qcow2").read_bytes() == b"disk"
        assert prune(store, keep_last=2)["changed"] is False
        recovered += done["recovered"]
        step += 1
        assert step < 200
    # Two removals, each with its renames, files and folders.
    assert step > 15
    assert "removed unfinished snapshot 's2' of guest 'web1'" in recovered
