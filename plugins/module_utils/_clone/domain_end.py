# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ends the domain of a clone, by libvirt where that can be asked."""

from __future__ import annotations

from typing import Any, Mapping

from ansible_collections.livesnap.qemu.plugins.module_utils._clone import launch
from ansible_collections.livesnap.qemu.plugins.module_utils._connection import _peer
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import Domain
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest import process

_LIMIT = 30.0


def end_domain(state: Mapping[str, Any]) -> None:
    """End the domain that a clone's state names, if there is one; by its UUID, which is its alone.

    Without libvirt, or where that does not help, its QEMU is killed: libvirt sees that, and a
    transient domain is gone with it.
    """
    uri, name, uuid = (state.get(key) for key in ("uri", "domain", "uuid"))
    if not all(isinstance(each, str) and each for each in (uri, name, uuid)):
        return
    try:
        with Domain.find(str(uri), str(uuid)) as domain:
            if domain.uuid == uuid:
                domain.call("destroy", lambda each: each.destroy(), _LIMIT)
    except LivesnapError:
        # Not there, not there any more, or nobody to ask.
        pass
    for pid in _peer.domain_processes(str(name), str(uuid)):
        started = process.start_time(pid)
        if started is not None:
            launch.end(pid, started)
