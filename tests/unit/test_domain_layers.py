# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""XML of libvirt's that covers disks, what was written since, and definitions without a layer."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any, cast

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import layers
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.definition import without_layer
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.domain_layers import (
    snapshot_xml,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.xml import with_images

CHAIN = """<domain><devices>
  <disk type='file'><driver name='qemu' type='qcow2'/><source file='/vm/top'/>
    <backingStore type='file'><format type='qcow2'/><source file='/vm/middle'/>
      <backingStore type='file'><format type='raw'/><source file='/vm/disk.raw'/></backingStore>
    </backingStore><target dev='vda'/></disk>
  <disk type='file'><driver name='qemu' type='raw'/><source file='/vm/other.raw'/>
    <target dev='vdb'/></disk>
  <disk type='block'><source dev='/dev/sda'/><target dev='vdc'/></disk>
</devices></domain>"""


def disks(xml: str | None) -> list[ET.Element]:
    assert xml is not None
    return ET.fromstring(xml).findall("./devices/disk")


def test_no_other_disk_is_covered() -> None:
    root = ET.fromstring(snapshot_xml({"vdb": "/vm/a & b"}, ["vda", "vdb"]))
    vda, vdb = root.findall("./disks/disk")
    assert (vda.get("name"), vda.get("snapshot"), len(vda)) == ("vda", "no", 0)
    assert (vdb.get("name"), vdb.get("snapshot")) == ("vdb", "external")
    source, driver = vdb.find("source"), vdb.find("driver")
    assert source is not None and source.get("file") == "/vm/a & b"
    assert driver is not None and driver.get("type") == "qcow2"


def test_the_first_layer_goes() -> None:
    disk, other, block = disks(without_layer(CHAIN, "/vm/top", "/vm/disk.raw", "raw"))
    source, driver = disk.find("source"), disk.find("driver")
    assert source is not None and source.get("file") == "/vm/disk.raw"
    assert driver is not None and driver.get("type") == "raw"
    assert disk.find("backingStore") is None
    before = disks(CHAIN)
    assert [ET.tostring(each) for each in (other, block)] == [
        ET.tostring(each) for each in before[1:]
    ]


def test_a_layer_below_goes() -> None:
    disk = disks(without_layer(CHAIN, "/vm/middle", "/vm/disk.raw", "raw"))[0]
    source, driver = disk.find("source"), disk.find("driver")
    assert source is not None and source.get("file") == "/vm/top"
    assert driver is not None and driver.get("type") == "qcow2"
    assert disk.find("backingStore") is None


def test_other_images_for_a_restore() -> None:
    vda, vdb, _vdc = disks(with_images(CHAIN, {"vdb": ("/vm/other.raw.livesnap-1.qcow2", "qcow2")}))
    for disk, file in ((vda, "/vm/top"), (vdb, "/vm/other.raw.livesnap-1.qcow2")):
        source, driver = disk.find("source"), disk.find("driver")
        assert source is not None and source.get("file") == file
        assert driver is not None and driver.get("type") == "qcow2"


def test_what_is_not_named_is_left_alone() -> None:
    assert without_layer(CHAIN, "/vm/nowhere", "/vm/disk.raw", "raw") is None


class Asked:
    """A QEMU that answers the one query."""

    def execute(self, command: str, arguments: dict[str, Any]) -> Any:
        assert (command, arguments) == ("query-blockstats", {"query-nodes": True})
        nodes = {"old": 4096, "new": 0, "touched": 512}
        return [{"node-name": name, "stats": {"wr_highest_offset": highest}}
                for name, highest in nodes.items()]


def test_what_was_written_to_and_what_nobody_knows() -> None:
    qmp = cast(Connection, Asked())
    assert layers.written(qmp, ["new"]) == []
    assert layers.written(qmp, ["touched", "new", "gone"]) == ["touched", "gone"]
