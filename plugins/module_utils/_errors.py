# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exceptions of the collection. Modules turn the root of them into fail_json, and nothing else.

LivesnapError
 +-- RefusedError            a check said no before anything was touched
 +-- TimedOutError           a wait reached its limit
 +-- FrozenWriteError        a guest whose file systems were frozen wrote to a disk
 +-- QmpError
 |    +-- QmpConnectError    no conversation came about; `kind` says why
 |    +-- QmpCommandError    QEMU understood and said no
 |    +-- QmpTimeout         no reply within the limit: what happened is unknown
 |    +-- QmpDisconnected    QEMU (or libvirtd) went away, or closed the connection
 |    +-- LibvirtError       libvirt said no
 +-- AgentError
 |    +-- AgentAbsent        no socket, or nobody listens on it
 |    +-- AgentHung          QEMU takes the connection, nobody in the guest answers
 |    +-- AgentCommandError  the agent understood and said no
 +-- StoreError
 +-- HelperError             livesnap-helper failed; `word` is its class of failure
 +-- CloneError
 +-- RestoreError            a restore in place failed; the message says what state things are in
"""

from __future__ import annotations

from typing import Any


class LivesnapError(Exception):
    """Something that a user has to know: subject, state and cause in `msg`, the remedy in `hint`.

    `result` carries what is already known (a partial result, for fail_json).
    """

    def __init__(self, msg: str, hint: str = "", result: dict[str, Any] | None = None) -> None:
        super().__init__(msg)
        self.msg = msg
        self.hint = hint
        self.result: dict[str, Any] = dict(result or {})

    def __str__(self) -> str:
        return f"{self.msg}; {self.hint}" if self.hint else self.msg


class RefusedError(LivesnapError):
    """Refused by a check; nothing was touched. `reason` is a word for programs."""

    def __init__(
        self, msg: str, hint: str = "", reason: str = "", result: dict[str, Any] | None = None
    ) -> None:
        super().__init__(msg, hint, result)
        self.reason = reason


class TimedOutError(LivesnapError):
    """A wait reached its limit."""


class FrozenWriteError(LivesnapError):
    """A guest wrote to a disk that was captured while its file systems were frozen, and it ran."""


class QmpError(LivesnapError):
    """Anything that goes wrong on a QMP connection."""


class QmpConnectError(QmpError):
    """No conversation with QEMU came about, and nothing was sent to it.

    `kind` is one of missing, not_socket, denied, refused, not_qemu, not_qmp, busy, off (a libvirt
    domain that does not run). `event_first`: something else than the reply to the first command
    came, an event perhaps.
    """

    event_first = False

    def __init__(self, kind: str, msg: str, hint: str = "") -> None:
        super().__init__(msg, hint)
        self.kind = kind


class QmpCommandError(QmpError):
    """QEMU answered a command with an error: `error_class` and `desc` are its words."""

    def __init__(self, command: str, error_class: str, desc: str) -> None:
        super().__init__(f"QEMU refused '{command}': {desc}")
        self.command = command
        self.error_class = error_class
        self.desc = desc


class QmpTimeout(QmpError):
    """No reply within the limit. Whether the command took effect is unknown: reconnect, ask."""


class QmpDisconnected(QmpError):
    """The connection ended while it was needed. Whether the last command took effect is unknown."""


class LibvirtError(QmpError):
    """libvirt answered a call with an error: `code` is its VIR_ERR_*."""

    def __init__(self, msg: str, hint: str = "", code: int = 0) -> None:
        super().__init__(msg, hint)
        self.code = code


class AgentError(LivesnapError):
    """Anything that goes wrong with a guest's agent."""


class AgentAbsent(AgentError):
    """There is no agent socket, or QEMU does not listen on it."""


class AgentBusy(AgentError):
    """Another client holds the agent's socket; QEMU serves one at a time."""


class AgentHung(AgentError):
    """QEMU took the connection, but nobody in the guest answers within the limit."""


class AgentCommandError(AgentError):
    """The agent answered a command with an error."""

    def __init__(self, command: str, error_class: str, desc: str) -> None:
        super().__init__(f"the guest's agent refused '{command}': {desc}")
        self.command = command
        self.error_class = error_class
        self.desc = desc


class StoreError(LivesnapError):
    """Something in the store is missing, unreadable, of another guest or not what it says."""


class HelperError(LivesnapError):
    """livesnap-helper failed: `word` is its class of failure, `reason` its cause for programs."""

    def __init__(
        self,
        msg: str,
        hint: str = "",
        word: str = "internal",
        reason: str = "",
        result: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(msg, hint, result)
        self.word = word
        self.reason = reason


class CloneError(LivesnapError):
    """A clone could not be made or removed."""


class RestoreError(LivesnapError):
    """A guest could not be taken back to a snapshot."""
