# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests of other shapes: unprivileged and sandboxed, split RAM, several vCPUs and disks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lab import DiskSpec, Guest, QmpError
from taking import TestStore, verdict

UFFD = Path("/proc/sys/vm/unprivileged_userfaultfd")


def test_unprivileged_and_sandboxed(make_guest: Callable[..., Guest], store: TestStore,
                                    rounds: Callable[[int, int], int]) -> None:
    assert UFFD.read_text().strip() == "0"
    guest = make_guest(name="boxed", user="nobody", sandbox=True)
    status = Path(f"/proc/{guest.pid}/status").read_text()
    assert "\nSeccomp:\t2" in status and "\nUid:\t0\t" not in status
    # What QEMU has for this itself, is refused here.
    with guest.look() as qmp, pytest.raises(QmpError, match=r"[Bb]ackground-snapshot"):
        qmp.execute("migrate-set-capabilities",
                    {"capabilities": [{"capability": "background-snapshot", "state": True}]})
    pages = guest.witness()["pages"]
    before = guest.counts()
    for number in range(rounds(2, 20)):
        name = f"s{number}"
        result = store.take(guest, name, freeze=("never", "required")[number % 2])
        assert result["snapshot"]["engine"] == "uffd"
        assert verdict(guest, result, pages) == ""
        guest.counts()
        if number > 1:
            with store.clone(guest, name) as clone:
                assert clone.counts()["boot"] == before["boot"]
    with store.restored_by_hand(guest, "s1") as restored:
        assert restored.counts()["boot"] == before["boot"]
        assert restored.devices()["disk0"] == "ok"
    with store.clone(guest, "s0") as clone:
        assert clone.counts()["boot"] == before["boot"]
        assert clone.devices()["disk0"] == "ok"
        # As the original's user, in the original's sandbox.
        theirs = Path(f"/proc/{clone.pid}/status").read_text()
        for key in ("Uid:", "Gid:", "Seccomp:"):
            assert [line for line in theirs.splitlines() if line.startswith(key)] == [
                line for line in status.splitlines() if line.startswith(key)]
    guest.counts()


def test_split_memory(make_guest: Callable[..., Guest], store: TestStore) -> None:
    # The buffer reaches below and above 4 GiB: neither side alone has room for it.
    guest = make_guest(
        name="split", memory=1024, machine_options="max-ram-below-4g=512M", buffer=640,
        rest=2)
    pages = guest.witness()["pages"]
    before = guest.counts()
    result = store.take(guest, "split", freeze="never")
    assert result["snapshot"]["memory"]["bytes"] >= 1 << 30
    assert verdict(guest, result, pages) == ""
    with store.clone(guest, "split") as clone:
        assert clone.counts(limit=30.0)["boot"] == before["boot"]
        with clone.qmp() as qmp:
            qmp.execute("system_reset")
        clone.wait_boot(before["boot"])
    guest.counts()


def test_two_vcpus_and_two_disks(make_guest: Callable[..., Guest], store: TestStore) -> None:
    guest = make_guest(name="pair", cpus=2, churn=True,
                       disks=(DiskSpec(), DiskSpec(format="qcow2")))
    pages = guest.witness()["pages"]
    before = guest.counts()
    result = store.take(guest, "pair", freeze="never", compression="zstd")
    assert len(result["snapshot"]["disks"]) == 2
    assert verdict(guest, result, pages) == ""
    with store.clone(guest, "pair") as clone:
        assert clone.counts()["boot"] == before["boot"]
        devices = clone.devices()
        assert devices["disk0"] == devices["disk1"] == "ok"
    guest.counts()
