# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engines are asked about: a guest, and what its host's kernel says of it."""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.livesnap.qemu.plugins.module_utils._guest.engine_checks import (
    Mount,
    Reason,
    read_mounts,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.facts import GuestFacts
from ansible_collections.livesnap.qemu.plugins.module_utils._helper import Event, run_once


@dataclass(frozen=True)
class Subject:
    """A guest, as far as it decides about engines. `seen`: what the helper found, by engine."""

    facts: GuestFacts
    mounts: list[Mount]
    seen: dict[str, list[Reason]]


def look(facts: GuestFacts, pid: int, helper: str) -> Subject:
    """Look at the process of the guest whose facts these are. Touches nothing.

    Raises HelperError where there is no helper, or the process is gone.
    """
    features = run_once(helper, ["features", "--pid", str(pid)])
    return Subject(facts, read_mounts(pid), {"uffd": attach_reasons(features)})


def attach_reasons(features: Event) -> list[Reason]:
    """Why the helper could not get a userfaultfd of the process that `features` is about. Pure."""
    found = []
    device = features.get("userfaultfd", {})
    if not (device.get("device") or device.get("syscall")):
        found.append(
            Reason("userfaultfd", "this kernel has no userfaultfd that the helper may use")
        )
    attach = features.get("target", {}).get("attach", {})
    if not attach.get("possible", True):
        found += [
            Reason(str(each.get("reason", "attach")), str(each.get("message", "")))
            for each in attach.get("reasons", [])
        ] or [Reason("attach", "the helper cannot attach to the guest's process")]
    return found
