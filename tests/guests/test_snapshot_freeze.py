# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Freeze: what is achieved is true on the disk, and what is not achieved is said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from lab import Guest, disks
from taking import TestStore, images_of, verdict


@pytest.fixture(scope="module")
def restless() -> Iterator[Guest]:
    """Makes and removes files all the time: its file system is never clean by chance."""
    with Guest(name="restless", churn=True) as guest:
        yield guest


def frozen_now(guest: Guest) -> str:
    with guest.agent() as agent:
        return agent.freeze_status()


@pytest.mark.parametrize("freeze", ["auto", "required"])
def test_file_system_is_clean(restless: Guest, store: TestStore, freeze: str) -> None:
    result = store.take(restless, "clean", freeze=freeze)
    taken = result["snapshot"]
    assert taken["consistency"]["level"] == "filesystem"
    assert taken["timings"]["freeze_ms"] > 0
    assert disks.fsck(images_of(result)[0]) == []
    assert verdict(restless, result, restless.witness()["pages"]) == ""
    assert frozen_now(restless) == "thawed"
    restless.counts()


def test_never_is_of_a_crash(restless: Guest, store: TestStore) -> None:
    result = store.take(restless, "crash", freeze="never")
    taken = result["snapshot"]
    assert taken["consistency"]["level"] == "crash"
    assert taken["timings"]["freeze_ms"] is None
    assert disks.fsck(images_of(result)[0])
    restless.counts()


@pytest.mark.parametrize("broken", ["no socket", "none", "hung", "failing"])
def test_freeze_that_cannot_be(restless: Guest, store: TestStore, broken: str) -> None:
    options = {"freeze_timeout": 2}
    if broken == "no socket":
        options["agent_socket"] = None
    elif broken == "failing":
        restless.command("hook fail")
    else:
        restless.command(f"agent {broken}")
    try:
        with pytest.raises(LivesnapError) as caught:
            store.take(restless, "required", freeze="required", **options)
        assert "fr" in caught.value.msg
        assert not (store.path / "restless" / "required").exists()
        restless.witness()
        taken = store.take(restless, "auto", freeze="auto", **options)["snapshot"]
        assert taken["complete"] and taken["consistency"]["level"] == "crash"
        assert any("not" in reason for reason in taken["consistency"]["indications"])
        never = store.take(restless, "never", freeze="never", **options)["snapshot"]
        assert never["complete"] and never["consistency"]["level"] == "crash"
    finally:
        restless.command("hook ok")
        restless.command("agent run")
    restless.wait_agent()
    assert frozen_now(restless) == "thawed"
    restless.counts()


def test_paused_guest_stays_paused(restless: Guest, store: TestStore) -> None:
    with restless.look() as qmp:
        qmp.execute("stop")
        try:
            result = store.take(restless, "paused", freeze="auto")
            assert qmp.status() == "paused"
            assert "RESUME" not in [event["event"] for event in qmp.events()]
        finally:
            qmp.execute("cont")
    assert result["snapshot"]["consistency"]["level"] == "crash"
    pages = restless.witness()["pages"]
    assert verdict(restless, result, pages) == ""
    with store.clone(restless, "paused") as clone:
        with clone.qmp() as qmp:
            assert qmp.status() == "paused"
            qmp.execute("cont")
        clone.wait_agent()
        clone.counts()
    restless.counts()
