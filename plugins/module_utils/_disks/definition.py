# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt starts a domain with that is off, where an image that it names is to go."""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any, Mapping, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import Domain
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    QmpConnectError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.address import (
    DomainAddress,
    address_of,
)


class Definition:
    """The definition of one domain."""

    def __init__(self, domain: Domain) -> None:
        """It is off, and persistent: libvirt forgets others when they end."""
        self._domain = domain

    @classmethod
    @contextlib.contextmanager
    def of(cls, whose: Mapping[str, Any]) -> Iterator[Optional[Definition]]:
        """That of a guest that is off; `whose` says how it is reached. None where it has none.

        RefusedError where libvirt has its RAM as well, which names the same images.
        """
        address = address_of(whose)
        domain = _find(address) if isinstance(address, DomainAddress) else None
        if domain is None:
            yield None
            return
        with domain:
            found = cls(domain)
            found._check()
            yield found

    def _check(self) -> None:
        name = self._domain.name
        if self._domain.call("hasManagedSaveImage", lambda each: each.hasManagedSaveImage()):
            raise RefusedError(
                f"domain '{name}' has a managed save, which names images that would go",
                f"start the domain, or virsh managedsave-remove {name}",
                "managed_save",
            )

    def starts_with(self, file: str) -> bool:
        """Whether a disk's image, the one that is written to, is that file."""
        return any(
            source.get("file") == file
            for source in ET.fromstring(self._domain.definition()).iterfind("./devices/disk/source")
        )

    def leave_out(self, over: str, covered: str, kind: str) -> None:
        """Have it name an image no more, but the one that it covers, which has all of it."""
        new = without_layer(self._domain.definition(), over, covered, kind)
        if new is not None:
            self._domain.define(new)


def _find(address: DomainAddress) -> Optional[Domain]:
    try:
        return Domain.find(address.uri, address.domain)
    except QmpConnectError as err:
        if err.kind == "missing":
            return None
        raise


def without_layer(xml: str, over: str, covered: str, kind: str) -> Optional[str]:
    """A definition that names an image no more; None where it does not name it. Pure.

    libvirt looks into images for what they stand on where a definition does not say it.
    """
    root = ET.fromstring(xml)
    touched = False
    for disk in root.iterfind("./devices/disk"):
        if not any(source.get("file") == over for source in disk.iter("source")):
            continue
        touched = True
        for chain in disk.findall("backingStore"):
            disk.remove(chain)
        source, driver = disk.find("source"), disk.find("driver")
        if source is not None and source.get("file") == over:
            source.set("file", covered)
            if driver is not None:
                driver.set("type", kind)
    return ET.tostring(root, encoding="unicode") if touched else None
