# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of libvirt's domains without libvirt."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _deps
from ansible_collections.livesnap.qemu.plugins.module_utils._connection import _peer
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import (
    Domain,
    bounded,
    check_uri,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.domain_jobs import backup_xml
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    QmpDisconnected,
    QmpTimeout,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.domain_xml import (
    agent_state,
    disk_targets,
    xml_blockers,
)

XML = """<domain type='kvm'><name>a</name><devices>
<disk type='file' device='disk'><source file='/a'/><target dev='vda' bus='virtio'/>
<alias name='virtio-disk0'/></disk>
<disk type='file' device='cdrom'><target dev='sda'/><alias name='sata0-0-0'/></disk>
<disk type='file' device='disk'><target dev='vdb'/></disk>{more}</devices></domain>"""
CHANNEL = "<channel type='unix'><target type='virtio' name='{name}'{state}/></channel>"


def channel(name: str, state: str = "") -> str:
    return XML.format(more=CHANNEL.format(name=name, state=state))


def test_disks_have_the_names_that_qemu_and_libvirt_give_them() -> None:
    assert disk_targets(XML.format(more="")) == {"virtio-disk0": "vda", "sata0-0-0": "sda"}


def test_the_agents_channel_among_others() -> None:
    agent = "org.qemu.guest_agent.0"
    assert agent_state(channel(agent, " state='connected'")) == "connected"
    assert agent_state(channel(agent, " state='disconnected'")) == "disconnected"
    assert agent_state(channel(agent)) == "disconnected"
    assert agent_state(channel("com.redhat.spice.0", " state='connected'")) == "absent"
    assert agent_state(XML.format(more="")) == "absent"


def test_a_tpm_that_is_not_libvirts_own_would_be_missed_by_a_restore() -> None:
    assert xml_blockers(XML.format(more="")) == []
    own = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    assert xml_blockers(XML.format(more=own)) == []
    for other in ("<tpm model='tpm-crb'/>", own.replace("emulator", "passthrough")):
        assert "TPM" in xml_blockers(XML.format(more=other))[0]


def test_a_backup_of_some_disks_says_so_of_the_others() -> None:
    assert backup_xml({"vdb": Path("/s/a&b.qcow2")}, ["vda", "vdb"]) == (
        '<domainbackup mode="push"><disks><disk name="vda" backup="no" />'
        '<disk name="vdb" type="file" backupmode="full"><driver type="qcow2" />'
        '<target file="/s/a&amp;b.qcow2" /></disk></disks></domainbackup>')


@pytest.mark.parametrize(("named", "is_it"), [
    ("guest=a,debug-threads=on", True), ("guest=a", True), ("guest=ab,debug-threads=on", False),
    ("guest=a,,b,debug-threads=on", False), ("a", False),
])
def test_a_process_is_a_domains_by_name_and_uuid(named: str, is_it: bool) -> None:
    argv = ["/usr/bin/qemu-system-x86_64", "-name", named, "-S", "-uuid", "U", ""]
    assert _peer.names_domain(argv, "a", "U") is is_it
    assert not _peer.names_domain(argv, "a", "V")


def test_a_comma_in_a_name_is_doubled() -> None:
    assert _peer.names_domain(["q", "-name", "guest=a,,b,debug-threads=on", "-uuid", "U"], "a,b",
                              "U")


def test_only_this_machines_libvirt_and_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_deps, "libvirt", object())
    for uri in ("qemu:///system", "qemu+unix:///session", "qemu:///system?socket=/s"):
        check_uri(uri)
    for uri in ("qemu+ssh://elsewhere/system", "qemu://elsewhere/system", "xen:///", "nonsense"):
        with pytest.raises(LivesnapError, match="is not of this machine's libvirt and QEMU"):
            check_uri(uri)
    monkeypatch.setattr(_deps, "libvirt", None)
    with pytest.raises(LivesnapError, match=r"'libvirt' is missing.*install python3-libvirt"):
        check_uri("qemu:///system")


def test_a_call_is_waited_for_so_long_and_no_longer() -> None:
    assert bounded(lambda: 5, 10.0) == 5
    with pytest.raises(KeyError):
        bounded(lambda: {}["x"], 10.0)
    end = threading.Event()
    with pytest.raises(TimeoutError):
        bounded(end.wait, 0.05)
    # It may still take effect, and then it cannot any more.
    domain = Domain("qemu:///system")
    assert domain.settle(0.05)
    end.set()
    assert domain.settle(10.0)
    assert not domain.settle(0.0)


def test_after_a_call_that_was_given_up_the_connection_is_dead() -> None:
    domain, end = Domain("qemu:///system"), threading.Event()
    with pytest.raises(QmpTimeout, match="did not answer 'suspend'"):
        domain.call("suspend", lambda _domain: end.wait(), 0.05)
    assert domain.dead
    with pytest.raises(QmpDisconnected, match="no reply to 'suspend'"):
        domain.call("resume", lambda _domain: None)
    end.set()
    assert domain.settle(10.0)
