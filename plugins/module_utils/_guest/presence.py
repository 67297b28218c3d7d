# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a guest of the store is still here: on this hypervisor, running or switched off.

Nobody keeps a list of guests. What its newest snapshot says of it is looked for: a domain in
libvirt; otherwise its own disk images, or a process with its command line.
"""

from __future__ import annotations

import os
from typing import Any, Mapping, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import Domain
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    QmpConnectError,
)


def why_gone(fields: Mapping[str, Any]) -> str:
    """Why the guest of a manifest is not here, or why nobody can tell; '' where it is here."""
    domain = fields.get("domain")
    if domain is not None:
        return _why_no_domain(domain["uri"], fields["uuid"] or fields["guest"])
    images = [disk["source"]["file"] for disk in fields["disks"]]
    # Others are reached by a network, or have a name of QEMU's.
    local = [path for path in images if path.startswith("/")]
    if any(os.path.lexists(path) for path in local) or _runs(fields["guest_facts"]["argv"]):
        return ""
    if not local:
        return "it does not run, and has no disk image on this machine to look for"
    return f"it does not run, and none of its disk images is there ('{local[0]}')"


def _why_no_domain(uri: str, name: str) -> str:
    try:
        Domain.find(uri, name).close()
    except QmpConnectError as err:
        return err.msg if err.kind == "missing" else f"nobody can tell: {err.msg}"
    except LivesnapError as err:
        return f"nobody can tell: {err.msg}"
    return ""


def _runs(argv: Sequence[str]) -> bool:
    """Whether a process has this command line."""
    wanted = b"".join(os.fsencode(word) + b"\0" for word in argv)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if file.read(len(wanted) + 1) == wanted:
                    return True
        except OSError:
            continue
    return False
