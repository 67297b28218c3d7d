# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The oracle catches what a broken livesnap would make: each test breaks it in one way."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket import capture, steps
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.run import Run
from lab import AgentError, Guest, Incoming, LabError
from qemu.qmp import QMPError
from taking import TestStore, export, helper, images_of, verdict


@pytest.fixture(scope="module")
def witness() -> Iterator[Guest]:
    """It never rests, and its buffer surely has the middle of RAM, where a granule is left out.

    Without nokaslr the kernel itself, which nobody writes to, sometimes lies there.
    """
    with Guest(name="sabotaged", buffer=176, rest=0, kernel_arguments="nokaslr") as guest:
        yield guest


@pytest.mark.parametrize("sabotage", ["skip-granule", "late-arm"])
def test_helper_that_protects_too_little(
        witness: Guest, store: TestStore, monkeypatch: pytest.MonkeyPatch, sabotage: str) -> None:
    monkeypatch.setenv("LIVESNAP_SABOTAGE", sabotage)
    pages = witness.witness()["pages"]
    # Right by chance if the guest, on a busy machine, did not run in the 20 ms in which late-arm
    # leaves RAM without protection.
    for number in range(6):
        result = store.take(
            witness, f"{sabotage}{number}", freeze="never", _livesnap_helper=helper(faults=True))
        reason = verdict(witness, result, pages)
        if reason:
            break
    assert "hold" in reason
    witness.counts()


def test_same_build_without_sabotage(witness: Guest, store: TestStore) -> None:
    result = store.take(witness, "right", freeze="never", _livesnap_helper=helper(faults=True))
    assert verdict(witness, result, witness.witness()["pages"]) == ""


def test_device_state_after_cont(
        witness: Guest, store: TestStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def late(run: Run) -> None:
        time.sleep(0.05)
        capture.save_devices(run)

    right = {step.name: step for step in steps.STEPS}
    order = []
    for step in steps.STEPS:
        if step.name != "devices":
            order.append(step)
        if step.name == "cont":
            order.append(dataclasses.replace(right["devices"], do=late))
    # The owner is forked from this process, and has the table as it is here.
    monkeypatch.setattr(steps, "STEPS", tuple(order))
    result = store.take(witness, "late", freeze="never")
    # RAM and disks are of one instant; the processor is of another, and shows when it runs on.
    # A QEMU that gives up on it shows as a connection that ends, at whatever moment.
    with pytest.raises((LabError, AgentError, OSError, QMPError)) as caught:
        with Incoming(witness, export(result, tmp_path / "stream"), images_of(result)) as restored:
            restored.counts()
    print("the restored guest:", caught.value)
    witness.counts()
