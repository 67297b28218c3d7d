# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clones of libvirt's domains: a second domain beside the first, which notices nothing of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.clone import (
    CloneRequest,
    create_clone,
    plan_clone,
    remove_clone,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.domain_clone import DomainClone
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.standing import (
    remove_unfinished,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import CloneError, LivesnapError
from lab import DiskSpec, Domain, DomainReach, Libvirtd
from taking import TestStore, as_module, folder_of, helper, verdict

GENERATION = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"


@pytest.fixture(scope="module")
def bridge() -> Iterator[str]:
    """A bridge that leads nowhere."""
    name = f"lsbr{os.getpid() % 1000000}"
    made = subprocess.run(["ip", "link", "add", name, "type", "bridge"], capture_output=True,
                          text=True, timeout=10, check=False)
    if made.returncode:
        pytest.skip(f"no bridge can be made: {made.stderr.strip()}")
    try:
        subprocess.run(["ip", "link", "set", name, "up"], check=True, timeout=10)
        yield name
    finally:
        subprocess.run(["ip", "link", "del", name], check=True, timeout=10)


@pytest.fixture(scope="module")
def shop(libvirtd: Libvirtd, bridge: str) -> Iterator[Domain]:
    """A guest with what a clone must not share: ports, cards, a display, firmware's variables."""
    domain = Domain(libvirtd, name="shop", disks=(DiskSpec(), DiskSpec(64, "qcow2")), devices=f"""
        <interface type='bridge'><source bridge='{bridge}'/><model type='virtio'/></interface>
        <interface type='user'><model type='virtio'/></interface>
        <graphics type='vnc' autoport='yes' listen='127.0.0.1'/>
        <video><model type='vga'/></video>
        <channel type='unix'><target type='virtio' name='org.example.0'/></channel>""")
    variables = domain.folder / "variables.fd"
    variables.write_bytes(b"V" * (128 << 10))
    xml = domain.folder / "domain.xml"
    xml.write_text(xml.read_text().replace("</type>", f"""</type>
        <loader readonly='yes' type='pflash'>/usr/share/seabios/bios-256k.bin</loader>
        <nvram>{variables}</nvram>""", 1).replace("</uuid>", f"</uuid><genid>{GENERATION}</genid>"))
    libvirtd.virsh("define", str(xml))
    with domain:
        yield domain


class Clones:
    """A snapshot of the shop, and clones of that."""

    def __init__(self, shop: Domain, store: TestStore) -> None:
        self.shop = shop
        self.store = store
        self.taken = store.take(shop, "one", freeze="required")
        self.boot = shop.counts()["boot"]
        self.before = self.view()

    def view(self) -> tuple[str, ...]:
        """What libvirt tells of the original."""
        return tuple(self.shop.virsh(command) for command in
                     ("dumpxml", "domblklist", "domiflist", "snapshot-list", "domjobinfo"))

    def request(self, name: str = "look", **given: Any) -> CloneRequest:
        given = {"snapshot": "one", "helper": helper(), **given}
        return CloneRequest(str(self.store.path), "shop", name, **given)

    def create(self, name: str = "look", **given: Any) -> dict[str, Any]:
        request = self.request(name, **given)
        return as_module(lambda: create_clone(request))

    def remove(self, name: str = "look") -> dict[str, Any]:
        request = self.request(name)
        return as_module(lambda: remove_clone(request))

    @contextlib.contextmanager
    def clone(self, name: str = "look", **given: Any) -> Iterator[dict[str, Any]]:
        try:
            yield self.create(name, **given)
        finally:
            self.remove(name)
            self.check_gone(name)

    def check_gone(self, name: str = "look") -> None:
        """Nothing of a clone is left, and the original is as it was."""
        assert self.shop.libvirtd.virsh("list", "--all", "--name").split() == ["shop"]
        assert self.request(name).place.left() == []
        assert not list(self.store.path.glob("*/.clones"))
        place = str(self.request(name).place.overlays).encode()
        pids = filter(str.isdigit, os.listdir("/proc"))
        assert not [pid for pid in pids if place in text(Path(f"/proc/{pid}/cmdline"))]
        assert self.view() == self.before
        self.shop.counts()

    def reach(self, made: dict[str, Any]) -> DomainReach:
        return DomainReach(self.shop.libvirtd, made["domain"], made["pid"])


def text(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def clones(shop: Domain) -> Iterator[Clones]:
    store = TestStore()
    try:
        yield Clones(shop, store)
    finally:
        store.remove()


def in_guest(reach: DomainReach | Domain, *argv: str) -> str:
    with reach.agent() as agent:
        return agent.run(*argv).strip()


def test_beside_the_original(clones: Clones) -> None:
    request = clones.request()
    plan = as_module(lambda: plan_clone(request))
    assert (plan["changed"], plan["pid"], plan["domain"]) == (True, None, "shop.look")
    clones.check_gone()
    ram = (folder_of(clones.taken) / "ram.lsnap").read_bytes()
    with clones.clone() as made:
        assert made["changed"] and made["running"] and made["warnings"] == []
        assert made["actions"] == plan["actions"] and made["overlays"] == plan["overlays"]
        assert (made["domain"], made["qmp_socket"], len(made["overlays"])) == ("shop.look", None, 2)
        twin = clones.reach(made)
        about = twin.virsh("dominfo")
        assert "Persistent:     no" in about and made["uuid"] in about
        assert twin.counts()["boot"] == clones.boot
        with twin.agent() as agent:
            assert abs(int(agent.run("/bin/date", "+%s")) - time.time()) < 5
        clones.shop.counts()
        assert clones.view() == clones.before
        again = clones.create()
        assert not again["changed"] and again["actions"] == []
        assert {key: again[key] for key in ("pid", "uuid", "overlays", "running")} == {
            key: made[key] for key in ("pid", "uuid", "overlays", "running")}
        check_apart(clones, made)
        # Whoever resumes from the same state has to learn that it is not alone.
        with clones.shop.qmp() as qmp, twin.qmp() as other:
            assert qmp.execute("query-vm-generation-id") == {"guid": GENERATION}
            assert other.execute("query-vm-generation-id") != {"guid": GENERATION}
        # A snapshot of the clone shows that its RAM and its disks are of one instant.
        pages = clones.shop.witness()["pages"]
        kept = clones.store.take(clones.shop, "of-the-clone", guest=made["domain"])
        assert judged(clones.shop, kept, pages) == ""
    assert (folder_of(clones.taken) / "ram.lsnap").read_bytes() == ram
    assert judged(clones.shop, clones.taken, pages) == ""
    assert clones.remove()["changed"] is False


def judged(shop: Domain, result: dict[str, Any], pages: int) -> str:
    """The verdict, for which the flash with the firmware's variables is no disk."""
    snapshot = result["snapshot"]
    disks = [disk for disk in snapshot["disks"] if disk["match"] in ("vda", "vdb")]
    return verdict(shop, {"snapshot": {**snapshot, "disks": disks}}, pages)


def check_apart(clones: Clones, made: dict[str, Any]) -> None:
    """Nothing that the clone has is the original's, and its cards lead nowhere."""
    twin = clones.reach(made)
    ours, theirs = (ET.fromstring(each.virsh("dumpxml")) for each in (twin, clones.shop))
    # What may be the same: what nobody writes to.
    shared = {str(clones.shop.folder / name) for name in ("kernel.img", "initrd.img")}
    shared |= {"/machine", "/dev/urandom", "/usr/bin/qemu-system-x86_64",
               "/usr/share/seabios/bios-256k.bin"}
    assert paths(ours) & paths(theirs) <= shared
    for path in ("uuid", "devices/interface/mac", "devices/interface/target"):
        found = [[(each.text or "", sorted(each.attrib.items())) for each in root.iterfind(path)]
                 for root in (ours, theirs)]
        assert not [each for each in found[0] if each in found[1]], path
    assert [each.get("type") for each in ours.iterfind("devices/interface")] == [
        "ethernet", "user"]
    listen = ours.find("devices/graphics/listen")
    assert listen is not None and listen.get("type") == "none"
    for card in ("eth0", "eth1"):
        for reach in (twin, clones.shop):
            in_guest(reach, "/bin/ip", "link", "set", card, "up")
        carrier = f"/sys/class/net/{card}/carrier"
        assert in_guest(twin, "/bin/cat", carrier) == "0"
        assert in_guest(clones.shop, "/bin/cat", carrier) == "1"
    assert all(Path(each).is_char_device() for each in made["consoles"]) and made["consoles"]
    assert made["agent_socket"] in paths(ours)


def paths(root: ET.Element) -> set[str]:
    """Everything in a domain's XML that looks like one."""
    values = [value for each in root.iter() for value in (each.text or "", *each.attrib.values())]
    return {value.strip() for value in values if value.strip().startswith("/")}


def test_on_the_originals_network(clones: Clones) -> None:
    with clones.clone(network=True) as made:
        assert ["new MAC addresses" in each for each in made["warnings"]] == [True]
        xml = ET.fromstring(clones.reach(made).virsh("dumpxml"))
        first, second = xml.findall("devices/interface")
        assert (first.get("type"), second.get("type")) == ("bridge", "user")
        carrier = "/sys/class/net/eth0/carrier"
        assert in_guest(clones.reach(made), "/bin/cat", carrier) == "1"
        with pytest.raises(LivesnapError, match="is there already"):
            clones.create(network=False)


def test_a_paused_domain_gives_a_paused_clone(clones: Clones) -> None:
    clones.shop.virsh("suspend")
    try:
        clones.store.take(clones.shop, "paused")
    finally:
        clones.shop.virsh("resume")
    with clones.clone(snapshot="paused") as made:
        assert not made["running"]
        clones.reach(made).virsh("resume")
        assert clones.reach(made).counts()["boot"] == clones.boot


def test_a_failure_leaves_nothing(clones: Clones, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_unused: object) -> None:
        raise CloneError("at the last step")

    monkeypatch.setattr(DomainClone, "_wake", fails)
    with pytest.raises(LivesnapError, match="at the last step"):
        clones.create()
    clones.check_gone()
    with pytest.raises(LivesnapError, match="livesnap-helper ended with code 1"):
        clones.create(helper="/bin/false")
    # Somebody else's domain of that name is not touched.
    other = clones.shop.folder / "other.xml"
    other.write_text("<domain type='qemu'><name>shop.look</name><memory>1024</memory><os>"
                     "<type>hvm</type></os></domain>")
    libvirtd = clones.shop.libvirtd
    libvirtd.virsh("define", str(other))
    try:
        with pytest.raises(LivesnapError, match=r"has a domain 'shop\.look' already"):
            clones.create()
        assert not clones.remove()["changed"]
    finally:
        libvirtd.virsh("undefine", "shop.look")
    clones.check_gone()


@pytest.mark.parametrize("by", ["present", "recovery"])
def test_its_maker_dies(clones: Clones, by: str) -> None:
    """While libvirt restores the domain: what is half made is made again, or removed."""
    request, libvirtd = clones.request(), clones.shop.libvirtd
    maker = os.fork()
    if maker == 0:
        with contextlib.suppress(BaseException):
            create_clone(request)
        os._exit(0)
    deadline = time.monotonic() + 60
    while "shop.look" not in libvirtd.virsh("list", "--name").split():
        assert time.monotonic() < deadline and os.waitpid(maker, os.WNOHANG) == (0, 0)
    os.kill(maker, signal.SIGKILL)
    os.waitpid(maker, 0)
    if by == "present":
        with clones.clone() as made:
            assert made["actions"][0] == "removed what was left of clone 'look'"
            assert clones.reach(made).counts()["boot"] == clones.boot
        return
    store = str(clones.store.path)
    assert [each.name for each in as_module(lambda: remove_unfinished(store))] == ["look"]
    clones.check_gone()
