# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbook snapshot.yml against a real guest: slots, check mode, failures, other users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guests import MODULE, entry, files
from lab import Guest
from runs import Controller, Run, local
from sshd import ordinary_user, sshd

PLAYBOOK = "livesnap.qemu.snapshot"


def take(
    controller: Controller, guests: list[dict[str, Any]], store: Path, slot: str, *options: str
) -> Run:
    inventory = local(livesnap_guests=guests, livesnap_store=str(store))
    return controller.playbook(inventory, PLAYBOOK, "-e", f"snapshot_slot={slot}", *options)


def names(store: Path) -> list[str]:
    """Of the snapshots that are there, in order."""
    return sorted(path.parent.name for path in store.glob("*/*/manifest.json"))


def test_slots_and_check_mode(prepared: Controller, guest: Guest, store: Path) -> None:
    guests = [entry(guest, "web1")]
    first = "20261123T0100Z"
    predicted = take(prepared, guests, store, first, "--check", "--diff").good()
    assert predicted.recap("hv1")["changed"] == 1
    assert predicted.one(MODULE)["snapshot"]["id"] is None
    assert files(store) == {}
    taken = take(prepared, guests, store, first).good()
    result = taken.one(MODULE)
    assert taken.recap("hv1")["changed"] == 1
    assert result["snapshot"]["name"] == f"hourly-{first}"
    assert result["snapshot"]["schedule"] == "hourly"
    assert result["snapshot"]["slot"] == "2026-11-23T01:00:00Z"
    assert result["snapshot"]["engine"] == predicted.one(MODULE)["snapshot"]["engine"]
    before = files(store)
    for options in ((), ("--check",)):
        again = take(prepared, guests, store, first, *options).good()
        assert again.recap("hv1")["changed"] == 0
        assert again.one(MODULE)["snapshot"]["id"] == result["snapshot"]["id"]
    assert files(store) == before
    following = take(prepared, guests, store, "2026-11-23T02:00:00Z").good()
    assert following.recap("hv1")["changed"] == 1
    assert names(store) == [f"hourly-{first}", "hourly-20261123T0200Z"]
    guest.counts()


def test_one_guest_that_fails_does_not_keep_others_from_theirs(
    prepared: Controller, guest: Guest, store: Path, tmp_path: Path
) -> None:
    gone = {"name": "gone", "qmp_socket": str(tmp_path / "nothing")}
    run = take(prepared, [gone, entry(guest, "web1")], store, "20261123T0100Z")
    assert run.code != 0
    assert run.recap("hv1")["failed"] == 1
    assert run.recap("hv1")["rescued"] == 1
    assert "1 of 2 guests have no snapshot" in run.text
    assert str(tmp_path / "nothing") in run.text
    assert names(store) == ["hourly-20261123T0100Z"]


def test_the_running_slot_is_taken_from_the_clock(
    prepared: Controller, guest: Guest, store: Path
) -> None:
    inventory = local(livesnap_guests=[entry(guest, "web1")], livesnap_store=str(store))
    options = ("-e", "livesnap_schedule=weekly", "--check")
    found = prepared.playbook(inventory, PLAYBOOK, *options).good().one(MODULE)["snapshot"]
    assert found["name"].startswith("weekly-")
    assert found["name"].endswith("T0000Z")
    assert found["slot"].endswith("T00:00:00Z")


def test_an_option_that_nobody_knows_is_an_error(
    prepared: Controller, guest: Guest, store: Path
) -> None:
    run = take(prepared, [entry(guest, "web1", compresion="none")], store, "20261123T0100Z")
    assert run.code != 0
    assert "compresion" in run.text
    assert files(store) == {}


def test_an_ordinary_user_with_sudo_with_and_without_pipelining(
    prepared: Controller, guest: Guest, store: Path, tmp_path: Path
) -> None:
    with ordinary_user() as home, sshd(tmp_path, home) as reached:
        for slot, pipelining in (("20261123T0100Z", False), ("20261123T0200Z", True)):
            inventory = {
                "hosts": {
                    "hv1": {
                        **reached,
                        "ansible_pipelining": pipelining,
                        "livesnap_guests": [entry(guest, "web1")],
                        "livesnap_store": str(store),
                    }
                }
            }
            options = ("-e", f"snapshot_slot={slot}")
            run = prepared.playbook(inventory, PLAYBOOK, *options).good()
            assert run.recap("hv1")["changed"] == 1
            assert run.one(MODULE)["snapshot"]["complete"] is True
            again = prepared.playbook(inventory, PLAYBOOK, *options).good()
            assert again.recap("hv1")["changed"] == 0
    assert len(names(store)) == 2
