# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that an operator wants run before and after a snapshot, on this machine or in the guest.

No shell, no input, and never without a limit.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    AgentError,
    LivesnapError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.address import Address
from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded

#: timeout(1) asks first, and kills so many seconds later.
_GRACE = 2

Hook = Mapping[str, Any]


def check(hooks: Optional[Sequence[Hook]], what: str, agent: bool) -> None:
    """Everything that can be judged without running them; `agent`: a guest can be reached."""
    for hook in hooks or []:
        command = hook.get("command") or []
        if not command or not command[0].startswith("/"):
            raise LivesnapError(
                f"a command of '{what}' does not begin with the whole path of a program:"
                f" {' '.join(command)!r}",
                "there is no shell: write a list of words, or name /bin/sh and -c",
            )
        if hook.get("timeout", 1) < 1:
            raise LivesnapError(f"timeout '{hook['timeout']}' in '{what}' is too small")
        if hook.get("where") == "guest" and not agent:
            raise LivesnapError(
                f"'{what}' has a command for the guest, and there is no agent_socket",
                "give the guest's agent_socket",
            )


def run_one(hook: Hook, address: Optional[Address], about: Mapping[str, str]) -> None:
    """Run it to its end; LivesnapError unless that is exit status 0 in time.

    `about` goes into the environment of a command on this machine.
    """
    command, limit = list(hook["command"]), int(hook.get("timeout") or 30)
    shown = f"'{' '.join(command)}'"
    if hook.get("where") == "guest":
        if address is None:
            return
        _in_guest(command, limit, address, shown)
        return
    environment = [f"{key}={value}" for key, value in about.items()]
    # timeout(1) ends what the command has started as well.
    ended = run_bounded(
        ["timeout", "-k", str(_GRACE), str(limit), "env", *environment, *command],
        limit + 2 * _GRACE,
    )
    if ended.code == 124 or ended.timed_out or ended.code == 137:
        raise LivesnapError(f"{shown} did not end within {limit} s, and was ended")
    if ended.problem or ended.code:
        why = ended.problem or f"ended with status {ended.code}"
        raise LivesnapError(f"{shown} {why}" + (f": {ended.words}" if ended.words else ""))


def _in_guest(command: Sequence[str], limit: int, address: Address, shown: str) -> None:
    end = time.monotonic() + limit
    try:
        with address.agent(float(limit)) as agent:
            left = max(0.1, end - time.monotonic())
            code, _out, err = agent.run(command[0], tuple(command[1:]), left)
    except AgentError as error:
        # guest-exec has nothing that would end a program.
        raise LivesnapError(f"{shown} in the guest: {error.msg}", error.hint) from None
    if code:
        said = err.decode("utf-8", "replace").strip()[-300:]
        raise LivesnapError(
            f"{shown} in the guest ended with status {code}" + (f": {said}" if said else "")
        )


def run_all(
    hooks: Optional[Sequence[Hook]], address: Optional[Address], about: Mapping[str, str]
) -> list[str]:
    """Each of them, whatever becomes of the others; what went wrong. Without an address those in
    the guest are left out."""
    problems = []
    for hook in hooks or []:
        try:
            run_one(hook, address, about)
        except LivesnapError as error:
            problems.append(str(error))
    return problems


def about_run(guest: str, snapshot: str) -> dict[str, str]:
    """The environment of commands on this machine."""
    return {"LIVESNAP_GUEST": guest, "LIVESNAP_SNAPSHOT": snapshot}


def left_to_run(owner: Mapping[str, Any], steps: Sequence[str]) -> list[Hook]:
    """The commands of 'after' that a run which died still owes, of its owner.json and journal."""
    hooks = owner.get("after")
    if "before" not in steps or "sweep" in steps or not isinstance(hooks, list):
        return []
    with contextlib.suppress(LivesnapError, AttributeError, TypeError):
        check(hooks, "after", True)
        return hooks
    return []
