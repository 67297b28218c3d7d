# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible and its module are killed in the middle: what has its instant completes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from guests import INFO, MODULE, RECOVER, SMALL, info, snapshot
from lab import Guest
from runs import VENV, Controller, local, play

RUN = Path("/run/livesnap/guest")
# So that the sweep lasts some seconds.
SLOW = {"bandwidth": "8M", "compression": "none"}


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest(**SMALL) as running:
        yield running


def phase(guest: Guest) -> str:
    """What the owner of this guest's snapshot is at."""
    for path in RUN.glob(f"{guest.pid}-*/progress.json"):
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads(path.read_text()).get("phase"))
    return ""


def descendants(pid: int) -> list[int]:
    """A process and all that it started, as long as their parents live."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def kill_when(guest: Guest, ansible: subprocess.Popen[bytes], wanted: str, log: Path) -> None:
    """SIGKILL to ansible and its modules, all at once, at that phase of the snapshot."""
    end = time.monotonic() + 60
    while phase(guest) != wanted:
        assert ansible.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.02)
    for pid in descendants(ansible.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    ansible.wait(10)


def test_after_the_instant_it_completes(
    prepared: Controller, guest: Guest, store: Path, tmp_path: Path
) -> None:
    task = snapshot(guest, "web1", "one", store, **SLOW)
    (tmp_path / "inventory.yml").write_text(yaml.safe_dump({"hypervisors": local()}))
    (tmp_path / "play.yml").write_text(yaml.safe_dump(play(task)))
    log = tmp_path / "log"
    with log.open("wb") as output:
        ansible = subprocess.Popen(
            [VENV / "ansible-playbook", "-i", tmp_path / "inventory.yml", tmp_path / "play.yml"],
            env=prepared.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    kill_when(guest, ansible, "sweep", log)
    listed = prepared.playbook(local(), play(info(store))).good().one(INFO)["snapshots"]
    assert [(entry["name"], entry["complete"]) for entry in listed] == [("one", False)]
    assert listed[0]["in_progress"]["owner"]["pid"] > 1
    # The next run of that name waits for it, and returns it.
    again = prepared.playbook(local(), play(task)).good().one(MODULE)
    assert again["changed"] is False
    assert again["snapshot"]["complete"] is True
    assert again["recovered"] == []
    listed = prepared.playbook(local(), play(info(store))).good().one(INFO)["snapshots"]
    assert [(entry["name"], entry["id"]) for entry in listed] == [("one", again["snapshot"]["id"])]
    recover = {"name": "Recover", RECOVER: {"store": str(store)}}
    left = prepared.playbook(local(), play(recover)).good().one(RECOVER)
    assert left["changed"] is False
    guest.counts()
