# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator sees of snapshot.yml: summary, exit status, artifacts, metrics, limits."""

from __future__ import annotations

import fcntl
import json
import re
import time
from pathlib import Path
from typing import Any

from guests import INFO, MODULE, SMALL, entry, info
from lab import Guest
from runs import Controller, Run, local, play

PLAYBOOK = "livesnap.qemu.snapshot"
METRICS = "livesnap.qemu.livesnap_metrics"
SLOT = "20261123T0100Z"


def take(
    controller: Controller,
    guests: list[dict[str, Any]],
    store: Path,
    *options: str,
    strategy: str = "linear",
    **given: Any,
) -> Run:
    inventory = local(livesnap_guests=guests, livesnap_store=str(store), **given)
    return controller.playbook(
        inventory, PLAYBOOK, "-e", f"snapshot_slot={SLOT}", *options,
        ANSIBLE_SHOW_CUSTOM_STATS="1", ANSIBLE_STRATEGY=strategy,
    )  # fmt: skip


def lines(run: Run) -> list[str]:
    """The summary."""
    (found,) = [
        each for each in run.of("ansible.builtin.debug") if "snapshot_summary.lines" in each
    ]
    return [str(line) for line in found["snapshot_summary.lines"]]


def artifacts(run: Run) -> dict[str, Any]:
    """What set_stats handed on."""
    found = re.search(r"RUN: (\{.*)", run.text)
    assert found, run.text
    outcomes: dict[str, Any] = json.loads(found.group(1))["livesnap_outcomes"]
    return outcomes


def test_what_an_operator_sees(
    prepared: Controller, guest: Guest, store: Path, tmp_path: Path
) -> None:
    gone = {"name": "gone", "qmp_socket": str(tmp_path / "nothing")}
    guests = [gone, entry(guest, "web1")]
    prom = tmp_path / "livesnap.prom"
    some = {"livesnap_metrics": str(prom), "livesnap_fail_when": "50%"}
    run = take(prepared, guests, store, **some).good()
    first, last = lines(run)
    assert first.startswith("taken      web1: hourly-20261123T0100Z, filesystem, frozen ")
    assert last.startswith("FAILED     gone: ") and str(tmp_path / "nothing") in last
    told = artifacts(run)["hv1"]
    assert told["web1"]["id"] == run.of(MODULE)[-1]["snapshot"]["id"]
    assert (told["web1"]["outcome"], told["gone"]["outcome"]) == ("taken", "failed")
    written = run.one(METRICS)
    assert prom.read_text() == written["metrics"]
    assert written["actions"] == [f"wrote metrics to '{prom}'"] and written["recovered"] == []
    assert 'livesnap_last_run_failed{guest="gone"} 1' in written["metrics"]
    assert 'livesnap_runs_total{guest="web1",outcome="taken"} 1' in written["metrics"]
    # Again, as by default: one that failed fails the run, which has changed nothing.
    again = take(prepared, guests, store, livesnap_metrics=str(prom))
    assert again.code == 2 and again.recap("hv1")["changed"] == 0
    assert "1 of 2 guests have no snapshot" in again.text
    assert lines(again)[0].startswith("unchanged  web1: ")
    assert 'livesnap_runs_total{guest="gone",outcome="failed"} 2' in prom.read_text()
    # Check mode tells the same, and writes nothing.
    before = prom.read_bytes()
    check = take(prepared, guests, store, "--check", **some).good()
    assert len(lines(check)) == 2 and prom.read_bytes() == before


def test_one_guest_may_take_so_long_and_no_longer(
    prepared: Controller, guest: Guest, store: Path
) -> None:
    slow = entry(guest, "web1", bandwidth="2M", compression="none", guest_timeout=12)
    begun = time.monotonic()
    run = take(prepared, [slow], store)
    assert run.code == 2 and time.monotonic() - begun < 60
    assert "did not end within 12 s" in lines(run)[0]
    # Its instant had passed: it completes, and the next run finds it.
    again = take(prepared, [entry(guest, "web1")], store).good()
    assert artifacts(again)["hv1"]["web1"]["outcome"] == "unchanged"
    listed = prepared.playbook(local(), play(info(store))).good().one(INFO)["snapshots"]
    assert [each["complete"] for each in listed] == [True]
    guest.counts()


def test_side_by_side(prepared: Controller, guest: Guest, store: Path, tmp_path: Path) -> None:
    """A slow guest, a broken one and two others: the slow one ends last and holds nobody up."""
    before = set((prepared.folder / "async").glob("j*"))
    with Guest(**SMALL) as slow:
        guests = [
            entry(slow, "slow", bandwidth="4M", compression="none"),
            {"name": "gone", "qmp_socket": str(tmp_path / "nothing")},
            entry(guest, "web1"),
        ]
        run = take(prepared, guests, store, livesnap_parallel=2)
        assert run.code == 2
        waited = [each for each in run.of("livesnap.qemu.livesnap_wait") if each["ended"]]
        assert [[job["guest"] for job in each["ended"]] for each in waited][-1] == ["slow"]
        # At most one beside the next, and none at the end.
        assert [len(each["running"]) for each in waited] == [1, 1, 0]
        told = artifacts(run)["hv1"]
        outcomes = {name: each["outcome"] for name, each in told.items()}
        assert outcomes == {"slow": "taken", "gone": "failed", "web1": "taken"}
        assert run.recap("hv1")["changed"] == 2
        again = take(prepared, guests[::2], store, livesnap_parallel=2).good()
        assert again.recap("hv1")["changed"] == 0
        # A task that Ansible ended at its time-out has left one before: see the test above.
        assert set((prepared.folder / "async").glob("j*")) == before
        slow.counts()


def test_turns_windows_and_jitter(
    prepared: Controller, guest: Guest, store: Path, tmp_path: Path
) -> None:
    minute = time.gmtime(time.time() + 3 * 3600)
    later = f"{minute.tm_hour:02}:00-{minute.tm_hour:02}:30"
    web1 = entry(guest, "web1")
    skipped = take(prepared, [web1], store, livesnap_window=later, livesnap_jitter=1).good()
    assert lines(skipped) == ["skipped    web1: its turn came outside of the time window"]
    # Somebody else has the only turn, of the host or of the store.
    for folder, given in (
        (Path("/run/livesnap/turn"), {"livesnap_host_turns": 1}),
        (store / ".turn", {"livesnap_store_turns": 1}),
    ):
        folder.mkdir(parents=True)
        with (folder / "0").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            late = take(prepared, [web1], store, livesnap_turn_timeout=1, **given)
        assert late.code == 2 and "all 1 turns of the" in lines(late)[0]
        taken = take(prepared, [web1], store, strategy="free", **given).good()
        assert taken.recap("hv1")["failed"] == 0
        assert not folder.exists()
    guest.counts()


def test_a_policy_that_is_none_is_an_error(prepared: Controller, guest: Guest, store: Path) -> None:
    run = take(prepared, [entry(guest, "web1")], store, livesnap_fail_when="sometimes")
    assert run.code == 2 and "any, none or a percentage" in run.text
    assert list(store.iterdir()) == []
