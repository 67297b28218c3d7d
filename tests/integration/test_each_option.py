# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each option of the modules, used through Ansible; tests/options.yml names them all."""

from __future__ import annotations

import importlib
import json
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from guests import CLONE, HOST_INFO, INFO, MODULE, RECOVER, SMALL, VERIFY, entry, files, info
from lab import DiskSpec, Guest
from runs import Controller, Run, local, play

TYPES: dict[str, Any] = {
    "str": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict,
}  # fmt: skip


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """With two disks, so that they can be told apart."""
    with Guest(**SMALL, disks=(DiskSpec(64), DiskSpec(64))) as running:
        yield running


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for the module: a test names its snapshots after itself."""
    folder = tmp_path_factory.mktemp("store")
    folder.chmod(0o711)
    return folder


@pytest.fixture(scope="module")
def whole(prepared: Controller, guest: Guest, store: Path) -> dict[str, Any]:
    """The result of a snapshot that has everything."""
    return take(
        prepared, guest, store, "whole", compression="zstd", compression_level=1, engine="uffd",
        disk_scheme="backup", schedule="hourly", slot="2026-11-23T01:00:00Z", labels=["one"],
        pinned=False, disks=[{"match": "disk0"}, {"match": "disk1", "scheme": "backup"}],
    ).good().one()  # fmt: skip


def asked(guest: Guest, where: Path, name: str, **options: Any) -> dict[str, Any]:
    """The arguments of module livesnap; `instead` are those that take the place of usual ones."""
    given = {**entry(guest, "web1"), "guest": "web1", "store": str(where), "name": name}
    return {**given, **options.pop("instead", {}), **options}


def snapshot(guest: Guest, where: Path, name: str, **options: Any) -> dict[str, Any]:
    """The task that takes one."""
    return {"name": "Snapshot", MODULE: asked(guest, where, name, **options)}


def refused(task: dict[str, Any]) -> dict[str, Any]:
    """A task that fails, and does not end the play."""
    return {**task, "ignore_errors": True}


def planned(task: dict[str, Any]) -> dict[str, Any]:
    """A task in check mode."""
    return {**task, "check_mode": True}


def there(path: Path) -> dict[str, Any]:
    """A task that looks whether something is there; its result is read by `seen`."""
    return {"name": "Look", "ansible.builtin.stat": {"path": str(path), "get_checksum": False}}


def seen(run: Run) -> list[bool]:
    """What the tasks of `there` found, in order."""
    return [each["stat"]["exists"] for each in run.of("ansible.builtin.stat")]


def take(
    controller: Controller, guest: Guest, where: Path, name: str, *more: str, **options: Any
) -> Run:
    return controller.playbook(local(), play(snapshot(guest, where, name, **options)), *more)


def undocumented(documented: dict[str, Any], found: dict[str, Any], path: str = "") -> list[str]:
    """What differs between documentation and result, by name and type."""
    wrong = [f"{path}{key} is not documented" for key in found if key not in documented]
    for key, about in documented.items():
        if key not in found:
            wrong.append(f"{path}{key} is missing")
            continue
        value = found[key]
        if value is None or about["type"] == "raw":
            continue
        if not isinstance(value, TYPES[about["type"]]):
            wrong.append(f"{path}{key} is {value!r} and not of type {about['type']}")
        elif "contains" in about and isinstance(value, dict):
            wrong += undocumented(about["contains"], value, f"{path}{key}.")
        elif "contains" in about and value:
            wrong += undocumented(about["contains"], value[0], f"{path}{key}[].")
    return wrong


def returned(module: str) -> dict[str, Any]:
    found = importlib.import_module(f"ansible_collections.livesnap.qemu.plugins.modules.{module}")
    documented: dict[str, Any] = yaml.safe_load(found.RETURN)
    return documented


def own(result: dict[str, Any]) -> dict[str, Any]:
    """Without what Ansible itself puts into every result."""
    ansibles = {"changed", "diff", "invocation", "warnings", "failed", "ansible_facts"}
    return {key: value for key, value in result.items() if key not in ansibles and key[0] != "_"}


def test_result_is_as_documented(whole: dict[str, Any]) -> None:
    assert undocumented(returned("livesnap"), own(whole)) == []


def test_values_of_the_result(whole: dict[str, Any], guest: Guest, store: Path) -> None:
    snapshot = whole["snapshot"]
    manifest = json.loads((Path(snapshot["path"]) / "manifest.json").read_text())
    # Only who checks a snapshot needs them.
    assert all(disk.pop("checksums")["sha256"] for disk in manifest["disks"])
    for key in ("id", "created", "timings", "disks", "consistency", "restore_blockers"):
        assert snapshot[key] == manifest[key], key
    assert (snapshot["guest"], snapshot["name"]) == ("web1", "whole")
    assert snapshot["uuid"] == guest.uuid
    assert snapshot["path"] == f"{store}/web1/whole"
    assert snapshot["complete"] is True
    assert snapshot["consistency"]["level"] == "filesystem"
    assert snapshot["engine"] == "uffd"
    assert [disk["scheme"] for disk in snapshot["disks"]] == ["backup", "backup"]
    assert (snapshot["schedule"], snapshot["slot"]) == ("hourly", "2026-11-23T01:00:00Z")
    assert (snapshot["labels"], snapshot["pinned"]) == (["one"], False)
    memory = snapshot["memory"]
    assert memory["compression"] == "zstd"
    assert memory["bytes"] > 128 << 20
    assert 0 < memory["stored_bytes"] < memory["bytes"] - memory["zero_bytes"]
    assert memory["staging_bytes"] >= 32 << 20
    assert whole["actions"] == ["took snapshot 'whole' of guest 'web1'"]
    assert whole["recovered"] == []


def test_labels_and_pin_of_what_is_there(
    prepared: Controller, guest: Guest, store: Path, whole: dict[str, Any]
) -> None:
    before = files(store)
    change = {"labels": ["two"], "pinned": True}
    predicted = take(prepared, guest, store, "whole", "--check", **change).good().one()
    assert files(store) == before
    tasks = (snapshot(guest, store, "whole", **change), snapshot(guest, store, "whole"))
    done, left = prepared.playbook(local(), play(*tasks)).good().of(MODULE)
    for result in (predicted, done):
        assert result["changed"] is True
        assert result["diff"]["before"] == {"labels": ["one"], "pinned": False}
        assert result["diff"]["after"] == change
    assert left["changed"] is False
    assert left["snapshot"]["labels"] == ["two"]
    assert left["snapshot"]["id"] == whole["snapshot"]["id"]


def test_without_memory_and_what_cannot_be_had_later(
    prepared: Controller, guest: Guest, store: Path
) -> None:
    disks = [{"match": "disk1", "scheme": "none"}]
    options: dict[str, Any] = {"memory": False, "freeze": "never", "disks": disks}
    lacking = ({"memory": True}, {"memory": False, "freeze": "required"})
    taken, *others = prepared.playbook(local(), play(
        snapshot(guest, store, "disks", **options),
        *(refused(snapshot(guest, store, "disks", **more)) for more in lacking),
    )).good().of(MODULE)  # fmt: skip
    found = taken["snapshot"]
    assert (found["memory"], found["engine"], found["timings"]["freeze_ms"]) == (None, None, None)
    assert [disk["node"] for disk in found["disks"]] == ["disk0"]
    assert not (Path(found["path"]) / "ram.lsnap").exists()
    assert len(others) == len(lacking)
    for other in others:
        assert other["_outcome"] == "failed" and "less than what is asked" in other["msg"]


def test_compression_level_and_none(
    prepared: Controller, guest: Guest, store: Path, whole: dict[str, Any]
) -> None:
    plain, dense = prepared.playbook(local(), play(
        snapshot(guest, store, "plain", compression="none", freeze="never"),
        snapshot(guest, store, "dense", compression="zstd", compression_level=7, freeze="never"),
    )).good().of(MODULE)  # fmt: skip
    sizes = [each["snapshot"]["memory"]["stored_bytes"] for each in (plain, whole, dense)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_timeout_and_bandwidth_abort_the_sweep(
    prepared: Controller, guest: Guest, store: Path
) -> None:
    since = time.monotonic()
    slow = take(
        prepared, guest, store, "slow", bandwidth="1M", timeout=2, freeze="never", staging="16M"
    )
    assert slow.code != 0
    assert "2 s" in slow.one()["msg"]
    assert time.monotonic() - since < 90
    assert not (store / "web1" / "slow").exists()
    assert not (store / "web1" / "slow.partial").exists()
    guest.counts()


def test_progress_is_shown_at_steps_and_not_with_async(
    prepared: Controller, guest: Guest, store: Path
) -> None:
    slow: dict[str, Any] = {"bandwidth": "12M", "compression": "none", "freeze": "never"}
    shown = take(prepared, guest, store, "shown", **slow).good()
    percents = [int(each) for each in re.findall(r"snapshot shown of web1: (\d+) %", shown.text)]
    assert percents
    assert percents == sorted(percents)
    assert shown.one()["snapshot"]["complete"] is True
    assert "ansible_job_id" not in shown.one()
    given = {**entry(guest, "web1"), "guest": "web1", "store": str(store), "name": "later"}
    task = {"name": "Snapshot", MODULE: {**given, "freeze": "never"}, "async": 120, "poll": 2}
    later = prepared.playbook(local(), play(task)).good()
    assert "snapshot later of web1" not in later.text
    assert (store / "web1" / "later" / "manifest.json").exists()


def test_freeze_timeout_bounds_a_hung_agent(
    prepared: Controller, guest: Guest, store: Path
) -> None:
    guest.command("agent hung")
    try:
        run = take(prepared, guest, store, "hung", freeze="required", freeze_timeout=1, deadline=4)
    finally:
        guest.command("agent run")
    assert run.code != 0
    assert "1 s" in run.one()["msg"]


def test_a_long_deadline_warns(prepared: Controller, guest: Guest, store: Path) -> None:
    run = take(prepared, guest, store, "late", "--check", deadline=11).good()
    assert "deadline 11 s is above 9 s" in run.text
    assert run.one()["snapshot"]["id"] is None


def test_lock_timeout_is_how_long_another_run_is_waited_for(
    prepared: Controller, guest: Guest, store: Path
) -> None:
    start_time = Path(f"/proc/{guest.pid}/stat").read_text().rpartition(")")[2].split()[19]
    lock = Path("/run/livesnap/lock") / f"{guest.pid}-{start_time}"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(["flock", str(lock), "sleep", "60"]) as holder:
        time.sleep(0.5)
        run = take(prepared, guest, store, "locked", lock_timeout=1, freeze="never")
        holder.kill()
    # The shell's child keeps the lock as long as it lives.
    subprocess.run(["fuser", "-k", str(lock)], check=False, capture_output=True)
    assert run.code != 0
    assert "1 s" in run.one()["msg"]
    lock.unlink(missing_ok=True)


IMPOSSIBLE: list[tuple[str, Any, str]] = [
    ("staging", "much", "staging 'much'"),
    ("reserve", "101%", "reserve '101%'"),
    ("workers", -1, "workers '-1'"),
    ("engine", "magic", "magic"),
    ("disk_scheme", "mirror", "mirror"),
    ("ksm", "ignore", "ignore"),
    ("qmp_socket", "/nowhere/qmp.sock", "/nowhere/qmp.sock"),
    ("agent_socket", "relative", "relative"),
    ("store", "/nowhere/store", "/nowhere/store"),
    ("guest", "a/b", "a/b"),
    ("name", "x.partial", "x.partial"),
]


def test_values_that_cannot_be_are_quoted(prepared: Controller, guest: Guest, store: Path) -> None:
    before = files(store)
    tasks = [
        {
            "name": f"Give {option} a value that it cannot have",
            MODULE: asked(guest, store, "wrong", freeze="required", instead={option: value}),
            "ignore_errors": True,
        }
        for option, value, _word in IMPOSSIBLE
    ]
    results = prepared.playbook(local(), play(*tasks)).of(MODULE)
    assert len(results) == len(IMPOSSIBLE)
    for result, (option, _value, word) in zip(results, IMPOSSIBLE, strict=True):
        assert result["_outcome"] == "failed" and word in result["msg"], (option, result["msg"])
    assert files(store) == before


def test_absent(prepared: Controller, guest: Guest, store: Path) -> None:
    task = {"name": "Remove", MODULE: {
        "guest": "web1", "name": "gone", "store": str(store), "state": "absent"}}  # fmt: skip
    look = there(store / "web1" / "gone")
    run = prepared.playbook(local(), play(
        snapshot(guest, store, "gone", memory=False, freeze="never"),
        planned(task), look, task, look, task,
    )).good()  # fmt: skip
    assert [each["changed"] for each in run.of(MODULE)] == [True, True, True, False]
    assert seen(run) == [True, False]


def test_info(prepared: Controller, store: Path, whole: dict[str, Any]) -> None:
    of_guests = (({"guest": "web1"}, True), ({"guest": "nobody"}, False), ({}, True))
    run = prepared.playbook(local(), play(
        *(info(store, **options) for options, _expected in of_guests),
        info(store, query="[?name=='whole'].engine"),
        refused(info(store, query="[?")),
    )).good()  # fmt: skip
    *listed, queried, wrong = run.of(INFO)
    for found, (_options, expected) in zip(listed, of_guests, strict=True):
        assert ("whole" in [each["name"] for each in found["snapshots"]]) is expected
    snapshot = next(each for each in listed[-1]["snapshots"] if each["name"] == "whole")
    documented = returned("livesnap_info")["snapshots"]["contains"]
    of_snapshot = returned("livesnap")["snapshot"]["contains"]
    assert undocumented({**of_snapshot, **documented}, snapshot) == []
    assert queried["query_result"] == ["uffd"]
    assert wrong["_outcome"] == "failed" and "'[?'" in wrong["msg"]


def test_verify(prepared: Controller, guest: Guest, store: Path, whole: dict[str, Any]) -> None:
    take(prepared, guest, store, "proven", freeze="never").good()
    given = {"guest": "web1", "snapshot": "proven", "store": str(store), "level": "checksum"}

    def task(**options: Any) -> dict[str, Any]:
        return {"name": "Verify", VERIFY: {**given, **options}}

    before = files(store)
    sizes = {"drill_memory": "1G", "drill_cpus": 1, "drill_timeout": 60, "commands": []}
    checked = play(task(lock_timeout=1, **sizes))
    predicted = prepared.playbook(local(), checked, "--check").good().one(VERIFY)
    assert (predicted["changed"], predicted["verdict"]) == (True, None)
    assert files(store) == before
    run = prepared.playbook(local(), play(task(), info(store), task(), task(max_age="0h"))).good()
    done, again, aged = run.of(VERIFY)
    assert undocumented(returned("livesnap_verify"), own(done)) == []
    assert done["verdict"]["result"] == "passed"
    snapshot = next(each for each in run.one(INFO)["snapshots"] if each["name"] == "proven")
    assert snapshot["verdicts"] == [done["verdict"]]
    assert (again["changed"], aged["changed"]) == (False, True)
    image = store / "web1" / "proven" / "ram.lsnap"
    with image.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    bad = prepared.playbook(local(), play(task(max_age="0h")))
    assert bad.code != 0
    assert "did not pass 'checksum'" in bad.one(VERIFY)["msg"]
    assert bad.one(VERIFY)["verdict"]["result"] == "failed"


def test_clone(prepared: Controller, store: Path, whole: dict[str, Any]) -> None:
    def task(**options: Any) -> dict[str, Any]:
        given = {"guest": "web1", "store": str(store), "name": "look", **options}
        return {"name": "Clone", CLONE: given}

    wanted = {"snapshot": "whole", "lazy": False, "network": False}
    other = refused(task(**{**wanted, "network": True}))
    try:
        predicted, made, again, told = prepared.playbook(local(), play(
            planned(task(**wanted)), task(**wanted), task(**wanted), other,
        )).good().of(CLONE)  # fmt: skip
        assert (predicted["changed"], predicted["pid"]) == (True, None)
        assert undocumented(returned("livesnap_clone"), own(made)) == []
        assert Path(made["agent_socket"]).is_socket()
        assert (made["running"], made["lazy"], len(made["overlays"])) == (True, False, 2)
        assert (again["changed"], again["pid"]) == (False, made["pid"])
        assert told["_outcome"] == "failed" and "is there already" in told["msg"]
    finally:
        gone = prepared.playbook(local(), play(task(state="absent"))).good().one(CLONE)
    assert gone["changed"] is True
    assert gone["diff"]["after"] == {"state": "absent"}
    assert not Path(made["qmp_socket"]).parent.exists()


def test_recover(prepared: Controller, store: Path, whole: dict[str, Any]) -> None:
    left = store / "web1" / "torn.partial"
    left.mkdir(mode=0o711)
    given = {"store": str(store), "guest": "web1", "state": "recovered"}
    task = {"name": "Recover", RECOVER: given}
    run = prepared.playbook(local(), play(planned(task), there(left), task, there(left), task))
    predicted, done, again = run.good().of(RECOVER)
    assert predicted["changed"] is True
    assert "torn" in predicted["recovered"][0]
    assert seen(run) == [True, False]
    assert undocumented(returned("livesnap_recover"), own(done)) == []
    assert done["changed"] is True
    assert done["actions"] == done["recovered"]
    assert again["changed"] is False


def test_host_info(prepared: Controller, guest: Guest, store: Path, tmp_path: Path) -> None:
    def ask(where: Path, *guests: dict[str, Any], **options: Any) -> Run:
        given = {"guests": list(guests), "store": str(where), "uri": "qemu:///system?socket=/nil"}
        return prepared.playbook(
            local(),
            play({"name": "Ask", HOST_INFO: {**given, **options}}),
            *(["--check"] if where is tmp_path else []),
        )

    silent = {key: value for key, value in entry(guest, "web2").items() if key != "agent_socket"}
    gone = {"name": "gone", "qmp_socket": str(tmp_path / "nothing")}
    before = files(store)
    result = ask(store, entry(guest, "web1"), silent, gone).good().one(HOST_INFO)
    assert undocumented(returned("livesnap_host_info"), own(result)) == []
    assert result["changed"] is False and files(store) == before
    host = result["host"]
    assert host["versions"]["kernel"] == host["kernel"]["release"] == platform.release()
    assert host["versions"]["helper"].startswith("livesnap-helper ")
    assert all(host["versions"]["packages"].values())
    assert 0 < host["memory"]["available_bytes"] < host["memory"]["total_bytes"]
    assert host["store"]["path"] == str(store) and host["store"]["free_bytes"] > 0
    assert "/nil" in host["libvirt"]["problem"] and host["versions"]["libvirt"] is None
    web1, web2, other = host["guests"]
    assert (web1["uuid"], web1["state"], web1["problem"]) == (guest.uuid, "running", None)
    assert web1["qemu_version"] == host["versions"]["qemu"] == host["versions"]["qemu_img"]
    assert web1["engines"]["uffd"] == web1["schemes"]["backup"] == {"possible": True, "reasons": []}
    assert web1["freeze"] == {"possible": True, "reason": None}
    assert web2["freeze"] == {"possible": False, "reason": "no agent_socket was given"}
    assert str(tmp_path) in other["problem"] and other["state"] == "unknown"
    assert other["engines"]["uffd"] == {"possible": False, "reasons": [other["problem"]]}
    checked = ask(tmp_path, entry(guest, "web1")).good().one(HOST_INFO)["host"]["guests"][0]
    assert checked == web1
    wrong = (
        {"select": "@", "uri": "qemu:///system?socket=/nil"},
        {"select": "@", "uri": "xen:///"},
        {"guests": [{**gone, "name": "web/1"}]},
    )
    failed = prepared.playbook(
        local(), play(*({"name": "Fails", HOST_INFO: each} for each in wrong), ignore_errors=True)
    )
    for found, word in zip(failed.of(HOST_INFO), ("/nil", "uri 'xen:///'", "'web/1'"), strict=True):
        assert found["_outcome"] == "failed" and word in found["msg"]
