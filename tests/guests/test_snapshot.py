# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots of a guest that works at full speed: of one instant, restorable, and not felt by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from lab import Guest, disk_state
from taking import TestStore, images_of, verdict

ALL = {"disk0": "ok", "net": "ok", "vga": "ok"}


@pytest.fixture(scope="module")
def busy() -> Iterator[Guest]:
    """With a VGA card and a network card: their ROMs are RAM blocks as well."""
    with Guest(name="busy", rest=2, buffer=64, vga=True, net=True) as guest:
        yield guest


def test_one_instant_again_and_again(
        busy: Guest, store: TestStore, rounds: Callable[[int, int], int]) -> None:
    pages = busy.witness()["pages"]
    for number in range(rounds(3, 20)):
        before = busy.counts()
        # Frozen, the witness waits for its disk; thawed, it writes all the time. Both must hold.
        result = store.take(busy, f"s{number}", freeze="auto" if number % 3 == 2 else "never")
        taken = result["snapshot"]
        after = busy.counts()
        assert after["boot"] == before["boot"] and after["counter"] > before["counter"]
        assert result["changed"] and taken["complete"] and taken["engine"] == "uffd"
        assert taken["timings"]["pause_ms"] < 2000
        assert verdict(busy, result, pages) == ""
        assert before["counter"] <= disk_state(images_of(result)[0]).counter <= after["counter"]
        with store.clone(busy, f"s{number}") as clone:
            state = clone.counts()
            assert state["boot"] == before["boot"]
            # Its card works as well, and leads nowhere.
            assert clone.devices().items() >= ALL.items()
            # The clone writes into overlays of its own.
            assert verdict(busy, result, pages) == ""
        busy.counts()


def test_stock_qemu_restores_by_the_printed_commands(busy: Guest, store: TestStore) -> None:
    before = busy.counts()
    result = store.take(busy, "frozen", freeze="required")
    assert verdict(busy, result, busy.witness()["pages"]) == ""
    assert result["snapshot"]["consistency"]["level"] == "filesystem"
    with store.restored_by_hand(busy, "frozen") as restored:
        state = restored.counts()
        assert state["boot"] == before["boot"] and state["counter"] > before["counter"]
        assert restored.devices().items() >= ALL.items()
        with restored.qmp() as qmp:
            qmp.execute("system_reset")
        restored.wait_boot(before["boot"])
        restored.counts()
        assert restored.devices().items() >= ALL.items()


def test_clone_survives_a_reset(busy: Guest, store: TestStore) -> None:
    store.take(busy, "reset", freeze="never")
    with store.clone(busy, "reset") as clone:
        before = clone.counts()
        with clone.qmp() as qmp:
            qmp.execute("system_reset")
            qmp.wait_event("RESET")
        clone.wait_boot(before["boot"])
        assert clone.counts()["boot"] != before["boot"]
        assert clone.devices().items() >= ALL.items()


def test_guest_starts_again_with_its_own_command_line(busy: Guest, store: TestStore) -> None:
    store.take(busy, "last", freeze="never")
    busy.counts()
    busy.shut_down()
    left = disk_state(busy.disk_paths[0]).counter
    mark = busy.serial_log.stat().st_size
    busy.start()
    states = busy.witness_states(mark)
    assert all(state["counter"] in (0, *range(left, left + 100000)) for state in states)
    assert busy.counts()["counter"] > left
