# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The owner of a domain's bracket, or libvirtd, dies or hangs; the domain runs on, thawed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _recover
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from bracket_kit import fault, read, run_dirs, state
from lab import DiskSpec, Domain, Libvirtd
from taking import TestStore, as_module, helper, verdict

DEADLINE = 4
QUICK = {"deadline": DEADLINE, "freeze_timeout": 2}


@pytest.fixture(scope="module")
def domain(libvirtd: Libvirtd) -> Iterator[Domain]:
    with Domain(libvirtd, name="hurt", disks=(DiskSpec(), DiskSpec())) as guest:
        yield guest


def well(domain: Domain) -> None:
    """It runs, thawed, and libvirt does nothing with it."""
    assert domain.virsh("domstate").strip() == "running"
    with domain.agent() as agent:
        assert agent.execute("guest-fsfreeze-status") == "thawed"
    assert "None" in domain.virsh("domjobinfo")
    with domain.qmp() as qmp:
        assert qmp.execute("query-block-jobs") == qmp.execute("query-jobs") == []
        assert not [each for each in qmp.execute("query-fdsets")
                    if any("livesnap" in fd.get("opaque", "") for fd in each["fds"])]
        nodes = qmp.execute("query-named-block-nodes", {"flat": True})
        assert not [each for each in nodes if each.get("dirty-bitmaps")]
    domain.counts()


def stopped_owners() -> list[int]:
    owners = [read(folder / "owner.json").get("pid") for folder in run_dirs()]
    return [pid for pid in owners if pid and state(pid) == "T"]


def wait_running(domain: Domain, limit: float) -> None:
    deadline = time.monotonic() + limit
    while domain.virsh("domstate").strip() != "running":
        assert time.monotonic() < deadline, [
            read(folder / "guard.json") for folder in run_dirs()]
        time.sleep(0.05)


def recover(store: TestStore) -> list[str]:
    return as_module(lambda: _recover.recover(str(store.path), None, helper()))


STEPS = ("freeze", "cover", "stop", "disks", "arm", "cont", "thaw", "sweep")
FULL = [(step, action) for step in STEPS for action in ("RAISE", "KILL", "STOP")]
SHORT = [
    ("stop", "STOP"), ("disks", "KILL"), ("arm", "RAISE"), ("arm", "STOP"), ("cont", "KILL"),
    ("sweep", "KILL")]


@pytest.mark.parametrize(
    ("step", "action"), FULL if os.environ.get("ROUNDS") == "full" else SHORT)
def test_owner_fails_at(step: str, action: str, domain: Domain, store: TestStore) -> None:
    begun = time.monotonic()
    with fault(step, action), pytest.raises(LivesnapError):
        store.take(domain, "one", **QUICK)
    assert time.monotonic() - begun < 2 * DEADLINE + 15
    wait_running(domain, max(0.5, begun + 2 * DEADLINE - time.monotonic()))
    assert bool(recover(store)) == (action != "RAISE")
    well(domain)
    assert not list(store.path.glob("*/*")) and not run_dirs()
    result = store.take(domain, "one", **QUICK)
    assert verdict(domain, result, domain.witness()["pages"]) == ""


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_libvirtd_is_gone_while_the_domain_is_paused(
        end: str, libvirtd: Libvirtd, domain: Domain, store: TestStore) -> None:
    def away() -> None:
        # Not within libvirt's own call: one that dies in the middle of that never ends its job.
        deadline = time.monotonic() + 30
        while not stopped_owners() and time.monotonic() < deadline:
            time.sleep(0.02)
        getattr(libvirtd, end)()
        time.sleep(1.5)
        libvirtd.start()

    thread = threading.Thread(target=away)
    with fault("arm", "STOP"):
        thread.start()
        try:
            with pytest.raises(LivesnapError):
                store.take(domain, "one", **QUICK)
        finally:
            thread.join()
    wait_running(domain, 20.0)
    recover(store)
    well(domain)
