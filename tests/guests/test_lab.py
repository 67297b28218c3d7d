# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The laboratory itself: guests boot and count, pauses are seen, torn pairs are caught."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import (
    AgentError,
    DiskSpec,
    Guest,
    Incoming,
    QmpClient,
    QmpError,
    disk_state,
    disks,
    judge,
    ram_state,
)


def memory_of(guest: Guest, qmp: QmpClient, file: Path) -> Path:
    """All RAM of a paused guest, written by QEMU itself."""
    arguments = {"val": 0, "size": guest.options.memory << 20, "filename": str(file)}
    qmp.execute("pmemsave", arguments, timeout=60.0)
    return file


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """One that has just booted: its clock is right."""
    with Guest(fresh=True) as running:
        yield running


def test_witness_counts(guest: Guest) -> None:
    first = guest.ask()
    time.sleep(2)
    second = guest.witness()
    assert second["counter"] > first["counter"] and second["rate"] > 1
    assert second["intact"] and second["disks"] == 1
    assert second["pages"] * 4096 == guest.options.buffer << 20
    assert guest.counts()["boot"] == second["boot"]


def test_clock_and_devices(guest: Guest) -> None:
    devices = guest.devices()
    assert devices["disk0"] == "ok"
    assert abs(int(devices["rtc_drift_s"])) <= 2
    with guest.agent() as agent:
        assert abs(agent.execute("guest-get-time") / 1e9 - time.time()) < 3


def test_freeze_stops_the_witness_and_is_seen(guest: Guest) -> None:
    guest.ask("reset")
    with guest.agent() as agent:
        assert agent.execute("guest-fsfreeze-freeze") == 1
        try:
            time.sleep(1.2)
            assert agent.freeze_status() == "frozen"
            frozen = guest.witness()
            time.sleep(1)
            assert frozen["counter"] == guest.witness()["counter"]
            assert disks.fsck(guest.disk_paths[0]) == []
        finally:
            agent.execute("guest-fsfreeze-thaw")
    assert guest.counts()["longest_pause_ms"] > 1000


def test_running_file_system_is_not_clean(guest: Guest) -> None:
    assert disks.fsck(guest.disk_paths[0])


def test_pause_takes_ram_and_disk_of_one_instant(guest: Guest, tmp_path: Path) -> None:
    for _unused in range(3):
        with guest.look() as qmp:
            qmp.execute("stop")
            try:
                disk = disk_state(guest.disk_paths[0])
                ram = ram_state(memory_of(guest, qmp, tmp_path / "ram"), disk.boot)
            finally:
                qmp.execute("cont")
        assert judge(ram, [disk], guest.witness()["pages"]) == ""


def test_oracle_sees_a_disk_taken_later(guest: Guest, tmp_path: Path) -> None:
    with guest.look() as qmp:
        qmp.execute("stop")
        try:
            file = memory_of(guest, qmp, tmp_path / "ram")
        finally:
            qmp.execute("cont")
    guest.counts()
    with guest.look() as qmp:
        qmp.execute("stop")
        disk = disk_state(guest.disk_paths[0])
        qmp.execute("cont")
    ram = ram_state(file, disk.boot)
    assert "the disks hold" in judge(ram, [disk])
    # Pages of the middle that are of another step: what a granule without protection looks like.
    pages = dict(ram.pages)
    pages[100] = (pages[100][0] + 5, pages[100][1] + 5)
    step = pages[0][0]
    right = type(disk)(disk.boot, 0, step, step)
    assert "page 100 holds" in judge(type(ram)(ram.boot, pages), [right])


def test_hung_and_missing_agent_and_failing_hook(guest: Guest) -> None:
    guest.command("agent hung")
    with pytest.raises(AgentError):
        guest.agent(timeout=1.0)
    guest.command("agent none")
    guest.command("agent run")
    guest.wait_agent()
    guest.command("hook fail")
    with guest.agent() as agent:
        with pytest.raises(AgentError, match="hook"):
            agent.execute("guest-fsfreeze-freeze")
        assert agent.freeze_status() == "thawed"
        guest.command("hook ok")
        assert agent.execute("guest-fsfreeze-freeze") == 1
        assert agent.execute("guest-fsfreeze-thaw") == 1
    guest.counts()


def test_two_of_all_as_another_user(make_guest: Callable[..., Guest]) -> None:
    guest = make_guest(user="nobody", sandbox=True, cpus=2, vga=True, net=True,
                       disks=(DiskSpec(), DiskSpec(format="qcow2")))
    right = {"disk0": "ok", "disk1": "ok", "net": "ok", "vga": "ok"}
    assert guest.devices().items() >= right.items()
    with guest.look() as qmp, pytest.raises(QmpError):
        qmp.execute("migrate-set-capabilities",
                    {"capabilities": [{"capability": "background-snapshot", "state": True}]})
    status = Path(f"/proc/{guest.pid}/status").read_text()
    assert "\nSeccomp:\t2" in status and "\nUid:\t0" not in status
    before = guest.counts()
    guest.shut_down()
    states = [disk_state(path) for path in guest.disk_paths]
    assert judge(None, states) == ""
    assert states[0].counter >= before["counter"]
    mark = guest.serial_log.stat().st_size
    guest.start()
    first = guest.witness_states(mark)[0]
    assert first["counter"] == 0 or first["counter"] >= states[0].counter
    assert guest.witness()["counter"] > states[0].counter


def test_migrated_copy_lives_and_survives_a_reset(guest: Guest, tmp_path: Path) -> None:
    stream, image = tmp_path / "stream", tmp_path / "disk0.raw"
    with guest.look(timeout=60.0) as qmp:
        qmp.execute("stop")
        before = guest.witness_states()[-1]
        qmp.execute("migrate", {"uri": f"exec:cat >{stream}"})
        while qmp.execute("query-migrate")["status"] not in ("completed", "failed"):
            time.sleep(0.1)
        shutil.copyfile(guest.disk_paths[0], image)
        # A migrated guest has given its disks away; cont takes them back.
        qmp.execute("cont")
    with Incoming(guest, stream, [image], of_paused=True) as copy:
        state = copy.counts()
        assert state["boot"] == before["boot"] and state["counter"] >= before["counter"]
        assert copy.devices()["disk0"] == "ok"
        with copy.look() as qmp:
            qmp.execute("system_reset")
        copy.wait_boot(state["boot"])
        copy.counts()
    guest.counts()
