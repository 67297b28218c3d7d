# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A libvirt domain by module and role, as an inventory names it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from guests import CLONE, HOST_INFO, MODULE, files
from lab import Domain, Libvirtd
from runs import Controller, Run, local, play
from taking import TestStore


@pytest.fixture(scope="module")
def db1() -> Iterator[Domain]:
    """The domain of the example, in a libvirtd of the tests' own."""
    with Libvirtd() as libvirtd, Domain(libvirtd, name="db1", memory=128) as domain:
        yield domain


@pytest.fixture(scope="module")
def resting(db1: Domain) -> Iterator[Domain]:
    """A second domain there, which is off, and says of itself what a selection may ask for."""
    domain = Domain(db1.libvirtd, name="resting", memory=128)
    try:
        domain.virsh("desc", "--config", "--title", "The second")
        domain.virsh("metadata", "https://example.com/backup", "--config", "--key", "b",
                     "--set", "<backup when='night'>daily</backup>")
        yield domain
    finally:
        domain.stop()


@pytest.fixture
def store() -> Iterator[Path]:
    """Where QEMU's user gets to, as pytest's own folders are not."""
    place = TestStore()
    yield place.path
    place.remove()


def plugin(module: str) -> Any:
    """The Python of a module."""
    name = module.replace("livesnap.qemu.", "ansible_collections.livesnap.qemu.plugins.modules.")
    return importlib.import_module(name)


def example(module: str) -> dict[str, Any]:
    """The one of the module's examples that is of the domain."""
    tasks: list[dict[str, Any]] = yaml.safe_load(plugin(module).EXAMPLES)
    return next(task for task in tasks if task[module]["guest"] == "db1")


def test_the_examples(prepared: Controller, db1: Domain, store: Path) -> None:
    defaults = {MODULE: {"store": str(store), "uri": db1.libvirtd.uri},
                CLONE: {"store": str(store)}}

    def run(task: dict[str, Any], module: str, *argv: str) -> dict[str, Any]:
        done = prepared.playbook(local(), play(task, module_defaults=defaults), *argv).good()
        result: dict[str, Any] = done.one(module)
        return result

    result = run(example(MODULE), MODULE)
    assert result["changed"] is True
    assert result["snapshot"]["consistency"]["level"] == "filesystem"
    task = example(CLONE)
    planned = run(task, CLONE, "--check")
    assert (planned["changed"], planned["pid"], planned["domain"]) == (True, None, "db1.look")
    try:
        made = run(task, CLONE)
        assert yaml.safe_load(plugin(CLONE).RETURN).keys() <= made.keys()
        assert made["running"] is True and made["qmp_socket"] is None
        assert made["uuid"] in db1.libvirtd.virsh("dumpxml", "db1.look")
        again = run(task, CLONE)
        assert (again["changed"], again["pid"], again["uuid"]) == (
            False, made["pid"], made["uuid"])
    finally:
        gone = run({"name": "Away", CLONE: {**task[CLONE], "state": "absent"}}, CLONE)
    assert (gone["changed"], gone["domain"], gone["uuid"]) == (True, None, None)
    assert db1.libvirtd.virsh("list", "--all", "--name").split() == ["db1"]
    db1.counts()


def test_the_role_takes_one_a_slot(prepared: Controller, db1: Domain, store: Path) -> None:
    there = local(livesnap_guests=[{"name": "db1"}], livesnap_store=str(store),
                  livesnap_uri=db1.libvirtd.uri, livesnap_schedule="daily")
    before = files(store)
    planned = prepared.playbook(there, "livesnap.qemu.snapshot", "--check").good()
    assert planned.one()["changed"] is True and files(store) == before
    taken = prepared.playbook(there, "livesnap.qemu.snapshot").good().one()
    again = prepared.playbook(there, "livesnap.qemu.snapshot").good()
    assert taken["changed"] is True and again.one()["changed"] is False
    assert again.one()["snapshot"] == taken["snapshot"]


def test_a_domain_that_is_not_there(prepared: Controller, db1: Domain, store: Path) -> None:
    given = {"guest": "gone", "name": "x", "store": str(store), "uri": db1.libvirtd.uri}
    failed = prepared.playbook(local(), play({"name": "Fails", MODULE: given}))
    assert failed.code != 0
    assert "has no domain 'gone'; see 'virsh list --all'" in failed.text


def test_what_is_selected_and_how(
    prepared: Controller, db1: Domain, resting: Domain, store: Path
) -> None:
    defaults = {HOST_INFO: {"store": str(store), "uri": db1.libvirtd.uri, "preflight": False}}

    def ask(*expressions: str) -> list[dict[str, Any]]:
        tasks = [{"name": each, HOST_INFO: {"select": each}} for each in expressions]
        keywords: dict[str, Any] = {"module_defaults": defaults, "ignore_errors": True}
        return prepared.playbook(local(), play(*tasks, **keywords)).of(HOST_INFO)

    found = importlib.import_module(
        "ansible_collections.livesnap.qemu.plugins.modules.livesnap_host_info")
    example = yaml.safe_load(found.EXAMPLES)[2][HOST_INFO]["select"]
    every, none, second, wrong, other = ask(
        "reverse(sort_by(@, &name))", example,
        "[?metadata[?name=='backup' && text=='daily' && attributes.when=='night']]",
        "[?", "[].name")
    names = [each["name"] for each in every["host"]["guests"]]
    assert names == ["resting", "db1"] and none["host"]["guests"] == []
    about = {key: value for key, value in second["host"]["guests"][0].items() if key != "metadata"}
    assert about == {
        "name": "resting", "uuid": resting.uuid, "manager": "libvirt", "state": "off",
        "autostart": False, "persistent": True, "memory_bytes": 128 << 20, "title": "The second",
        "description": ""}
    assert wrong["msg"].startswith("select '[?' is not a JMESPath expression that fits guests")
    assert "select '[].name' does not come to a list of guests" in other["msg"]


def test_the_role_takes_what_is_selected(
    prepared: Controller, db1: Domain, resting: Domain, store: Path
) -> None:
    def run(select: str, *options: str) -> Run:
        there = local(livesnap_guests="auto", livesnap_select=select, livesnap_store=str(store),
                      livesnap_uri=db1.libvirtd.uri, livesnap_memory=False,
                      livesnap_freeze="never")
        return prepared.playbook(there, "livesnap.qemu.snapshot", *options)

    running = "[?state=='running' && title!='The second']"
    assert run(running, "--check").good().one()["snapshot"]["guest"] == "db1"
    taken = run(running).good()
    assert taken.one()["changed"] is True and taken.recap("hv1")["changed"] == 1
    assert [path.name for path in store.iterdir()] == ["db1"]
    nothing = run("[?memory_bytes>`99999999999`]").good()
    assert not nothing.of(MODULE) and "No guest of libvirt at" in nothing.text


def test_the_role_and_a_guest_that_is_off(
    prepared: Controller, db1: Domain, resting: Domain, store: Path
) -> None:
    def run(when_off: str, schedule: str) -> Run:
        there = local(livesnap_guests="auto", livesnap_when_off=when_off, livesnap_memory=False,
                      livesnap_freeze="never", livesnap_store=str(store),
                      livesnap_schedule=schedule, livesnap_uri=db1.libvirtd.uri)
        return prepared.playbook(there, "livesnap.qemu.snapshot")

    skipped = run("skip", "hourly").good()
    reason = "guest 'resting' is off (when_off: skip)"
    assert f"skipped    resting: {reason}" in skipped.text
    assert [path.name for path in store.iterdir()] == ["db1"]
    failed = run("fail", "hourly")
    assert failed.code != 0 and "1 of 2 guests have no snapshot" in failed.text
    assert "guest 'resting' is off; start it first" in failed.text
    results = run("disks", "daily").good().of(MODULE)
    levels = [each["snapshot"]["consistency"]["level"] for each in results]
    assert levels == ["crash", "clean"]
