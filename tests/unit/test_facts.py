# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What QEMU prints, as Debian 12's 7.2 prints it, and what follows from it for the engine."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._guest import (
    engine_checks,
    facts,
    mtree,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import parse_disks
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.facts import (
    Backend,
    BlockNode,
    Device,
    GuestFacts,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.firmware import firmware_of
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.paths import absolute

RAMBLOCK = """\
              Block Name    PSize              Offset               Used              Total
                  pc.ram    4 KiB  0x0000000000000000 0x0000000040000000 0x0000000040000000
   0000:00:02.0/vga.vram    4 KiB  0x0000000040080000 0x0000000001000000 0x0000000001000000
    /rom@etc/acpi/tables    4 KiB  0x0000000041100000 0x0000000000020000 0x0000000000200000
                 pc.bios    4 KiB  0x0000000040000000 0x0000000000040000 0x0000000000040000
0000:00:05.0/virtio-net-pci.rom    4 KiB  0x00000000410c0000 0x0000000000040000 0x0000000000040000
                  pc.rom    2 MiB  0x0000000040040000 0x0000000000020000 0x0000000000020000
                 tpm-ppi    4 KiB  0x0000000041340000 0x0000000000001000 0x0000000000001000
"""
RAMBLOCK_10 = """\
              Block Name    PSize              Offset               Used              Total\
                HVA  RO
                  pc.ram    4 KiB  0x0000000000000000 0x0000000040000000 0x0000000040000000\
 0x00007f2f4fe00000  rw
"""
MTREE = """\
FlatView #0
 AS "VGA", root: bus master container
 Root memory region: (none)
  No rendered FlatView

FlatView #1
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #2
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM
  00000000000a0000-00000000000affff (prio 1, ram): alias vga.chain4
  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom
  00000000000e0000-00000000000fffff (prio 0, rom): pc.bios @0000000000020000 KVM
  0000000000100000-000000001fffffff (prio 0, ram): pc.ram @0000000000100000
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic
  00000000fed45000-00000000fed453ff (prio 0, ram): tpm-ppi
  0000000100000000-000000011fffffff (prio 0, ram): pc.ram @0000000020000000

"""


def test_ramblocks() -> None:
    blocks = mtree.parse_ramblocks(RAMBLOCK)
    assert blocks["pc.ram"] == 1 << 30
    assert blocks["/rom@etc/acpi/tables"] == 0x20000
    assert blocks["0000:00:05.0/virtio-net-pci.rom"] == 0x40000
    assert len(blocks) == 7
    assert mtree.parse_ramblocks(RAMBLOCK_10) == {"pc.ram": 1 << 30}


def test_mtree() -> None:
    ranges = mtree.parse_mtree(MTREE, mtree.parse_ramblocks(RAMBLOCK))
    assert [dataclasses.astuple(entry) for entry in ranges] == [
        (0, "pc.ram", 0, 0xA0000),
        (0xC0000, "pc.rom", 0, 0x20000),
        (0xE0000, "pc.bios", 0x20000, 0x20000),
        (0x100000, "pc.ram", 0x100000, 0x1FF00000),
        (0xFD000000, "0000:00:02.0/vga.vram", 0, 0x1000000),
        (0x100000000, "pc.ram", 0x20000000, 0x20000000),
    ]
    assert mtree.parse_mtree("rubbish", {}) == []


def test_region_of_two_blocks_is_nobodys() -> None:
    blocks = {"0000:00:02.0/vga.vram": 1, "0000:00:03.0/vga.vram": 1, "pc.ram": 1}
    assert mtree.block_of("vga.vram", blocks) == ""
    assert mtree.block_of("pc.ram", blocks) == "pc.ram"


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("a.qcow2", "/vm/a.qcow2"),
        ("./d/../a", "/vm/a"),
        ("/a", "/a"),
        ("nbd://host/x", "nbd://host/x"),
        ('json:{"driver": "file"}', 'json:{"driver": "file"}'),
        ("file:a", "/vm/a"),
        ("d/a:b", "/vm/d/a:b"),
        ("", ""),
    ],
)
def test_absolute(name: str, full: str) -> None:
    assert absolute(name, "/vm") == full


def test_disks() -> None:
    image = {"filename": "a.qcow2", "virtual-size": 64}
    inserted = {"node-name": "#block1", "drv": "qcow2", "ro": False, "image": image}
    blocks: list[dict[str, Any]] = [
        {"device": "virtio0", "qdev": "/machine/peripheral/sys/virtio-backend", "removable": False},
        {"device": "ide1-cd0", "qdev": "/machine/unattached/device[20]", "removable": True},
    ]
    blocks[0]["inserted"] = inserted
    disk, empty = parse_disks(blocks, "/vm", lambda path: "S1" if "sys" in path else "", {})
    assert (disk.names, disk.file) == (("virtio0", "#block1", "sys", "S1"), "/vm/a.qcow2")
    assert (disk.virtual_bytes, disk.read_only, disk.inserted) == (64, False, True)
    assert not empty.inserted and empty.read_only and empty.label == "ide1-cd0"


def test_network() -> None:
    text = (
        "virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci\n \\ n0: index=0,type=tap,fd=3\n"
    )
    assert facts.parse_network(text) == ["nic", "tap"]


def test_plugged() -> None:
    there = [Device("/machine/peripheral/a", "virtio-blk-pci", "a", False)]
    assert facts.plug_blockers(there, ["a"]) == []
    new = Device("/machine/peripheral/b", "virtio-net-pci", "b", True)
    assert "'b'" in facts.plug_blockers([*there, new], ["a"])[0]
    assert "'c'" in facts.plug_blockers(there, ["a", "c"])[0]


def test_firmware(tmp_path: Any) -> None:
    (tmp_path / "bios").write_bytes(b"x" * 8)
    (found,) = firmware_of(["/bios", "/none", "/bios"], str(tmp_path))
    assert found.bytes == 8 and found.path == "/bios" and len(found.sha256) == 64


GOOD = GuestFacts(
    name="web1",
    uuid="6b0a1c6e-1111-4222-8333-444455556666",
    status="running",
    running=True,
    qemu_version="7.2.22",
    qemu_package="",
    arch="x86_64",
    accel="tcg",
    machine="pc-i440fx-7.2",
    cpu="qemu64-x86_64-cpu",
    cpus=1,
    memory_bytes=1 << 30,
    ramblock=RAMBLOCK,
    gpa=[],
    disks=[],
    devices=[Device("/machine/peripheral/a", "virtio-blk-pci", "a", False)],
    backends=[Backend("pc.ram", "memory-backend-ram", "", False)],
    netdev_types=["nic", "user"],
    block_nodes=[BlockNode("d0", "qcow2", "/vm/a.qcow2")],
    firmware=[],
    migration_status="none",
    balloon_bytes=None,
    free_page_reporting=False,
)


def device(kind: str) -> dict[str, Any]:
    return {"devices": [Device("/machine/peripheral/x", kind, "x", False)]}


def test_nothing_against_it() -> None:
    assert engine_checks.uffd_reasons(GOOD) == []
    paused = dataclasses.replace(GOOD, status="paused", running=False)
    assert engine_checks.uffd_reasons(paused) == []


#: What no engine can do anything about.
ANY_ENGINE: list[tuple[dict[str, Any], str]] = [
    ({"status": "inmigrate"}, "state"),
    ({"migration_status": "active"}, "migration"),
    ({"arch": "s390x"}, "arch"),
    ({"blockers": ["no"]}, "migration_blocked"),
    (device("nvme"), "unmigratable"),
    (device("ufs-lu"), "unmigratable"),
    (device("usb-uas"), "unmigratable"),
    (device("vfio-pci"), "vfio"),
    (device("ivshmem-plain"), "ivshmem"),
    (device("virtio-mem-pci"), "virtio_mem"),
    ({"backends": [Backend("s", "sev-guest", "", False)]}, "confidential"),
    ({"backends": [Backend("s", "memory-backend-epc", "", False)]}, "confidential"),
]
#: What does not happen while the guest stands still.
WHILE_IT_RUNS: list[tuple[dict[str, Any], str]] = [
    (device("vhost-user-fs-pci"), "vhost_user"),
    (device("vhost-vdpa-device-pci"), "vhost_vdpa"),
    ({"free_page_reporting": True}, "free_page_reporting"),
    ({"netdev_types": ["vhost-user"]}, "vhost_user"),
    ({"netdev_types": ["vhost-vdpa"]}, "vhost_vdpa"),
    ({"block_nodes": [BlockNode("n", "nvme", "nvme://x")]}, "pinned_blockdev"),
]


@pytest.mark.parametrize(("change", "reason"), ANY_ENGINE + WHILE_IT_RUNS)
def test_uffd_stands_aside(change: dict[str, Any], reason: str) -> None:
    found = engine_checks.uffd_reasons(dataclasses.replace(GOOD, **change))
    assert [entry.reason for entry in found] == [reason]
    assert found[0].message


@pytest.mark.parametrize(("change", "reason"), ANY_ENGINE)
def test_every_engine_stands_aside(change: dict[str, Any], reason: str) -> None:
    found = engine_checks.pause_reasons(dataclasses.replace(GOOD, **change))
    assert [entry.reason for entry in found] == [reason]


@pytest.mark.parametrize(("change", "reason"), WHILE_IT_RUNS)
def test_pause_need_not(change: dict[str, Any], reason: str) -> None:
    assert engine_checks.pause_reasons(dataclasses.replace(GOOD, **change)) == [], reason
