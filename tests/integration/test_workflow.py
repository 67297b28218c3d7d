# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The workflow of AWX jobs, by ansible-runner, over three hypervisors of which not all is well."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.steps import FAULT_POINTS
from guests import SMALL, entry
from hypervisors import Hypervisor, hypervisors
from lab import Guest
from runs import VENV, Controller

SLOT = "20261123T0100Z"


class Runner:
    """ansible-runner with a folder of its own, as an execution environment has one."""

    def __init__(self, controller: Controller, checkout: Path, folder: Path) -> None:
        self.controller, self.checkout, self.folder = controller, checkout, folder
        (folder / "inventory").mkdir(parents=True)

    def run(self, playbook: str, hosts: dict[str, Any], **variables: Any) -> tuple[int, str]:
        """Exit code and output of a playbook over these hosts."""
        self._inventory(hosts, variables)
        done = self.controller.command(
            str(VENV / "ansible-runner"), "run", str(self.folder), "--ident", playbook,
            "-p", self._path(playbook))
        return done.returncode, done.stdout

    @contextlib.contextmanager
    def started(
        self, playbook: str, hosts: dict[str, Any], **variables: Any
    ) -> Iterator[subprocess.Popen[bytes]]:
        """The same by ansible-playbook, with a session of its own; its words go nowhere."""
        self._inventory(hosts, variables)
        argv = [VENV / "ansible-playbook", "-i", self.folder / "inventory", self._path(playbook)]
        ansible = subprocess.Popen(
            argv, env=self.controller.environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield ansible
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(ansible.pid, signal.SIGKILL)
            ansible.wait(10)

    def _path(self, playbook: str) -> str:
        return str(self.checkout / "playbooks" / f"{playbook}.yml")

    def _inventory(self, hosts: dict[str, Any], variables: dict[str, Any]) -> None:
        inventory = {"hypervisors": {"hosts": hosts, "vars": variables}}
        (self.folder / "inventory" / "hosts.yml").write_text(yaml.safe_dump(inventory))

    def artifacts(self, playbook: str) -> dict[str, Any]:
        """What the job hands on to the next."""
        for path in (self.folder / "artifacts" / playbook / "job_events").glob("*.json"):
            event = json.loads(path.read_text())
            if event["event"] == "playbook_on_stats":
                found: dict[str, Any] = event["event_data"]["artifact_data"]
                return found
        raise AssertionError(f"no statistics of {playbook}")


@pytest.fixture(scope="module")
def six() -> Iterator[list[Guest]]:
    """Two guests of each hypervisor; the agent of the fourth one hangs."""
    with ExitStack() as stack:
        made = [stack.enter_context(Guest(**SMALL)) for _guest in range(5)]
        yield [*made[:3], stack.enter_context(Guest(**SMALL, agent="hung")), *made[3:]]


@pytest.fixture(scope="module")
def runner(
    controller: Controller, checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> Runner:
    return Runner(controller, checkout, tmp_path_factory.mktemp("runner"))


@pytest.fixture(scope="module")
def three(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Hypervisor]]:
    """All of them are prepared, and the last one is down by now."""
    with hypervisors(3, tmp_path_factory.mktemp("hypervisors")) as made:
        for each in made:
            each.start()
        code, text = runner.run("host", {each.name: each.variables() for each in made})
        assert code == 0 and text.count("failed=0") == 3, text
        made[2].stop()
        yield made


def test_what_is_well_succeeds_and_the_rest_is_said(
    runner: Runner, six: list[Guest], three: list[Hypervisor], tmp_path: Path
) -> None:
    one, two, down = three
    fine, locked, other, hung, far, away = six
    stores = [tmp_path / f"store{number}" for number in range(3)]
    for store in stores:
        store.mkdir(mode=0o711)
    guests = (
        [entry(fine, "fine"), entry(locked, "locked", lock_timeout=2)],
        [entry(other, "other"), entry(hung, "hung", freeze="required")],
        [entry(far, "far"), entry(away, "away")],
    )
    hosts = {
        f"hv{number + 1}": hypervisor.variables(
            livesnap_guests=guests[number], livesnap_store=str(stores[number]),
            livesnap_metrics=str(stores[number] / "livesnap.prom"))
        for number, hypervisor in enumerate((one, two, down))
    }
    with locked.qmp():
        code, text = runner.run("snapshot", hosts, snapshot_slot=SLOT)
    assert code != 0
    told = runner.artifacts("snapshot")["livesnap_outcomes"]
    assert {host: {guest: each["outcome"] for guest, each in found.items()}
            for host, found in told.items()} == {
        "hv1": {"fine": "taken", "locked": "failed"}, "hv2": {"other": "taken", "hung": "failed"}}
    for words in ("FAILED     locked: ", "FAILED     hung: ", "hv3"):
        assert words in text, text
    for number, (good, bad) in enumerate((("fine", "locked"), ("other", "hung"))):
        metrics = (stores[number] / "livesnap.prom").read_text()
        assert f'livesnap_last_run_failed{{guest="{bad}"}} 1' in metrics
        assert f'livesnap_runs_total{{guest="{good}",outcome="taken"}} 1' in metrics
    # The next steps of the workflow are for what is there.
    for playbook, given in (("prune", {"livesnap_keep_last": 1}),
                            ("verify", {"livesnap_level": "checksum"})):
        code, text = runner.run(playbook, hosts, **given)
        assert "hv3" in text and "unreachable=1" in text
        assert text.count("failed=0") == 3, text
    for store, name in zip(stores, ("fine", "other")):
        state = json.loads((store / name / f"hourly-{SLOT}" / "status.json").read_text())
        assert [each["result"] for each in state["verdicts"]] == ["passed"]
    assert list(stores[2].iterdir()) == []
    for guest in (fine, locked, other, far, away):
        guest.counts()


def cut(hypervisor: Hypervisor, _ansible: subprocess.Popen[bytes]) -> None:
    """The controller is there, and cannot reach it."""
    hypervisor.cut()


def kill(_hypervisor: Hypervisor, ansible: subprocess.Popen[bytes]) -> None:
    """The controller is gone."""
    os.killpg(ansible.pid, signal.SIGKILL)


#: Step of the bracket, and what happens to those who asked for it.
CASES = list(itertools.product(FAULT_POINTS, (cut, kill)))
if os.environ.get("ROUNDS", "short") == "short":
    CASES = [("before", kill), ("freeze", cut), ("disks", kill), ("thaw", cut), ("sweep", kill),
             ("publish", cut)]


@pytest.mark.parametrize(("step", "how"), CASES)
def test_nobody_is_there_any_more(
    runner: Runner, six: list[Guest], three: list[Hypervisor], store: Path, step: str,
    how: Callable[[Hypervisor, subprocess.Popen[bytes]], None],
) -> None:
    """The hypervisor ends what it was told, and the next run finds it."""
    hypervisor, guest = three[0], six[0]

    def hosts(stops_at: str = "") -> dict[str, Any]:
        return {"hv1": hypervisor.variables(
            stops_at, livesnap_guests=[entry(guest, "fine")], livesnap_store=str(store))}

    with runner.started("snapshot", hosts(step), snapshot_slot=SLOT) as ansible:
        end = time.monotonic() + 60
        while not (owner := hypervisor.stopped_owner(guest.pid)):
            assert ansible.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        how(hypervisor, ansible)
        os.kill(owner, signal.SIGCONT)
        # One whose connections were cut asks again, and may end well.
        ansible.wait(60)
    manifest = store / "fine" / f"hourly-{SLOT}" / "manifest.json"
    while not manifest.exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    assert json.loads(manifest.read_text())["consistency"]["freeze"]["achieved"]
    guest.counts()
    code, text = runner.run("snapshot", hosts(), snapshot_slot=SLOT)
    assert code == 0 and "unchanged  fine: " in text, text
