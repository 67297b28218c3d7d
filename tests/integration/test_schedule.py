# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Role schedule: units that systemd accepts, whose own command takes snapshots; they go away."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from guests import INFO, SMALL, entry, info
from lab import Guest
from runs import VENV, Controller, Run, local, play

PLAYBOOK = "livesnap.qemu.schedule"
UNITS = Path("/etc/systemd/system")
PREFIX = "livesnap-schedule-"
HOURLY: dict[str, Any] = {
    "name": "hourly", "calendar": "hourly", "delay": 300, "steps": ["snapshot", "prune"],
    "variables": {"snapshot_slot": "20261123T0100Z"},
}  # fmt: skip
NIGHTLY = {"name": "nightly", "calendar": "*-*-* 02:30 Europe/Berlin", "missed": "skip"}

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed"
)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No unit of a test outlives it."""
    if installed():
        pytest.skip("this machine has schedules of its own")
    yield
    for name in installed():
        (UNITS / name).unlink()
    shutil.rmtree("/etc/livesnap", ignore_errors=True)


def installed() -> list[str]:
    return sorted(str(path.relative_to(UNITS)) for path in UNITS.rglob(f"{PREFIX}*"))


def schedule(
    controller: Controller, timers: list[dict[str, Any]], *options: str, **given: Any
) -> Run:
    inventory = local(
        livesnap_timers=timers, livesnap_schedule_ansible=str(VENV / "ansible-playbook"),
        livesnap_schedule_collections=str(controller.collections), **given,
    )  # fmt: skip
    return controller.playbook(inventory, PLAYBOOK, *options)


def setting(unit: Path, key: str) -> list[str]:
    lines = unit.read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{key}=")]


def test_units_and_their_own_command(prepared: Controller, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir(mode=0o711)
    tmp_path.chmod(0o711)
    with Guest(**SMALL) as guest:
        own = {"livesnap_guests": [entry(guest, "web1")], "livesnap_store": str(store),
               "livesnap_keep_last": 1}  # fmt: skip
        assert (
            schedule(prepared, [HOURLY, NIGHTLY], "--check", **own).good().recap("hv1")["changed"]
        )
        assert installed() == []
        schedule(prepared, [HOURLY, NIGHTLY], **own).good()
        again = schedule(prepared, [HOURLY, NIGHTLY], **own).good()
        assert again.recap("hv1")["changed"] == 0
        units = [UNITS / f"{PREFIX}{name}" for name in ("hourly.timer", "nightly.timer")]
        judged = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *map(str, units)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert PREFIX not in judged.stderr + judged.stdout
        assert setting(units[0], "Persistent") == ["true"]
        assert setting(units[0], "RandomizedDelaySec") == ["300"]
        assert setting(units[1], "Persistent") == ["false"]
        service = UNITS / f"{PREFIX}hourly.service"
        (command,) = setting(service, "ExecStart")
        environment = dict(line.split("=", 1) for line in setting(service, "Environment"))
        for changed in (True, False):
            done = subprocess.run(
                shlex.split(command.replace("$$", "$")),
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                     "HOME": str(tmp_path), "ANSIBLE_ASYNC_DIR": str(tmp_path / "async"),
                     **environment},
                cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            assert ("changed=1" in done.stdout) is changed
            assert done.stdout.count("PLAY RECAP") == 2
        listed = prepared.playbook(local(), play(info(store))).good().one(INFO)["snapshots"]
        assert [each["name"] for each in listed] == ["hourly-20261123T0100Z"]
        # A step that fails fails the service, and the next runs all the same.
        guest.stop()
        variables = Path("/etc/livesnap/schedule/hourly.yml")
        given = yaml.safe_load(variables.read_text())
        variables.write_text(yaml.safe_dump({**given, "snapshot_slot": "20261123T0200Z"}))
        done = subprocess.run(
            shlex.split(command.replace("$$", "$")),
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **environment},
            cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2 and done.stdout.count("PLAY RECAP") == 2
    # One that is not wanted any more goes, the other stays as it is.
    schedule(prepared, [NIGHTLY], **own).good()
    assert installed() == [
        f"{PREFIX}nightly.service", f"{PREFIX}nightly.timer",
        f"timers.target.wants/{PREFIX}nightly.timer",
    ]  # fmt: skip
    schedule(prepared, [NIGHTLY], "-e", "schedule_state=absent", **own).good()
    assert installed() == [] and not Path("/etc/livesnap").exists()
    gone = schedule(prepared, [NIGHTLY], "-e", "schedule_state=absent", **own).good()
    assert gone.recap("hv1")["changed"] == 0


#: What a host has instead of what works, and what it is told.
IMPOSSIBLE: list[tuple[dict[str, str], dict[str, str], str]] = [
    ({"calendar": "every now and then"}, {}, "every now and then"),
    ({"name": "a b"}, {}, "letters, digits and hyphens"),
    ({"calendar": "hourly\nPersistent=no"}, {}, "letters, digits and hyphens"),
    ({"missed": "twice"}, {}, "twice"),
    ({}, {"livesnap_schedule_ansible": "/nowhere/ansible-playbook"}, "install ansible-core"),
    ({}, {"livesnap_schedule_user": "nobody"}, "only a control host"),
]


def test_what_cannot_be_is_refused_before_anything(controller: Controller) -> None:
    common = {
        "ansible_connection": "local",
        "livesnap_schedule_ansible": str(VENV / "ansible-playbook"),
        "livesnap_schedule_collections": str(controller.collections),
    }
    hosts = {
        f"hv{number}": {**common, "livesnap_timers": [{**HOURLY, **timer}], **given}
        for number, (timer, given, _why) in enumerate(IMPOSSIBLE)
    }
    run = controller.playbook({"hosts": hosts}, PLAYBOOK)
    assert run.code == 2
    for number, (_timer, _given, why) in enumerate(IMPOSSIBLE):
        host = f"hv{number}"
        said = [
            json.dumps(line["result"]).replace("\\n", " ")
            for line in run.results
            if line["host"] == host and line["outcome"] == "failed"
        ]
        assert len(said) == 1 and why in said[0], (host, said, run.text)
    assert installed() == [] and not Path("/etc/livesnap").exists()
