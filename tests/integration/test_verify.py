# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbook verify.yml, as users run it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._store import status
from guests import VERIFY, entry, files, snapshot
from lab import Guest
from runs import Controller, Run, local, play

PLAYBOOK = "livesnap.qemu.verify"


@pytest.fixture(scope="module")
def store(prepared: Controller, guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two snapshots of each of two guests."""
    folder = tmp_path_factory.mktemp("store")
    folder.chmod(0o711)
    prepared.playbook(local(), play(*(
        snapshot(guest, name, f"s{number}", folder, freeze="never")
        for number in range(2) for name in ("web1", "web2")))).good()  # fmt: skip
    return folder


def check(controller: Controller, store: Path, *options: str, **variables: Any) -> Run:
    return controller.playbook(
        local(livesnap_store=str(store), **variables), PLAYBOOK, *options
    )  # fmt: skip


def test_the_newest_and_then_the_rest(prepared: Controller, store: Path) -> None:
    before = files(store)
    planned = check(prepared, store, "--check").good()
    assert files(store) == before
    assert planned.recap("hv1")["changed"] == 2
    done = check(prepared, store).good()
    checked = [each["invocation"]["module_args"]["snapshot"] for each in done.of(VERIFY)]
    assert checked == ["s1", "s1"]
    assert done.recap("hv1")["changed"] == 2
    assert check(prepared, store).good().recap("hv1")["changed"] == 0
    own = {"name": "web1", "level": "drill",
           "commands": [{"argv": ["/bin/sh", "-c", "exit 3"], "code": 3}]}  # fmt: skip
    rest = check(prepared, store, livesnap_which="unverified", livesnap_level="checksum",
                 livesnap_consistency_check_guests=[own]).good()  # fmt: skip
    assert [each["verdict"]["level"] for each in rest.of(VERIFY)] == ["checksum", "drill"]


def test_what_follows_a_failure(
    prepared: Controller, guest: Guest, store: Path, tmp_path: Path
) -> None:
    """The other guest is checked all the same."""
    image = store / "web1" / "s1" / "ram.lsnap"
    with image.open("r+b") as file:
        file.write(b"!")
    metrics = tmp_path / "livesnap.prom"
    again: dict[str, Any] = {"livesnap_max_age": "0h", "livesnap_level": "checksum",
                             "livesnap_metrics": str(metrics)}  # fmt: skip
    beside = check(prepared, store, livesnap_on_failure="mark", livesnap_check_parallel=2,
                   livesnap_which="all", livesnap_level="drill", livesnap_max_age="0h",
                   livesnap_lock_timeout=120, livesnap_drill_cpus=2)  # fmt: skip
    assert "1 of 4 snapshots did not pass: snapshot 's1' of guest 'web1'" in beside.good().text
    assert beside.recap("hv1")["changed"] > 0
    good = [store / name for name in ("web1/s0", "web2/s0", "web2/s1")]
    drilled = [status.read(folder)["verdicts"][0] for folder in good]
    assert [(each["level"], each["result"]) for each in drilled] == [("drill", "passed")] * 3
    report = tmp_path / "report.html"
    marked = check(
        prepared, store, livesnap_on_failure="mark", livesnap_report=str(report), **again
    ).good()
    assert report.read_text().index("web1") < report.read_text().index("web2")
    rows = json.loads(report.with_suffix(".json").read_text())
    assert (rows[0]["guest"], rows[0]["state"]) == ("web1", "failed")
    for name, sound in (("web1", 0), ("web2", 1)):
        labels = f'{{guest="{name}",uuid="{guest.uuid}"}}'
        assert f"livesnap_last_verdict_ok{labels} {sound}" in metrics.read_text().splitlines()
    assert "1 of 2 snapshots did not pass: snapshot 's1' of guest 'web1'" in marked.text
    failed = check(prepared, store, **again)
    assert failed.code != 0
    # The newest one first.
    assert [each["verdict"]["result"] for each in failed.of(VERIFY)] == ["passed", "failed"]
    guests = [entry(guest, "web1", freeze="never"), entry(guest, "web2")]
    taken = check(prepared, store, livesnap_on_failure="snapshot", livesnap_guests=guests,
                  consistency_check_name="again", **again)  # fmt: skip
    assert taken.code != 0
    assert (store / "web1" / "again" / "manifest.json").exists()
    assert not (store / "web2" / "again").exists()
    shutil.rmtree(store / "web1" / "again")
    lost = check(prepared, store, livesnap_on_failure="mark", livesnap_level="drill",
                 livesnap_drill_memory="1M", livesnap_lock_timeout=1,
                 livesnap_max_age="0h", livesnap_which="all")  # fmt: skip
    assert lost.code != 0
    assert "web2/s1 could not be checked: there is no room for a drill" in lost.text
