# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbook awx.yml by the real awx.awx collection, against a stand-in that keeps what is sent."""

from __future__ import annotations

import fcntl
import json
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from awx_stand_in import TOKEN, StandIn, stand_in
from dateutil.rrule import rrulestr
from runs import REPO, VENV, Controller

# awx.awx 24.6.1 is in no other place than Galaxy and PyPI's package of collections.
PACKAGE = "ansible==13.8.0"
FOLDER = REPO / "build" / "awx"
IMAGE = "registry.example.com/livesnap-ee:1"


@pytest.fixture(scope="module")
def collection() -> Path:
    """A folder of collections with awx.awx, from PyPI the first time."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    found = FOLDER / "ansible_collections" / "awx" / "awx" / "MANIFEST.json"
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.exists():
            done = subprocess.run(
                [str(VENV / "python"), "-m", "pip", "download", "-q", "--no-deps", "-d", FOLDER,
                 "--python-version", "3.12", "--only-binary", ":all:", PACKAGE],
                capture_output=True, text=True, check=False, timeout=300,
            )  # fmt: skip
            if done.returncode:
                pytest.skip(f"{PACKAGE} cannot be fetched: {done.stderr.strip()[-200:]}")
            (wheel,) = FOLDER.glob("ansible-*.whl")
            with zipfile.ZipFile(wheel) as whole:
                names = [name for name in whole.namelist() if "collections/awx/awx/" in name]
                whole.extractall(FOLDER, names)
            wheel.unlink()
    wanted = yaml.safe_load((REPO / "collections" / "awx-requirements.yml").read_text())
    about = json.loads(found.read_text())["collection_info"]
    assert wanted["collections"] == [{"name": "awx.awx", "version": about["version"]}]
    return FOLDER


@pytest.fixture(scope="module")
def made(controller: Controller, collection: Path) -> StandIn:
    """What a first and a second run have left."""
    with stand_in() as (api, address):
        organization = api.add("organizations", {"name": "Default"})
        api.add("credentials", {"name": "livesnap", "organization": organization["id"]})
        for changed in (True, False):
            before = len(api.writes)
            done = controller.command(
                str(VENV / "ansible-playbook"), "livesnap.qemu.awx", "-e", f"awx_image={IMAGE}",
                ANSIBLE_COLLECTIONS_PATH=f"{controller.collections}:{collection}",
                CONTROLLER_HOST=address, CONTROLLER_OAUTH_TOKEN=TOKEN,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout
            assert ("changed=0" not in done.stdout) is changed, done.stdout
            assert (len(api.writes) > before) is changed
    return api


def of(made: StandIn, kind: str) -> list[dict[str, Any]]:
    return list(made.kept[kind].values())


def variables(made: StandIn) -> list[tuple[str, str]]:
    """(playbook, variable) of everything that is given to one."""
    found = []
    for template in of(made, "job_templates"):
        given = list(json.loads(template["extra_vars"]))
        given += [each["variable"] for each in template.get("survey", {}).get("spec", [])]
        found += [(template["playbook"], name) for name in given]
    for schedule in of(made, "schedules"):
        found += [("playbooks/snapshot.yml", name) for name in schedule["extra_data"]]
    return found


def test_a_first_run_makes_it_all_and_a_second_changes_nothing(made: StandIn) -> None:
    assert {each["name"] for each in of(made, "job_templates")} == {
        "livesnap snapshot", "livesnap prune", "livesnap verify", "livesnap restore",
        "livesnap restore in place",
        "livesnap host",
    }  # fmt: skip
    (credential,) = of(made, "credentials")
    (inventory,) = of(made, "inventories")
    (environment,) = of(made, "execution_environments")
    assert environment["image"] == IMAGE
    for template in of(made, "job_templates"):
        assert (REPO / template["playbook"]).is_file()
        assert template["credentials of it"] == [credential["id"]]
        assert template["inventory"] == inventory["id"]
        assert template["execution_environment"] == environment["id"]
        assert template["ask_limit_on_launch"] is True
    (source,) = of(made, "inventory_sources")
    assert (REPO / source["source_path"]).is_file()


def test_the_workflow_goes_on_whatever_became_of_a_step(made: StandIn) -> None:
    (workflow,) = of(made, "workflow_job_templates")
    nodes = of(made, "workflow_job_template_nodes")
    templates = made.kept["job_templates"]
    names = [templates[node["unified_job_template"]]["name"] for node in nodes]
    assert names == ["livesnap snapshot", "livesnap prune", "livesnap verify"]
    following = [node.get("always_nodes of it") or [] for node in nodes]
    assert following == [[nodes[1]["id"]], [nodes[2]["id"]], []]
    assert {node["workflow_job_template"] for node in nodes} == {workflow["id"]}
    assert workflow["ask_variables_on_launch"] is True


def test_every_rrule_parses_and_is_one_that_awx_takes(made: StandIn) -> None:
    (workflow,) = of(made, "workflow_job_templates")
    assert len(of(made, "schedules")) == 2
    for schedule in of(made, "schedules"):
        assert schedule["unified_job_template"] == workflow["id"]
        assert re.fullmatch(
            r"DTSTART(;TZID=\S+)?:\d{8}T\d{6}Z? RRULE:\S*INTERVAL=\d+\S*", schedule["rrule"]
        )
        rule = rrulestr(schedule["rrule"].replace(" ", "\n"))
        first, second = rule[0], rule[1]
        hours = {"hourly": 1, "daily": 24}[schedule["extra_data"]["livesnap_schedule"]]
        assert (second - first).total_seconds() == hours * 3600


def test_every_variable_is_one_that_the_playbook_knows(made: StandIn) -> None:
    given = variables(made)
    assert ("playbooks/restore.yml", "restore_guest") in given and len(given) >= 7
    for playbook, name in given:
        text = (REPO / playbook).read_text()
        for role in re.findall(r"role: livesnap\.qemu\.(\w+)", text):
            folder = REPO / "roles" / role
            specs = yaml.safe_load((folder / "meta" / "argument_specs.yml").read_text())
            text += "\n".join(specs["argument_specs"]["main"]["options"])
            # What a role takes from livesnap_<option>.
            text += (folder / "defaults" / "main.yml").read_text()
        assert re.search(rf"\b{name}\b", text), f"{playbook} knows no {name}"


def test_surveys_ask_for_what_cannot_be_left_empty(made: StandIn) -> None:
    surveys = [each["survey"] for each in of(made, "job_templates") if each["survey_enabled"]]
    assert len(surveys) == 4
    for survey in surveys:
        for question in survey["spec"]:
            assert question["required"] and question["question_name"]
            if question["type"] == "multiplechoice":
                assert question["default"] in question["choices"]


def test_what_is_missing_is_said_before_anything_is_made(
    controller: Controller, collection: Path
) -> None:
    with stand_in() as (api, address):
        done = controller.command(
            str(VENV / "ansible-playbook"), "livesnap.qemu.awx",
            ANSIBLE_COLLECTIONS_PATH=f"{controller.collections}:{collection}",
            CONTROLLER_HOST=address, CONTROLLER_OAUTH_TOKEN=TOKEN,
        )  # fmt: skip
        assert done.returncode != 0 and "awx_image=IMAGE" in done.stdout
        assert api.writes == []
