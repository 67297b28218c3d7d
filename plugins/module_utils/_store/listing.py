# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in a store, and what is being made."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Mapping, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._store import (
    chain,
    manifest,
    rundir,
    space,
    status,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store

#: Fields of the manifest that modules return as they are.
RETURNED = (
    "id",
    "guest",
    "uuid",
    "name",
    "created",
    "complete",
    "consistency",
    "engine",
    "timings",
    "memory",
    "disks",
    "restore_blockers",
    "schedule",
    "slot",
)
_ONLY_IN_MANIFEST = frozenset(("gpa", "ramblock", "checksums", "commands", "internal"))


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No search for garbage: manifests have no cycles, and of thousands it takes a sixth of the
    time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def describe(fields: Mapping[str, Any], state: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A snapshot as modules return it, of its manifest and status. Pure."""
    found: dict[str, Any] = {key: fields.get(key) for key in RETURNED}
    if found["memory"] is not None:
        found["memory"] = _returned(found["memory"])
    found["disks"] = [_returned(disk) for disk in found["disks"]]
    found.update(path=path, labels=list(state["labels"]), pinned=state["pinned"])
    return found


def _returned(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in _ONLY_IN_MANIFEST}


def _empty(guest: str, name: str, path: str) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(RETURNED)
    found.update(guest=guest, name=name, path=path, complete=False, disks=[], restore_blockers=[])
    # What cannot be judged must not be pruned.
    found.update(labels=[], pinned=True, verdicts=[], in_progress=None, problem=None)
    return found


def look(store: Store, guest: str, name: str) -> dict[str, Any]:
    """One snapshot with a complete one's name, problems included; never raises for its content."""
    return _examine(guest, name, store.snapshot(guest, name))[0]


def _examine(
    guest: str, name: str, path: Path
) -> tuple[dict[str, Any], Optional[dict[str, Any]]]:
    """The same, and its manifest, None where that cannot be used. Each file is read once."""
    found = _empty(guest, name, str(path))
    fields: Optional[dict[str, Any]] = None
    state, problem = status.default(), ""
    try:
        fields = manifest.read(path)
        state = status.read(path)
    except LivesnapError as err:
        problem = str(err)
    if fields is not None:
        found.update(describe(fields, state, str(path)), verdicts=list(state["verdicts"]))
    if problem:
        found.update(complete=False, pinned=True, problem=problem)
    return found, fields


def of_guest(
    store: Store, guest: str
) -> list[tuple[dict[str, Any], Optional[dict[str, Any]]]]:
    """The same of all of a guest, by name. One whose disks stand on what is not there is broken."""
    folder = store.guest(guest)
    found = [_examine(guest, name, folder / name) for name in store.entries(guest)[0]]
    sound = {info["name"]: info for info, fields in found if fields is not None}
    while True:
        broken = {name: _broken(store, info, sound) for name, info in sound.items()}
        broken = {name: problem for name, problem in broken.items() if problem}
        if not broken:
            return found
        for name, problem in broken.items():
            sound.pop(name).update(complete=False, pinned=True, problem=problem)


def _broken(store: Store, info: Mapping[str, Any], sound: Mapping[str, Any]) -> str:
    """What is wrong with that which the disks of a snapshot stand on directly; '' if nothing."""
    for disk in info["disks"]:
        base = disk.get("base")
        if base is None or sound.get(base["name"], {}).get("id") == base["id"]:
            continue
        if not chain.is_merging(store.snapshot(info["guest"], base["name"])):
            return (
                f"disk '{disk['match']}' stands on snapshot '{base['name']}' with id {base['id']},"
                " which is not there, or not sound"
            )
    return ""


def in_progress(store: Store, guest: str, name: str) -> Optional[dict[str, Any]]:
    """{percent, owner} of the living run that makes it, None when there is none."""
    for run in rundir.all_run_dirs():
        owner = run.read("owner.json")
        if owner is None or not rundir.is_process(owner):
            continue
        if (owner.get("store"), owner.get("guest"), owner.get("snapshot")) != (
            str(store.root),
            guest,
            name,
        ):
            continue
        percent = (run.read("progress.json") or {}).get("percent", 0)
        return {
            "percent": percent,
            "owner": {"pid": owner["pid"], "since": owner.get("since")},
        }
    return None


def look_unfinished(store: Store, guest: str, name: str) -> dict[str, Any]:
    """One that is in the making, or was when the run that made it ended."""
    found = _empty(guest, name, str(store.partial(guest, name)))
    found.update(pinned=False, own_bytes=None, shared_bytes=None)
    found["in_progress"] = in_progress(store, guest, name)
    if found["in_progress"] is None:
        found["problem"] = "left behind by a run that ended; livesnap_recover removes it"
    return found


def _sized(store: Store, found: dict[str, Any]) -> dict[str, Any]:
    held = space.held(store.snapshot(found["guest"], found["name"]), found["disks"])
    return {**found, "own_bytes": held.own, "shared_bytes": held.shared}


@uncollected()
def list_snapshots(store: str, guest: Optional[str] = None) -> list[dict[str, Any]]:
    """All snapshots of a store, or of one guest, newest first (docs/manifest.md).

    One that is in the making has `in_progress`; one whose manifest fails its check has `problem`.
    own_bytes and shared_bytes are as in space.Held; null of one that is in the making.
    """
    place = Store(store)
    found = []
    for name in [guest] if guest is not None else place.guests():
        found += [_sized(place, info) for info, _fields in of_guest(place, name)]
        found += [look_unfinished(place, name, each) for each in place.entries(name)[1]]
    # What has no time yet is newest.
    return sorted(
        found, key=lambda each: (each["created"] or "9", each["guest"], each["name"]), reverse=True
    )
