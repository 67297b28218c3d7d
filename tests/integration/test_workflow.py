# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The workflow of AWX jobs, by ansible-runner, over three hypervisors of which not all is well."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
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
        inventory = {"hypervisors": {"hosts": hosts, "vars": variables}}
        (self.folder / "inventory" / "hosts.yml").write_text(yaml.safe_dump(inventory))
        done = self.controller.command(
            str(VENV / "ansible-runner"), "run", str(self.folder), "--ident", playbook,
            "-p", str(self.checkout / "playbooks" / f"{playbook}.yml"))
        return done.returncode, done.stdout

    def artifacts(self, playbook: str) -> dict[str, Any]:
        """What the job hands on to the next."""
        for path in (self.folder / "artifacts" / playbook / "job_events").glob("*.json"):
            event = json.loads(path.read_text())
            if event["event"] == "playbook_on_stats":
                found: dict[str, Any] = event["event_data"]["artifact_data"]
                return found
        raise AssertionError(f"no statistics of {playbook}")


@pytest.fixture(scope="module")
def four() -> Iterator[list[Guest]]:
    """Guests of two hypervisors; the agent of the last one hangs."""
    with ExitStack() as stack:
        made = [stack.enter_context(Guest(**SMALL)) for _guest in range(3)]
        yield [*made, stack.enter_context(Guest(**SMALL, agent="hung"))]


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[Hypervisor]]:
    with hypervisors(3, tmp_path) as made:
        yield made


def test_what_is_well_succeeds_and_the_rest_is_said(
    controller: Controller, checkout: Path, four: list[Guest], three: list[Hypervisor],
    tmp_path: Path,
) -> None:
    one, two, down = three
    one.start()
    two.start()
    fine, locked, other, hung = four
    stores = [tmp_path / f"store{number}" for number in range(3)]
    for store in stores:
        store.mkdir(mode=0o711)
    guests = (
        [entry(fine, "fine"), entry(locked, "locked", lock_timeout=2)],
        [entry(other, "other"), entry(hung, "hung", freeze="required")],
        [{"name": name, "qmp_socket": f"/run/guests/{name}"} for name in ("far", "away")],
    )
    hosts = {
        f"hv{number + 1}": hypervisor.variables(
            livesnap_guests=guests[number], livesnap_store=str(stores[number]),
            livesnap_metrics=str(stores[number] / "livesnap.prom"))
        for number, hypervisor in enumerate((one, two, down))
    }
    runner = Runner(controller, checkout, tmp_path / "runner")
    code, text = runner.run("host", hosts)
    assert code != 0 and "hv3" in text and "unreachable=1" in text
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
    for guest in four[:3]:
        guest.counts()
