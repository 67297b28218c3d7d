# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engines are asked about: a guest, and what its host's kernel says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import HelperError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.engine_checks import Reason
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.facts import GuestFacts
from ansible_collections.livesnap.qemu.plugins.module_utils._helper import Event, run_once


@dataclass(frozen=True)
class Subject:
    """A guest, as far as it decides about engines. `seen`: what the helper found, by engine.

    `qmp`: its QEMU, None where it is not to be asked; `touch`: whether something may be switched
    on in it and off again.
    """

    facts: GuestFacts
    pid: int
    seen: dict[str, list[Reason]]
    qmp: Optional[Connection]
    touch: bool


def look(
    facts: GuestFacts,
    pid: int,
    helper: str,
    ksm: str,
    touch: bool,
    qmp: Optional[Connection],
) -> Subject:
    """Look at the process of the guest whose facts these are; parameters as of choice.judge().

    Raises HelperError where there is no helper, or the process is gone.
    """
    options = ["--refuse-ksm"] * (ksm == "refuse") + ["--stop"] * touch
    said = run_once(helper, ["engines", "--pid", str(pid), "--ramblock", facts.ramblock, *options])
    seen = {name: read_reasons(said, name) for name in ("uffd", "qemu", "pause")}
    return Subject(facts, pid, seen, qmp, touch)


def read_reasons(said: Event, engine: str) -> list[Reason]:
    """What `livesnap-helper engines` printed about one engine. Pure; HelperError if nothing."""
    if not isinstance(said.get(engine), list):
        raise HelperError(f"livesnap-helper says nothing of engine '{engine}'")
    return [Reason(str(each["reason"]), str(each["message"])) for each in said[engine]]
