# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every EXAMPLES block runs as it stands, against a real guest where the examples say it is."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from guests import MODULE, SMALL
from lab import DiskSpec, Guest
from runs import REPO, Controller, local, play

WHERE = Path("/run/guests")
MODULES = sorted(path.stem for path in (REPO / "plugins" / "modules").glob("livesnap*.py"))


def examples(kind: str, name: str) -> list[dict[str, Any]]:
    found = importlib.import_module(f"ansible_collections.livesnap.qemu.plugins.{kind}.{name}")
    tasks: list[dict[str, Any]] = yaml.safe_load(found.EXAMPLES)
    return tasks


@pytest.fixture(scope="module")
def web1() -> Iterator[Guest]:
    """The guest of the examples, at the place that they name."""
    if WHERE.exists():
        pytest.skip(f"{WHERE} exists on this machine")
    with Guest(**SMALL, disks=(DiskSpec(64), DiskSpec(64))) as guest:
        try:
            (WHERE / "web1").mkdir(parents=True)
            (WHERE / "web1" / "qmp.sock").symlink_to(guest.qmp_path)
            (WHERE / "web1" / "agent.sock").symlink_to(str(guest.agent_path))
            yield guest
        finally:
            shutil.rmtree(WHERE)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples: later ones use what earlier ones have made."""
    folder = tmp_path_factory.mktemp("store")
    folder.chmod(0o711)
    return folder


def with_store(store: Path) -> dict[str, Any]:
    """The action group takes what all its modules have in common."""
    return {"module_defaults": {"group/livesnap.qemu.livesnap": {"store": str(store)}}}


def run(controller: Controller, store: Path, tasks: list[dict[str, Any]]) -> dict[str, Any]:
    done = controller.playbook(local(), play(*tasks, **with_store(store))).good()
    return {line["task"]: line["result"] for line in done.results}


def test_livesnap(prepared: Controller, web1: Guest, store: Path) -> None:
    tasks = examples("modules", "livesnap")
    # The scratch disk of the example is the second one here.
    tasks[2][MODULE]["disks"][0]["match"] = "disk1"
    found = run(prepared, store, tasks[:3])
    first, pinned, disks = (found[task["name"]]["snapshot"] for task in tasks[:3])
    assert first["engine"] == "uffd"
    assert len(first["disks"]) == 2
    assert pinned["labels"] == ["audit"]
    assert pinned["pinned"] is True
    assert pinned["memory"]["compression"] == "zstd"
    assert disks["memory"] is None
    assert [disk["node"] for disk in disks["disks"]] == ["disk0"]


def test_livesnap_by_another_scheme(prepared: Controller, web1: Guest, store: Path) -> None:
    """It works where files can be cloned (tests/guests/test_reflink.py), and says why elsewhere."""
    task = examples("modules", "livesnap")[3]
    task[MODULE]["disks"][0]["match"] = "disk1"
    probe = store / "probe"
    cloned = ["cp", "--reflink=always", str(web1.disk_paths[1]), str(probe)]
    can = subprocess.run(cloned, capture_output=True, check=False).returncode == 0
    probe.unlink(missing_ok=True)
    done = prepared.playbook(local(), play(task, **with_store(store)))
    if can:
        disks = done.good().one()["snapshot"]["disks"]
        assert [disk["scheme"] for disk in disks] == ["backup", "reflink"]
    else:
        said = done.one()["msg"]
        assert done.code == 2 and "disk1' cannot be captured by scheme 'reflink'" in said, said


def test_livesnap_info(prepared: Controller, web1: Guest, store: Path) -> None:
    found = run(prepared, store, examples("modules", "livesnap_info"))
    listed, query = found.values()
    assert [each["name"] for each in listed["snapshots"]] == [
        "disks-only", "month-end", "before-upgrade",
    ]  # fmt: skip
    assert query["query_result"] == [["web1", "month-end"]]


def test_livesnap_host_info(prepared: Controller, web1: Guest, store: Path) -> None:
    # The one with select needs a libvirt: see test_libvirt.py.
    found = run(prepared, store, examples("modules", "livesnap_host_info")[:2])
    alone, asked = found.values()
    assert alone["host"]["guests"] == []
    assert asked["host"]["guests"][0]["engines"]["uffd"]["possible"] is True


def test_livesnap_verify(prepared: Controller, web1: Guest, store: Path) -> None:
    found = run(prepared, store, examples("modules", "livesnap_verify"))
    checked, looked, drilled, monthly = found.values()
    assert [each["changed"] for each in found.values()] == [True, True, True, False]
    assert drilled["verdict"] == monthly["verdict"]
    assert {each["verdict"]["result"] for each in found.values()} == {"passed"}
    (probe,) = looked["verdict"]["evidence"]["memory"]["probes"]
    assert probe["name"] == "kernel" and checked["verdict"]["level"] == "structure"


def test_livesnap_clone(prepared: Controller, web1: Guest, store: Path) -> None:
    # The third is of a libvirt domain: test_libvirt.py.
    found = run(prepared, store, examples("modules", "livesnap_clone")[:2])
    started, gone = found.values()
    assert started["running"] is True
    assert started["changed"] is gone["changed"] is True
    assert gone["pid"] is None
    assert not Path(started["qmp_socket"]).exists()


def test_livesnap_recover(prepared: Controller, web1: Guest, store: Path) -> None:
    found = run(prepared, store, examples("modules", "livesnap_recover"))
    assert [each["recovered"] for each in found.values()] == [[], [], []]
    flattened = list(found.values())[-1]
    assert {each.partition(" 'livesnap-")[0] for each in flattened["actions"]} == {
        "removed dirty bitmap"
    }


def test_livesnap_prune(prepared: Controller, web1: Guest, store: Path) -> None:
    found = run(prepared, store, examples("modules", "livesnap_prune"))
    seen, pruned = found.values()
    names = {"disks-only", "month-end", "before-upgrade"}
    for result in (seen, pruned):
        assert {each["name"] for each in result["decisions"]} == names
        assert {each["decision"] for each in result["decisions"]} == {"keep"}
    assert "keep_labels audit" in pruned["decisions"][1]["reasons"]


def test_livesnap_metrics(prepared: Controller, web1: Guest, store: Path, tmp_path: Path) -> None:
    (task,) = examples("modules", "livesnap_metrics")
    task["livesnap.qemu.livesnap_metrics"]["path"] = str(tmp_path / "livesnap.prom")
    found = run(prepared, store, [task])[task["name"]]
    assert 'guest="web1"' in found["metrics"]


def test_livesnap_wait(prepared: Controller, web1: Guest, store: Path) -> None:
    # Here both names are of one guest, which has its snapshots one after the other.
    (WHERE / "db1").symlink_to("web1")
    found = run(prepared, store, examples("modules", "livesnap_wait"))
    waited = found["Wait for both, for an hour at most"]
    assert {job["guest"] for job in waited["ended"]} == {"web1", "db1"}
    names = {job["result"]["snapshot"]["name"] for job in waited["ended"]}
    assert names == {"before-upgrade"} and waited["running"] == []
    shutil.rmtree(store / "db1")


def test_livesnap_restore(prepared: Controller, web1: Guest, store: Path) -> None:
    found = run(prepared, store, examples("modules", "livesnap_restore"))
    done, planned = found.values()
    os.kill(done["pid"], signal.SIGKILL)
    assert planned["pid"] == done["pid"]
    assert (store / "web1" / done["kept"]).is_dir()
    assert not (store / "web1" / planned["kept"]).exists()


def test_livesnap_removes_what_it_took(prepared: Controller, web1: Guest, store: Path) -> None:
    task = examples("modules", "livesnap")[4]
    assert run(prepared, store, [task])[task["name"]]["changed"] is True
    assert not (store / "web1" / "before-upgrade").exists()
    assert run(prepared, store, [task])[task["name"]]["changed"] is False


def test_livesnap_helper(prepared: Controller, store: Path) -> None:
    found = run(prepared, store, examples("modules", "livesnap_helper"))
    assert all(each["version"] for each in found.values())


def test_filters(prepared: Controller, store: Path, tmp_path: Path) -> None:
    tasks = {
        name: examples("filter", name)[0] for name in ("slot", "simulate", "to_check", "report")
    }
    tasks["report"]["ansible.builtin.copy"]["dest"] = str(tmp_path / "report.html")
    found = run(prepared, store, list(tasks.values()))
    said = {name: found[task["name"]].get("msg") for name, task in tasks.items()}
    assert said["slot"]["name"].endswith("Z")
    assert said["simulate"][0] == "168 snapshots taken, 12 left at the end, 12 at most"
    assert said["to_check"] == []
    assert "no snapshot of any guest" in (tmp_path / "report.html").read_text()


def test_no_block_is_left_out() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_livesnap")}
    assert set(MODULES) <= tested
