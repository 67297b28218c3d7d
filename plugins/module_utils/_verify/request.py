# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What module livesnap_verify is asked for, and what a check works on."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
    StoreError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.periods import Duration
from ansible_collections.livesnap.qemu.plugins.module_utils._store import chain, names
from ansible_collections.livesnap.qemu.plugins.module_utils._store.chain import Link
from ansible_collections.livesnap.qemu.plugins.module_utils._store.rundir import VerifyDir
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.probe import Probe


class BadSnapshot(LivesnapError):
    """The snapshot is not what it should be; all other errors say that it could not be checked."""


@dataclass(frozen=True)
class Command:
    """What is run in the clone of a drill, and what is expected of it. timeout: seconds.

    stdout: a regular expression that is sought in what it prints; None: anything is right.
    """

    argv: tuple[str, ...]
    code: int = 0
    stdout: Optional[str] = None
    timeout: int = 10

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Command:
        """From an entry of the module's `commands`; RefusedError."""
        what = f"command '{' '.join(given['argv'])}'"
        if not given["argv"] or not given["argv"][0].startswith("/"):
            raise RefusedError(
                f"{what} does not begin with the path of a program",
                "the guest's agent has no shell: name it, as in ['/bin/sh', '-c', '...']",
                "commands",
            )
        if given["timeout"] <= 0:
            raise RefusedError(f"{what} has timeout '{given['timeout']}'", reason="commands")
        try:
            re.compile(given["stdout"] or "")
        except re.error as err:
            raise RefusedError(
                f"{what}: stdout '{given['stdout']}' is no regular expression: {err}",
                reason="commands",
            ) from None
        return cls(tuple(given["argv"]), given["code"], given["stdout"], given["timeout"])


@dataclass(frozen=True)
class VerifyRequest:
    """Checked. max_age: how old a good verdict may be that makes a check needless; None: any.

    drill_memory: bytes that all drills of this host may take together, 0: half of what there is.
    drill_cpus: processors that their guests may have together, 0: as many as the host has.
    """

    store: str
    guest: str
    snapshot: str
    level: str
    max_age: Optional[Duration] = None
    probes: tuple[Probe, ...] = ()
    lock_timeout: float = 60.0
    commands: tuple[Command, ...] = ()
    drill_memory: int = 0
    drill_cpus: int = 0
    drill_timeout: int = 300
    helper: str = ""

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> VerifyRequest:
        """From the module's parameters; LivesnapError for what makes no sense."""
        names.check(params["guest"], "guest")
        names.check(params["snapshot"], "snapshot")
        age = params["max_age"]
        for name, least in (("drill_memory", 0), ("drill_cpus", 0), ("drill_timeout", 1)):
            if params[name] < least:
                raise RefusedError(f"{name} '{params[name]}' is too small", reason=name)
        return cls(
            store=params["store"],
            guest=params["guest"],
            snapshot=params["snapshot"],
            level=params["level"],
            max_age=None if age is None else Duration.parse(age, "max_age"),
            lock_timeout=float(params["lock_timeout"]),
            probes=tuple(Probe.of(each) for each in params["probes"] or []),
            commands=tuple(Command.of(each) for each in params["commands"] or []),
            drill_memory=params["drill_memory"],
            drill_cpus=params["drill_cpus"],
            drill_timeout=params["drill_timeout"],
            helper=params["_livesnap_helper"] or "",
        )

    @property
    def subject(self) -> str:
        """For messages."""
        return f"snapshot '{self.snapshot}' of guest '{self.guest}'"


@dataclass
class Check:
    """A check that runs, of a snapshot that hold() reads. What the levels find goes into
    `evidence`, by their names.

    not_done: what could not be looked at, one sentence each; it fails no check.
    """

    request: VerifyRequest
    folder: Path
    fields: dict[str, Any]
    run: VerifyDir
    evidence: dict[str, Any] = field(default_factory=dict)
    not_done: list[str] = field(default_factory=list)
    #: Folder -> manifest of what its disks stand on, as far as it was read.
    manifests: dict[Path, dict[str, Any]] = field(default_factory=dict)

    def links(self, disk: Mapping[str, Any]) -> list[Link]:
        """What a disk of it is made of, its own image first; BadSnapshot."""
        try:
            return chain.links(self.folder, disk, self.manifests)
        except StoreError as err:
            raise BadSnapshot(err.msg, err.hint) from None

    def hold(self, stack: contextlib.ExitStack) -> None:
        """Nobody changes the images of it, and of what it stands on, until the stack ends.

        Read again after each wait: others may have merged what it stands on. BadSnapshot, and
        RefusedError where that was begun and not ended: its checksums say nothing then.
        """
        held: set[Path] = set()
        needed = {self.folder}
        while needed:
            for folder in needed:
                stack.enter_context(
                    chain.locked(folder, self.request.lock_timeout, shared=True)
                )
            held |= needed
            self._read()
            links = [link for disk in self.fields["disks"] for link in self.links(disk)]
            needed = {link.folder for link in links} - held
        for folder in sorted(held):
            if chain.is_merging(folder):
                raise RefusedError(
                    f"{self.request.subject} cannot be checked now: removing snapshot"
                    f" '{folder.name}', which it stands on, was cut short",
                    "run livesnap_recover, which ends that",
                    "merging",
                )

    def _read(self) -> None:
        self.manifests = {}
        try:
            self.fields = chain.read(self.folder)
        except StoreError as err:
            raise BadSnapshot(err.msg, err.hint) from None

    def tell(self, phase: str, percent: float, done: int = 0, total: int = 0) -> None:
        """How far it is."""
        about = {"guest": self.request.guest, "name": self.request.snapshot}
        self.run.progress(about, phase, percent, done, total)
