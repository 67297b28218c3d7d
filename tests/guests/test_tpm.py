# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests with a TPM, which is a program beside QEMU: who can start another one for a snapshot."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.clone import (
    CloneRequest,
    create_clone,
    plan_clone,
    remove_clone,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from lab import Domain, DomainReach, Guest, Libvirtd
from taking import TestStore, as_module, helper, verdict

pytestmark = pytest.mark.skipif(
    shutil.which("swtpm_setup") is None, reason="swtpm is not installed")


@pytest.fixture
def swtpm() -> Iterator[Path]:
    """The socket of a TPM of a guest that has no manager."""
    with tempfile.TemporaryDirectory(prefix="livesnap-tpm-", dir="/tmp") as folder:
        socket = Path(folder) / "socket"
        with subprocess.Popen(
                ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}",
                 "--ctrl", f"type=unixio,path={socket}"]) as process:
            deadline = time.monotonic() + 10
            while not socket.exists():
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.05)
            yield socket
            process.kill()


def registers(guest: Guest | DomainReach) -> str:
    """What the guest's firmware has measured, as its TPM tells."""
    with guest.agent() as agent:
        return agent.run("/bin/sh", "-c", "cat /sys/class/tpm/tpm0/pcr-sha256/*")


#: TPM2_PCR_Extend of register 16 by 32 letters, without a password.
EXTEND = (r"\200\002\000\000\000\101\000\000\001\202\000\000\000\020\000\000\000\011"
          r"\100\000\000\011\000\000\000\000\000\000\000\000\001\000\013" + "A" * 32)


def extend(guest: Guest | Domain) -> None:
    """Its TPM is in another state than before."""
    before = registers(guest)
    with guest.agent() as agent:
        agent.run("/bin/sh", "-c", f"printf '{EXTEND}' > /dev/tpm0")
    assert registers(guest) != before


def test_a_guest_with_a_tpm(swtpm: Path, store: TestStore) -> None:
    """Its snapshot says what it lacks, and nothing is made of it."""
    args = ("-chardev", f"socket,id=chip,path={swtpm}", "-tpmdev", "emulator,id=tpm,chardev=chip",
            "-device", "tpm-tis,tpmdev=tpm")
    with Guest(name="sealed", memory=128, packed=True, args=args) as guest:
        before = registers(guest)
        result = store.take(guest, "one", freeze="never")
        assert verdict(guest, result, guest.witness()["pages"]) == ""
        said = result["snapshot"]["restore_blockers"]
        assert len(said) == 1 and "the TPM is another program" in said[0]
        assert registers(guest) == before
        extend(guest)
        request = CloneRequest(str(store.path), "sealed", "twin", "one", helper=helper())
        for what in (lambda: plan_clone(request), lambda: store.restore(guest, "one")):
            with pytest.raises(LivesnapError, match=r"cannot be brought back: .*TPM"):
                what()
        guest.counts()


def test_a_domain_with_a_tpm(libvirtd: Libvirtd, store: TestStore) -> None:
    """libvirt's own comes back with its domain, and a clone has one for itself."""
    tpm = "<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>"
    with Domain(libvirtd, name="sealed", memory=128, packed=True, devices=tpm) as domain:
        pages = domain.witness()["pages"]
        extend(domain)
        before = registers(domain)
        result = store.take(domain, "one", freeze="never")
        assert verdict(domain, result, pages) == ""
        assert result["snapshot"]["restore_blockers"] == []
        extend(domain)
        later = registers(domain)
        request = CloneRequest(str(store.path), "sealed", "twin", "one", helper=helper())
        kept = libvirtd.folder / "lib" / "swtpm"
        try:
            made = as_module(lambda: create_clone(request))
            twin = DomainReach(libvirtd, made["domain"], made["pid"])
            assert registers(twin) == before
            twin.counts()
            assert {each.name for each in kept.iterdir()} == {domain.uuid, made["uuid"]}
        finally:
            as_module(lambda: remove_clone(request))
        assert [each.name for each in kept.iterdir()] == [domain.uuid]
        assert registers(domain) == later
        back = store.restore(domain, "one")
        domain.pid = back["pid"]
        assert registers(domain) == before
        domain.counts()
        again = store.take(domain, "two", freeze="never")
        assert verdict(domain, again, pages) == ""
