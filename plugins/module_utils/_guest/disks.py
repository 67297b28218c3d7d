# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest's disks, from query-block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Callable, Mapping

from ansible_collections.livesnap.qemu.plugins.module_utils._guest.paths import absolute

#: What QEMU calls the top node of an image -> the format. Newer libvirt has no node for `raw`.
FORMATS = {"raw": "raw", "file": "raw", "qcow2": "qcow2"}


@dataclass(frozen=True)
class Disk:
    """A drive as the guest has it. Sizes in bytes.

    device: name of the block backend ('virtio0'; '' for drives made by -blockdev). node: the top
    node. qdev: id of the device where it has one, else its QOM path. file: absolute where it is a
    file, else QEMU's own name for it ('nbd://...', 'json:...').
    """

    device: str
    node: str
    qdev: str
    serial: str
    file: str
    format: str
    virtual_bytes: int
    read_only: bool
    removable: bool
    inserted: bool
    #: libvirt's name for it, such as 'vda'; '' for guests that are not libvirt's.
    target: str = ""
    #: The files that its image stands on, the nearest first.
    below: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """How to call it in messages."""
        return self.target or self.device or self.qdev or self.node

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that a user may call it by; none is empty."""
        every = (self.target, self.device, self.node, self.qdev, self.serial)
        return tuple(name for name in every if name)


def device_id(qdev: str) -> str:
    """The id of '/machine/peripheral/ID[/...]', else the path as it is. Pure."""
    prefix = "/machine/peripheral/"
    return qdev[len(prefix) :].partition("/")[0] if qdev.startswith(prefix) else qdev


def parse_disks(
    blocks: list[dict[str, Any]],
    cwd: str,
    serial_of: Callable[[str], str],
    targets: Mapping[str, str],
) -> list[Disk]:
    """The answer of query-block, in QEMU's order. `serial_of` is asked for each QOM path. Pure.

    `targets`: device id -> libvirt's name.
    """
    found = []
    for block in blocks:
        path = str(block.get("qdev", ""))
        inserted = block.get("inserted")
        disk = inserted or {}
        image = disk.get("image", {})
        found.append(
            Disk(
                device=str(block.get("device", "")),
                node=str(disk.get("node-name", "")),
                qdev=device_id(path),
                serial=serial_of(path) if path else "",
                file=absolute(str(image.get("filename", disk.get("file", ""))), cwd),
                format=str(disk.get("drv", "")),
                virtual_bytes=int(image.get("virtual-size", 0)),
                read_only=bool(disk.get("ro", True)),
                removable=bool(block.get("removable", False)),
                inserted=inserted is not None,
                target=targets.get(device_id(path), ""),
                below=tuple(_below(image, cwd)),
            )
        )
    return found


def _below(image: Mapping[str, Any], cwd: str) -> Iterator[str]:
    about = image.get("backing-image")
    while about is not None:
        yield absolute(str(about.get("filename", "")), cwd)
        about = about.get("backing-image")
