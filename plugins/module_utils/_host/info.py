# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All that livesnap_host_info returns. Queries only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.spec import SnapshotSpec
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.domains import Libvirt
from ansible_collections.livesnap.qemu.plugins.module_utils._host import facts, guests
from ansible_collections.livesnap.qemu.plugins.module_utils._query import choose

#: A snapshot that nobody takes.
_NAME = "preflight"


@dataclass(frozen=True)
class HostRequest:
    """The options of module livesnap_host_info."""

    store: str
    uri: str
    helper: str
    guests: list[dict[str, str]] = field(default_factory=list)
    select: Optional[str] = None
    preflight: bool = True

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> HostRequest:
        """From a module's params."""
        return cls(
            store=params["store"],
            uri=params["uri"],
            helper=params["_livesnap_helper"] or "",
            guests=params["guests"] or [],
            select=params["select"],
            preflight=params["preflight"],
        )

    def spec(
        self, guest: str, qmp_socket: Optional[str] = None, agent_socket: Optional[str] = None
    ) -> SnapshotSpec:
        """What a snapshot of this guest would be asked for."""
        return SnapshotSpec(
            guest=guest,
            name=_NAME,
            store=self.store,
            qmp_socket=qmp_socket,
            agent_socket=agent_socket,
            uri=self.uri,
            helper=self.helper,
        )


def describe(request: HostRequest) -> dict[str, Any]:
    """`host` as it is returned. A libvirt that cannot be reached is an error with `select` only."""
    named = [
        (
            guests.of_socket(each["name"]),
            request.spec(each["name"], each["qmp_socket"], each.get("agent_socket")),
        )
        for each in request.guests
    ]
    for _guest, spec in named:
        spec.check()
    version, problem, domains = None, None, []
    try:
        with Libvirt(request.uri) as libvirt:
            version, domains = libvirt.version(), libvirt.domains()
    except LivesnapError as err:
        if request.select is not None:
            raise
        problem = str(err)
    listed = [guests.of_domain(domain) for domain in domains]
    if request.select is not None:
        listed = choose("select", request.select, listed, "guests")
    found = [(guest, request.spec(guest["name"])) for guest in listed] + named
    kernel = facts.kernel(request.helper)
    return {
        "versions": facts.versions(request.helper, kernel["release"], version),
        "kernel": kernel,
        "memory": facts.memory(),
        "store": facts.store(request.store),
        "libvirt": {"uri": request.uri, "problem": problem},
        "guests": [
            guests.examine(guest, spec) if request.preflight else guest for guest, spec in found
        ],
    }
