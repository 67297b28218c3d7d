# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What livesnap makes inside QEMU has names with a prefix: finds it by that, removes it."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    QmpCommandError,
    TimedOutError,
)

#: All of ours; one snapshot's begin with it and the first 8 digits of its id.
PREFIX = "livesnap-"
#: The QMP name of the descriptor that is passed for attaching (it cannot be listed).
UFFD_NAME = "uffd"


def prefix_of(snapshot_id: str) -> str:
    """'livesnap-1a2b3c4d-': short, because a node name has 31 characters at most."""
    return f"{PREFIX}{snapshot_id[:8]}-"


def jobs(qmp: Connection, prefix: str) -> list[dict[str, Any]]:
    """Block jobs whose id begins so."""
    return [job for job in qmp.execute("query-jobs") if str(job["id"]).startswith(prefix)]


def nodes(qmp: Connection, prefix: str) -> list[str]:
    """Block nodes whose name begins so."""
    every = qmp.execute("query-named-block-nodes", {"flat": True})
    return [str(node["node-name"]) for node in every if str(node["node-name"]).startswith(prefix)]


def fdsets(qmp: Connection, prefix: str) -> list[int]:
    """Descriptor sets with a descriptor whose opaque text begins so."""
    return [
        int(entry["fdset-id"])
        for entry in qmp.execute("query-fdsets")
        if any(str(fd.get("opaque", "")).startswith(prefix) for fd in entry["fds"])
    ]


def found(qmp: Connection, prefix: str = PREFIX) -> list[str]:
    """What is there, in words; queries only."""
    said = [f"block job '{job['id']}' ({job['status']})" for job in jobs(qmp, prefix)]
    said += [f"block node '{name}'" for name in nodes(qmp, prefix)]
    return said + [f"descriptor set {number}" for number in fdsets(qmp, prefix)]


def remove(qmp: Connection, prefix: str, timeout: float = 30.0) -> list[str]:
    """Cancel jobs and wait for their end, dismiss them, delete nodes, close descriptors.

    Returns what was removed; raises LivesnapError when something stays.
    """
    said = found(qmp, prefix)
    _end_jobs(qmp, prefix, timeout)
    for name in nodes(qmp, prefix):
        qmp.execute("blockdev-del", {"node-name": name}, timeout)
    for number in fdsets(qmp, prefix):
        with contextlib.suppress(QmpCommandError):
            qmp.remove_fdset(number)
    return said


def _end_jobs(qmp: Connection, prefix: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    asked: set[str] = set()
    while True:
        left = jobs(qmp, prefix)
        if not left:
            return
        for job in left:
            name = str(job["id"])
            # A job may end by itself at any moment: a refusal means that it did.
            with contextlib.suppress(QmpCommandError):
                if job["status"] == "concluded":
                    qmp.execute("job-dismiss", {"id": name})
                elif name not in asked:
                    asked.add(name)
                    qmp.execute("job-cancel", {"id": name})
        if time.monotonic() > deadline:
            raise TimedOutError(
                f"block jobs {', '.join(str(job['id']) for job in left)} did not end within"
                f" {timeout:g} s of being cancelled",
                "storage under the guest's disks or the store hangs",
            )
        time.sleep(0.02)
