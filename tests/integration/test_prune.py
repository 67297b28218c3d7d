# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbooks prune.yml and simulate.yml, as users run them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from guests import PRUNE, files, snapshot
from lab import Guest
from runs import Controller, Run, local, play
from test_each_option import own, returned, undocumented

PLAYBOOK = "livesnap.qemu.prune"


@pytest.fixture(scope="module")
def store(prepared: Controller, guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With three snapshots of each of two guests; tests prune it more and more."""
    folder = tmp_path_factory.mktemp("store")
    folder.chmod(0o711)
    options: dict[str, Any] = {"memory": False, "freeze": "never"}
    prepared.playbook(local(), play(*(
        snapshot(guest, name, f"s{number}", folder, **options)
        for number in range(3) for name in ("web1", "web2")))).good()  # fmt: skip
    return folder


def prune(controller: Controller, store: Path, *options: str, **variables: Any) -> Run:
    return controller.playbook(
        local(livesnap_store=str(store), **variables), PLAYBOOK, *options
    )  # fmt: skip


def names(store: Path) -> dict[str, list[str]]:
    return {
        guest: sorted(path.name for path in (store / guest).iterdir()) for guest in ("web1", "web2")
    }


def test_a_policy_that_keeps_nothing_is_an_error(prepared: Controller, store: Path) -> None:
    run = prune(prepared, store)
    assert run.code != 0
    assert "2 guests were not pruned" in run.text
    assert "the policy is empty" in run.text


def test_check_and_diff_show_the_table(prepared: Controller, store: Path) -> None:
    before = files(store)
    run = prune(prepared, store, "--check", "--diff", livesnap_keep_last=2).good()
    assert files(store) == before
    assert run.recap("hv1")["changed"] == 2
    for result in run.of(PRUNE):
        (line,) = [each for each in result["table"] if "no rule keeps it" in each]
        assert line.split()[0] == f"{result['decisions'][0]['guest']}/s0"
        # Once as a diff, and once by the role.
        assert run.text.count(line) == 2


def test_one_guest_that_fails_does_not_keep_others_from_it(
    prepared: Controller, store: Path
) -> None:
    strict = {"name": "web1", "keep_last": 1, "max_remove": 1}
    run = prune(prepared, store, livesnap_keep_last=2, livesnap_retention_guests=[strict])
    assert run.code != 0
    assert (
        "1 guests were not pruned as they should be: web1: 2 snapshots would be removed" in run.text
    )
    assert names(store) == {"web1": ["s0", "s1", "s2"], "web2": ["s1", "s2"]}


def test_policies_of_host_and_guest(
    prepared: Controller, guest: Guest, store: Path, tmp_path: Path
) -> None:
    special = {"name": "web2", "keep_last": 1}
    metrics = tmp_path / "livesnap.prom"
    options = {"livesnap_keep_last": 2, "livesnap_retention_guests": [special],
               "livesnap_metrics": str(metrics)}  # fmt: skip
    run = prune(prepared, store, **options).good()
    assert run.recap("hv1")["changed"] == 2
    labels = f'{{guest="web2",uuid="{guest.uuid}"}}'
    assert f"livesnap_snapshots{labels} 1" in metrics.read_text().splitlines()
    assert names(store) == {"web1": ["s1", "s2"], "web2": ["s2"]}
    result = run.of(PRUNE)[0]
    assert undocumented(returned("livesnap_prune"), own(result)) == []
    assert [each["decision"] for each in result["decisions"]] == ["keep", "keep", "remove"]
    assert prune(prepared, store, **options).good().recap("hv1")["changed"] == 0
    wrong = prune(prepared, store, livesnap_retention_guests=[{"name": "web1", "keep_lats": 1}])
    assert wrong.code != 0
    assert "keep_lats" in wrong.text


def test_simulation_touches_no_host(controller: Controller, tmp_path: Path) -> None:
    # Nobody has this address (RFC 5737): a connection would fail.
    nowhere = {"hosts": {name: {
        "ansible_host": "192.0.2.1", "livesnap_keep_hourly": 24, "livesnap_keep_monthly": 24,
        "livesnap_timezone": "Europe/Berlin"} for name in ("hv1", "hv2")}}  # fmt: skip
    picture = tmp_path / "kept.svg"
    options = ("-e", "simulate_start=20250101T0000Z", "-e", f"simulate_svg={picture}")
    run = controller.playbook(nowhere, "livesnap.qemu.simulate", *options).good()
    assert run.text.count("8760 snapshots taken, ") == 1
    assert "keep_monthly (the oldest)" in run.text
    assert len(ET.fromstring(picture.read_text()).findall("{*}circle")) > 30
