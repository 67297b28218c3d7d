# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Applies a policy to a store: reads it, decides, and removes what no reason keeps.

Each snapshot is removed as `state: absent` of module livesnap does it, after another look at it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timezone, tzinfo
from typing import Any, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils import _deps, _recover, _remove
from ansible_collections.livesnap.qemu.plugins.module_utils._changes import Changes
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.presence import why_gone
from ansible_collections.livesnap.qemu.plugins.module_utils._retention import table
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.decide import (
    KEEP,
    REMOVE,
    Decision,
    decide,
    needed_by,
    removal_order,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.periods import Calendar
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.policy import Policy
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.rules import Reason
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.snapshot import (
    Snapshot,
    snapshot_of,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import (
    chain,
    listing,
    names,
    rundir,
    space,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store
from ansible_collections.livesnap.qemu.plugins.module_utils._zones import zone_of


@dataclass(frozen=True)
class PruneRequest:
    """What module livesnap_prune is asked for, checked."""

    store: str
    guest: Optional[str]
    policy: Policy
    zone: tzinfo
    #: A JMESPath expression; '' is none.
    when: str = ""
    #: How many may go at most, 0 without a limit.
    max_remove: int = 0
    keep_gone: bool = True
    helper: str = ""

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> PruneRequest:
        """From the module's parameters; RefusedError for what makes no sense."""
        if params["guest"] is not None:
            names.check(params["guest"], "guest")
        if params["max_remove"] < 0:
            raise RefusedError(
                f"max_remove '{params['max_remove']}' is negative", "0 is no limit", "policy"
            )
        return cls(
            store=params["store"],
            guest=params["guest"],
            policy=Policy.of(params),
            zone=zone_of(params["timezone"]),
            when=params["keep_when"] or "",
            max_remove=params["max_remove"],
            keep_gone=params["gone"] == "keep",
            helper=params["_livesnap_helper"] or "",
        )


@dataclass
class Found:
    """What was read of a store."""

    facts: dict[str, Snapshot] = field(default_factory=dict)
    #: By the same keys: `id` and `created` as livesnap_info has them.
    told: dict[str, dict[str, Optional[str]]] = field(default_factory=dict)
    #: Key -> those of its disks that are not in the store, as livesnap_info has them.
    disks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    #: Key -> bytes of its disks, of those that others stand on: these are merged, and not freed.
    merged: dict[str, int] = field(default_factory=dict)
    #: {guest, why} of the guests that are not here.
    gone: list[dict[str, str]] = field(default_factory=list)


def prune(request: PruneRequest, apply: bool) -> dict[str, Any]:
    """Decide, and remove if `apply`; what module livesnap_prune returns.

    Raises LivesnapError, with what is known in its `result`, when nothing may be removed, or when
    something that should have been could not; all else has been done then.
    """
    store = Store(request.store)
    store.check()
    condition = _compiled(request.when)
    run = _Run(request, store)
    run.recover(apply)
    found = read(request, store, condition)
    now = datetime.now(timezone.utc)
    decisions = decide(found.facts.values(), request.policy, Calendar(request.zone), now)
    run.begin(found, decisions)
    order = removal_order(decisions)
    if request.max_remove and len(order) > request.max_remove:
        raise RefusedError(
            f"{len(order)} snapshots would be removed, more than max_remove"
            f" {request.max_remove}: none was",
            "look at the decisions; if they are right, raise max_remove",
            "max_remove",
            run.result(),
        )
    for each in order:
        run.remove(each, apply)
    if run.failures:
        raise LivesnapError(
            f"pruning is not complete: {'; '.join(run.failures)}",
            "remove the cause and prune again: what could be removed is",
            run.result(),
        )
    return run.result()


def _compiled(expression: str) -> Any:
    if not expression:
        return None
    try:
        return _deps.jmespath.compile(expression)
    except _deps.jmespath.exceptions.JMESPathError as err:
        raise RefusedError(
            f"keep_when '{expression}' is not a JMESPath expression: {err}", reason="policy"
        ) from None


@listing.uncollected()
def read(request: PruneRequest, store: Store, condition: Any) -> Found:
    """The facts about all snapshots, each file of the store read once."""
    found = Found()
    for guest in [request.guest] if request.guest is not None else store.guests():
        facts = _read_guest(found, request, store, guest, condition)
        found.facts.update((each.key, each) for each in facts)
    return found


def _read_guest(
    found: Found, request: PruneRequest, store: Store, guest: str, condition: Any
) -> list[Snapshot]:
    """Of one; what is not in them goes to `found`."""
    making = store.entries(guest)[1]
    rows = listing.of_guest(store, guest)
    _note_disks(found, guest, [info for info, _fields in rows])
    gone = _note_gone(found, guest, [fields for _info, fields in rows if fields is not None])
    held = f"its guest is gone: {gone}" if gone and request.keep_gone else ""
    unfinished = [listing.look_unfinished(store, guest, name) for name in making]
    facts = [snapshot_of(info, held=held) for info in unfinished]
    for info, _fields in rows:
        wanted = info["complete"] and _is_wanted(condition, request.when, info)
        facts.append(snapshot_of(info, wanted=wanted, held=held))
        found.told[facts[-1].key] = {"id": info["id"], "created": info["created"]}
    facts = _tied(facts, found.disks)
    if not held and (rundir.root() / "clone" / guest).is_dir():
        manifests = {info["name"]: fields for info, fields in rows if fields is not None}
        uppers = chain.uppers(manifests)
        facts = [replace(each, held=_held(store, guest, each.name, uppers)) for each in facts]
    return facts


def _note_disks(found: Found, guest: str, infos: Sequence[Mapping[str, Any]]) -> None:
    """What removing snapshots of a guest gives back depends on others'."""
    sizes: dict[str, int] = {}
    bases: set[str] = set()
    for info in infos:
        outside = [disk for disk in info["disks"] if disk["file"] is None]
        if outside:
            found.disks[f"{guest}/{info['name']}"] = outside
        sizes[info["name"]] = sum(disk["stored_bytes"] for disk in info["disks"])
        bases |= chain.bases(info)
    found.merged.update((f"{guest}/{name}", sizes[name]) for name in bases & set(sizes))


def _note_gone(found: Found, guest: str, manifests: Sequence[dict[str, Any]]) -> str:
    """Why a guest is not here any more, or ''."""
    newest = max(manifests, key=lambda fields: str(fields["created"]), default=None)
    why = why_gone(newest) if newest is not None else ""
    if why:
        found.gone.append({"guest": guest, "why": why})
    return why


def _tied(
    facts: list[Snapshot], disks: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[Snapshot]:
    """Those of a guest, with what has to stay as long as they do."""
    tied = chain.tied({each.name: disks.get(each.key, ()) for each in facts})
    if not tied:
        return facts
    return [
        replace(each, needs=tuple(f"{each.guest}/{name}" for name in sorted(tied[each.name])))
        if tied.get(each.name)
        else each
        for each in facts
    ]


def _held(
    store: Store, guest: str, name: str, uppers: Mapping[str, Sequence[str]]
) -> str:
    """Why clones keep a snapshot from going; ''. Those on what stands on it do, too."""
    for each in (name, *chain.all_above(uppers, name)):
        standing = _remove.clones_of(store, guest, each)
        if standing:
            via = "" if each == name else f" (by snapshot '{each}')"
            return f"clones stand on it{via}: {', '.join(standing)}"
    return ""


def _is_wanted(condition: Any, expression: str, info: dict[str, Any]) -> bool:
    if condition is None:
        return False
    try:
        value = condition.search(info)
    except _deps.jmespath.exceptions.JMESPathError as err:
        raise RefusedError(
            f"keep_when '{expression}' does not fit snapshot '{info['name']}' of guest"
            f" '{info['guest']}': {err}",
            reason="policy",
        ) from None
    # As JMESPath itself judges: 0 is true.
    return value is not None and value is not False and value not in ("", [], {})


class _Run:
    """What is done to a store, and what came of each snapshot."""

    def __init__(self, request: PruneRequest, store: Store) -> None:
        self.request = request
        self.store = store
        self.changes = Changes()
        self.failures: list[str] = []
        self.found = Found()
        self.decisions: dict[str, Decision] = {}
        self.freed: dict[str, int] = {}
        self.removed: set[str] = set()
        self.errors: dict[str, str] = {}

    def recover(self, apply: bool) -> None:
        """First what earlier runs left: a snapshot that lost its name, and not all of its files."""
        store, guest = self.request.store, self.request.guest
        try:
            self.changes.recover(
                _recover.recover(store, guest, self.request.helper)
                if apply
                else _recover.plan_recovery(store, guest)
            )
        except LivesnapError as err:
            self.changes.recover(err.result.get("recovered", []))
            self.failures.append(str(err))

    def begin(self, found: Found, decisions: list[Decision]) -> None:
        """What was decided."""
        self.found = found
        self.decisions = {each.snapshot.key: each for each in decisions}
        for key, each in self.decisions.items():
            if each.decision == REMOVE:
                folder = self.store.snapshot(each.snapshot.guest, each.snapshot.name)
                own = space.held(folder, found.disks.get(key, ())).own
                self.freed[key] = max(0, own - found.merged.get(key, 0))

    def remove(self, each: Snapshot, apply: bool) -> None:
        """Remove one, if nothing spared it meanwhile."""
        if self.decisions[each.key].decision != REMOVE or each.key in self.errors:
            return
        if not self.store.exists(each.guest, each.name):
            # Somebody else removed it.
            return
        spared = self._look_again(each)
        if spared:
            self._spare(each, spared)
            return
        try:
            action = _remove.remove_complete(self.store, each.guest, each.name, apply)
        except LivesnapError as err:
            # Another prune may have been faster.
            missing = isinstance(err.__cause__, FileNotFoundError)
            if not missing or self.store.exists(each.guest, each.name):
                self._failed(each, str(err))
            return
        self.removed.add(each.key)
        self.changes.add(action, each.key, "present", "absent")

    def _look_again(self, each: Snapshot) -> str:
        """Why it stays after all: others may have been at work, and a long run takes hours."""
        info = listing.look(self.store, each.guest, each.name)
        if info["problem"]:
            return str(info["problem"])
        if info["id"] != self.found.told[each.key]["id"]:
            return "it is another one than before"
        return "pinned meanwhile" if info["pinned"] else ""

    def _spare(self, each: Snapshot, why: str) -> None:
        self.decisions[each.key] = Decision(each, KEEP, (Reason("spared", why),))
        for needed in self._needed(each):
            self.decisions[needed.key] = Decision(
                needed, KEEP, (Reason("needed", f"'{each.name}' needs it"),)
            )

    def _failed(self, each: Snapshot, why: str) -> None:
        self.failures.append(why)
        self.errors[each.key] = why
        for needed in self._needed(each):
            self.errors[needed.key] = f"'{each.name}', which is still there, needs it"

    def _needed(self, each: Snapshot) -> list[Snapshot]:
        """What one that stays needs, of those that were to be removed."""
        keys = needed_by(each.key, self.found.facts)
        decisions = [found for key, found in self.decisions.items() if key in keys]
        return [found.snapshot for found in decisions if found.decision == REMOVE]

    def result(self) -> dict[str, Any]:
        """What the module returns."""
        text = table.lines([self._row(each) for each in self.decisions.values()])
        return {
            **self.changes.result(),
            "diff": {"prepared": "\n".join([*text, ""])},
            "table": text,
            "decisions": [self._told(each) for each in self.decisions.values()],
            "freed_bytes": sum(self.freed[key] for key in self.removed),
            "gone": self.found.gone,
        }

    def _row(self, each: Decision) -> tuple[str, ...]:
        key = each.snapshot.key
        return table.row(each, self.freed.get(key), self.errors.get(key, ""))

    def _told(self, each: Decision) -> dict[str, Any]:
        key = each.snapshot.key
        return {
            "guest": each.snapshot.guest,
            "name": each.snapshot.name,
            **self.found.told.get(key, {"id": None, "created": None}),
            "decision": each.decision,
            "reasons": [reason.text for reason in each.reasons],
            "freed_bytes": self.freed[key] if each.decision == REMOVE else 0,
            "removed": key in self.removed,
            "error": self.errors.get(key),
        }
