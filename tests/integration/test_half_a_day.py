# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Half a day of a schedule, its slots one after the other, and two controllers that keep it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from guests import MODULE, SMALL, entry
from lab import Guest
from runs import Controller, Run, local

KEPT = 3


@pytest.fixture
def fleet(rounds: Callable[[int, int], int]) -> Iterator[dict[str, Guest]]:
    """Name -> guest: six of them, or two."""
    with ExitStack() as stack:
        yield {f"web{number}": stack.enter_context(Guest(**SMALL))
               for number in range(1, 1 + rounds(2, 6))}


class Operator:
    """What runs by timers, given its slot each time."""

    def __init__(self, controller: Controller, guests: dict[str, Guest], store: Path) -> None:
        self.controller, self.store = controller, store
        self.guests = [entry(guest, name) for name, guest in guests.items()]

    def run(self, playbook: str, *options: str, **variables: Any) -> Run:
        inventory = local(livesnap_guests=self.guests, livesnap_store=str(self.store), **variables)
        return self.controller.playbook(inventory, f"livesnap.qemu.{playbook}", *options)

    def take(self, schedule: str, slot: str) -> Run:
        options = ("-e", f"snapshot_slot={slot}", "-e", f"livesnap_schedule={schedule}")
        return self.run("snapshot", *options).good()

    def prune(self) -> None:
        self.run("prune", livesnap_keep_last=KEPT, livesnap_group_by="schedule").good()


def test_at_the_end_exactly_what_was_to_be_is_there(
    prepared: Controller, fleet: dict[str, Guest], store: Path, rounds: Callable[[int, int], int]
) -> None:
    operator = Operator(prepared, fleet, store)
    slots = [f"20261123T{hour:02}00Z" for hour in range(rounds(4, 12))]
    # Two controllers at once: each guest has one snapshot of the slot, by whichever of them.
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda _number: operator.take("hourly", slots[0]), range(2)))
    taken = [result["changed"] for run in both for result in run.of(MODULE)]
    assert sorted(taken) == [False] * len(fleet) + [True] * len(fleet)
    operator.take("daily", slots[0])
    for number, slot in enumerate(slots[1:], 1):
        operator.take("hourly", slot)
        if number % 2:
            operator.prune()
    operator.run("verify", livesnap_which="unverified", livesnap_level="structure").good()
    wanted = [f"daily-{slots[0]}", *(f"hourly-{slot}" for slot in slots[-KEPT:])]
    for name, guest in fleet.items():
        folders = sorted((store / name).iterdir())
        assert [folder.name for folder in folders] == wanted
        for folder in folders:
            verdicts = json.loads((folder / "status.json").read_text())["verdicts"]
            assert [each["result"] for each in verdicts] == ["passed"]
        guest.counts()
