# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which engines can capture a guest's RAM, why the others cannot, and which one is taken.

verdicts = judge(facts, process.pid, helper)  # one for each engine, in order of preference
taken = choose("web1", verdicts, "auto", allow_pause=False)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._capture.subject import look
from ansible_collections.livesnap.qemu.plugins.module_utils._capture.table import ENGINES
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import RefusedError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.engine_checks import Reason
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.facts import GuestFacts

AUTO = "auto"
#: It holds the guest while RAM is written, so it is taken only where that is allowed.
PAUSE = "pause"


@dataclass(frozen=True)
class Verdict:
    """What one engine says of a guest; no reasons: it can work."""

    engine: str
    reasons: tuple[Reason, ...]

    @property
    def possible(self) -> bool:
        """Whether the engine can capture this guest here."""
        return not self.reasons

    def said(self) -> str:
        """The reasons in one line."""
        return f"engine '{self.engine}': " + "; ".join(each.message for each in self.reasons)


@dataclass(frozen=True)
class Choice:
    """The engine that is taken; None: RAM is not captured.

    `indications` has a line for each engine that was passed over.
    """

    engine: Optional[str]
    indications: tuple[str, ...]
    warnings: tuple[str, ...]


def judge(
    facts: GuestFacts,
    pid: int,
    helper: str,
    ksm: str = "pause",
    touch: bool = False,
    qmp: Optional[Connection] = None,
    wanted: Optional[str] = None,
) -> list[Verdict]:
    """Ask the engines about the guest of process `pid`, in order of preference.

    All of them; or, of `wanted`, one alone, or for `auto` none after the first that can.

    `ksm`: `refuse` makes it a reason that KSM runs. `qmp`: asked by queries; without it engine
    qemu is judged by what is known. `touch`: a thread of QEMU in a seccomp sandbox may be stopped
    for about a millisecond, so that its filter can be read, and a capability of its migration
    switched on and off again; otherwise nothing is touched. Raises HelperError where the helper is
    not there.
    """
    subject = look(facts, pid, helper, ksm, touch, qmp)
    verdicts: list[Verdict] = []
    for name, engine in ENGINES.items():
        if wanted in (None, AUTO, name):
            verdicts.append(Verdict(name, tuple(engine.reasons(subject))))
            if wanted == AUTO and verdicts[-1].possible:
                break
    return verdicts


def choose(guest: str, verdicts: Sequence[Verdict], wanted: str, allow_pause: bool) -> Choice:
    """The engine asked for, or for `auto` the first that can; RefusedError with all reasons. Pure.

    A choice is for good: an engine that fails later fails the snapshot.
    """
    passed: list[str] = []
    refused: list[Verdict] = []
    held = False
    for verdict in verdicts:
        if wanted not in (AUTO, verdict.engine):
            continue
        if not verdict.possible:
            refused.append(verdict)
            passed.append(verdict.said())
        elif verdict.engine == PAUSE and not allow_pause:
            held = True
            passed.append(f"engine '{PAUSE}': not allowed (allow_pause: false)")
        else:
            warnings = (
                f"RAM of guest '{guest}' is captured by engine '{verdict.engine}', because of "
                + "; ".join(passed),
            )
            return Choice(verdict.engine, tuple(passed), warnings if passed else ())
    hint = "remove the cause, or set memory: false to capture its disks alone"
    if held:
        hint = (
            "remove the cause, allow that the guest stands still while RAM is written"
            " (allow_pause: true), or set memory: false to capture its disks alone"
        )
    raise RefusedError(
        f"cannot capture RAM of guest '{guest}': " + "; ".join(passed),
        hint,
        refused[0].reasons[0].reason if refused else PAUSE,
    )
