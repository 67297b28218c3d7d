# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Layers of a libvirt domain's disks by libvirt's own calls, so that its definition follows them.

libvirt opens and closes the images for QEMU, gives them their owner and label, and names the one
that is written to in the domain that runs and in the one that is started next.
"""

from __future__ import annotations

import contextlib
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Iterable, Mapping

from ansible_collections.livesnap.qemu.plugins.module_utils import _deps
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import Domain
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LibvirtError,
    TimedOutError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.domain_xml import disk_targets

_POLL = 0.05
#: Seconds that libvirt may take to begin a merging, or to let go of a layer at its end.
_CALL_LIMIT = 30.0


@dataclass(frozen=True)
class Merging:
    """One layer of a disk into the one below. target: libvirt's name of the disk.

    is_first: the guest writes to the layer that goes.
    """

    target: str
    upper: str
    lower: str
    is_first: bool


def cover(domain: Domain, over: Mapping[str, str], timeout: float) -> None:
    """Lay images that are there already upon disks (libvirt's name -> file), all or none of them.

    The guest stands still.
    """
    libvirt = _deps.libvirt
    flags = (
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
        | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    )
    xml = snapshot_xml(over, disk_targets(domain.xml()).values())
    domain.call("snapshotCreateXML", lambda each: each.snapshotCreateXML(xml, flags), timeout)


def snapshot_xml(over: Mapping[str, str], every: Iterable[str]) -> str:
    """The <domainsnapshot> that covers these disks (name -> file) and none of the others. Pure."""
    root = ET.Element("domainsnapshot")
    disks = ET.SubElement(root, "disks")
    for name in every:
        if name not in over:
            ET.SubElement(disks, "disk", name=name, snapshot="no")
            continue
        disk = ET.SubElement(disks, "disk", name=name, snapshot="external", type="file")
        ET.SubElement(disk, "driver", type="qcow2")
        ET.SubElement(disk, "source", file=over[name])
    return ET.tostring(root, encoding="unicode")


def merge(domain: Domain, merging: Merging, limit: float) -> None:
    """Begin it, and see it to its end: see follow()."""
    flags = _deps.libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE if merging.is_first else 0
    domain.call(
        "blockCommit",
        lambda each: each.blockCommit(merging.target, merging.lower, merging.upper, 0, flags),
        _CALL_LIMIT,
    )
    follow(domain, merging, limit)


def follow(domain: Domain, merging: Merging, limit: float) -> None:
    """Until libvirt has no job on the disk. Whether it succeeded is for the disk to tell.

    A layer that the guest writes to is let go when all of it is below. TimedOutError after so many
    seconds; the disk is then as it was.
    """
    deadline = time.monotonic() + limit
    while True:
        about = domain.call("blockJobInfo", lambda each: each.blockJobInfo(merging.target))
        if not about:
            return
        if merging.is_first and about["cur"] == about["end"]:
            _let_go(domain, merging.target)
        if time.monotonic() > deadline:
            with contextlib.suppress(LibvirtError):
                domain.call("blockJobAbort", lambda each: each.blockJobAbort(merging.target, 0))
            raise TimedOutError(
                f"libvirt did not merge '{merging.upper}' within {limit:g} s",
                "is its storage stuck?",
            )
        time.sleep(_POLL)


def _let_go(domain: Domain, target: str) -> None:
    flags = _deps.libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
    try:
        domain.call("blockJobAbort", lambda each: each.blockJobAbort(target, flags), _CALL_LIMIT)
    except LibvirtError as err:
        # What the guest wrote since is being copied, or the job has just failed.
        passing = (_deps.libvirt.VIR_ERR_BLOCK_COPY_ACTIVE, _deps.libvirt.VIR_ERR_OPERATION_INVALID)
        if err.code not in passing:
            raise
