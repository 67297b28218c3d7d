# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What module livesnap_verify is asked for, and what a check works on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.periods import Duration
from ansible_collections.livesnap.qemu.plugins.module_utils._store import names
from ansible_collections.livesnap.qemu.plugins.module_utils._store.rundir import VerifyDir


class BadSnapshot(LivesnapError):
    """The snapshot is not what it should be; all other errors say that it could not be checked."""


@dataclass(frozen=True)
class VerifyRequest:
    """Checked. max_age: how old a good verdict may be that makes a check needless; None: any."""

    store: str
    guest: str
    snapshot: str
    level: str
    max_age: Optional[Duration] = None
    lock_timeout: float = 60.0
    helper: str = ""

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> VerifyRequest:
        """From the module's parameters; LivesnapError for what makes no sense."""
        names.check(params["guest"], "guest")
        names.check(params["snapshot"], "snapshot")
        age = params["max_age"]
        return cls(
            store=params["store"],
            guest=params["guest"],
            snapshot=params["snapshot"],
            level=params["level"],
            max_age=None if age is None else Duration.parse(age, "max_age"),
            lock_timeout=float(params["lock_timeout"]),
            helper=params["_livesnap_helper"] or "",
        )

    @property
    def subject(self) -> str:
        """For messages."""
        return f"snapshot '{self.snapshot}' of guest '{self.guest}'"


@dataclass
class Check:
    """A check that runs. What the levels find goes into `evidence`, by their names.

    not_done: what could not be looked at, one sentence each; it fails no check.
    """

    request: VerifyRequest
    folder: Path
    fields: dict[str, Any]
    run: VerifyDir
    evidence: dict[str, Any] = field(default_factory=dict)
    not_done: list[str] = field(default_factory=list)

    def tell(self, phase: str, percent: float, done: int = 0, total: int = 0) -> None:
        """How far it is."""
        about = {"guest": self.request.guest, "name": self.request.snapshot}
        self.run.progress(about, phase, percent, done, total)
