# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The laboratory's libvirt: domains count as other guests do, whatever becomes of libvirtd."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest
from lab import AgentError, DiskSpec, Domain, LabError, Libvirtd, QmpError, disk_state, judge


def status_of(pid: int | None) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _unused, value in (line.partition(":") for line in lines)}


def test_domain_counts_and_outlives_libvirtd(
    libvirtd: Libvirtd, make_domain: Callable[..., Domain]
) -> None:
    domain = make_domain(disks=(DiskSpec(), DiskSpec(format="qcow2")), cpus=2)
    pid, first = domain.pid, domain.counts()
    status = status_of(pid)
    assert status["Uid"].split()[1] == str(pwd.getpwnam("libvirt-qemu").pw_uid)
    assert status["Seccomp"] == "2"
    assert os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink(f"/proc/{libvirtd.pid}/ns/mnt")
    assert domain.devices().items() >= {"disk0": "ok", "disk1": "ok"}.items()
    for end in (libvirtd.terminate, libvirtd.kill):
        end()
        assert not libvirtd.alive and domain.witness()["intact"]
        libvirtd.start()
        connection = libvirt.open(libvirtd.uri)
        assert connection.lookupByUUIDString(domain.uuid).name() == domain.name
        connection.close()
        assert libvirtd.virsh("list", "--name").split() == [domain.name]
        assert domain.pid == pid and domain.counts()["boot"] == first["boot"]
    domain.virsh("suspend")
    with domain.qmp() as qmp:
        assert qmp.status() == "paused"
        with pytest.raises(QmpError, match="CommandNotFound"):
            qmp.execute("no-such-command")
    assert judge(None, [disk_state(path) for path in domain.disk_paths]) == ""
    domain.virsh("resume")
    domain.command("hook fail")
    with domain.agent() as agent:
        with pytest.raises(AgentError, match="hook"):
            agent.execute("guest-fsfreeze-freeze")
        assert agent.freeze_status() == "thawed"
    domain.command("agent hung")
    with pytest.raises(AgentError):
        domain.agent(timeout=1.0)
    domain.stop()
    assert not os.path.exists(f"/proc/{pid}") and not domain.folder.exists()
    assert libvirtd.virsh("list", "--all") == ""


def test_stop_leaves_nothing() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    libvirtd = Libvirtd().start()
    domain = Domain(libvirtd, name="left")
    try:
        with pytest.raises(LabError, match="no option"):
            Domain(libvirtd, vga=True)
        domain.start(wait=False)
        pids = [libvirtd.pid, domain.pid]
        # With nobody to ask, QEMU can only be killed.
        libvirtd.kill()
        libvirtd.stop()
        assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
        assert not libvirtd.folder.exists()
        assert str(libvirtd.folder) not in Path("/proc/self/mounts").read_text()
    finally:
        libvirtd.stop()
        domain.stop()
    assert not domain.folder.exists()
