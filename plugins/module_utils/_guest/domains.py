# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All domains of a libvirt, running or not. Reads only."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from typing import Any, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils import _deps
from ansible_collections.livesnap.qemu.plugins.module_utils._closing import Closing
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import (
    ask,
    bounded,
    dotted,
    open_libvirt,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.domain_xml import (
    memory_bytes,
    words,
)

#: Seconds for one call.
_LIMIT = 10.0
#: virDomainState -> what the state is called here. One that waits for a resource (2) runs.
_STATES = {
    1: "running",
    2: "running",
    3: "paused",
    4: "ending",
    5: "off",
    6: "crashed",
    7: "suspended",
}


@dataclass(frozen=True)
class Listed:
    """A domain as libvirt describes it. memory_bytes is the most that it can have.

    metadata: each element of the domain's <metadata>: {name, namespace, attributes, text}.
    """

    name: str
    uuid: str
    state: str
    autostart: bool
    persistent: bool
    memory_bytes: int
    title: str
    description: str
    metadata: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """As modules return it."""
        return asdict(self)


class Libvirt(Closing):
    """A connection to libvirt that is of no one domain. Use as a context manager, or close() it."""

    def __init__(self, uri: str) -> None:
        """Connect, or QmpConnectError `denied`."""
        self._uri = uri
        self._connection = open_libvirt(uri, _LIMIT)

    def version(self) -> str:
        """libvirt's own, such as '9.0.0'."""
        number = ask(self._uri, self._connection.getLibVersion, _LIMIT)
        return ".".join(map(str, dotted(number)))

    def domains(self) -> list[Listed]:
        """Those that are defined or run, by name. One that goes away meanwhile is left out."""
        every = ask(self._uri, self._connection.listAllDomains, _LIMIT)
        found = []
        for domain in every:
            listed = ask(self._uri, lambda domain=domain: _look(domain), _LIMIT)  # type: ignore[misc]
            if listed is not None:
                found.append(listed)
        return sorted(found, key=lambda each: each.name)

    def close(self) -> None:
        """Let go of it. Bounded."""
        with contextlib.suppress(TimeoutError, _deps.libvirt.libvirtError):
            bounded(self._connection.close, _LIMIT)


def _look(domain: Any) -> Optional[Listed]:
    """What libvirt says of a virDomain; None once it is gone."""
    libvirt = _deps.libvirt
    try:
        xml = domain.XMLDesc(0)
        return Listed(
            name=domain.name(),
            uuid=domain.UUIDString(),
            state=_STATES.get(domain.state()[0], "unknown"),
            autostart=bool(domain.autostart()),
            persistent=bool(domain.isPersistent()),
            memory_bytes=memory_bytes(xml),
            **words(xml),
        )
    except libvirt.libvirtError as err:
        if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise
