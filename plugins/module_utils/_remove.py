# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a complete snapshot goes: not while others need it, and its part of a chain not at all."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Container, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._disks import merge, outside, uncover
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.internal import Internal
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
    StoreError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._restore import undo as restore_undo
from ansible_collections.livesnap.qemu.plugins.module_utils._store import chain, files, rundir
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store

#: How long others' work on the same chains is waited for, seconds.
_CHAIN_LIMIT = 30.0


def remove_complete(
    store: Store, guest: str, name: str, apply: bool, gone: Container[str] = ()
) -> str:
    """Remove one that has its name, if nobody needs it; says so in a sentence.

    What a later snapshot needs of it is merged into that one. gone: those that would be removed
    before it, where this is a prediction.
    """
    with contextlib.ExitStack() as stack:
        if apply:
            stack.enter_context(chain.locked(store.guest(guest), _CHAIN_LIMIT))
        above = [each for each in chain.above(store, guest, name) if each not in gone]
        _refuse(store, guest, name, above, gone)
        if apply:
            _remove(store, guest, name, above)
    return _said("removed", guest, name, above)


def _said(what: str, guest: str, name: str, above: Sequence[str]) -> str:
    merged = f", and merged its disks into those of '{above[0]}'" if above else ""
    return f"{what} snapshot '{name}' of guest '{guest}'{merged}"


def _remove(store: Store, guest: str, name: str, above: Sequence[str]) -> None:
    """The guest's folder is locked."""
    for each in above:
        merge.merge(store.snapshot(guest, name), store.snapshot(guest, each))
    uncover.uncover(store, guest, name)
    folder = store.retire(guest, name)
    outside.discard(folder)
    store.discard(folder)


def _refuse(
    store: Store, guest: str, name: str, above: Sequence[str], gone: Container[str] = ()
) -> None:
    """RefusedError where somebody has the images open, or is going to."""
    subject = f"snapshot '{name}' of guest '{guest}' cannot be removed"
    for each in (name, *above):
        via = "" if each == name else f" (by snapshot '{each}', which stands on it)"
        clones = clones_of(store, guest, each)
        if clones:
            raise RefusedError(
                f"{subject}: running clones stand on its images{via}: {', '.join(clones)}",
                "remove them first (livesnap_clone, state: absent)",
                "clones",
            )
        if restore_undo.needs(str(store.root), guest, each):
            raise RefusedError(
                f"{subject}: a restore of that guest needs it{via}",
                "wait for its end; livesnap_recover ends one that was cut short",
                "restore",
            )
    _refuse_covered(store, guest, name, subject, gone)
    making = chain.needed_in_the_making(store, guest, name)
    if making is not None:
        raise RefusedError(
            f"{subject}: snapshot '{making}', which is in the making, stands on it",
            "wait for its end; livesnap_recover removes one that was cut short",
            "making",
        )


def _refuse_covered(
    store: Store, guest: str, name: str, subject: str, gone: Container[str]
) -> None:
    """QEMU removes a snapshot from inside an image that is written to, and from no other."""
    folder = store.snapshot(guest, name)
    disks = outside.read(folder)["disks"] if outside.is_noted(folder) else []
    inside = [disk["source"]["file"] for disk in disks if disk["scheme"] == Internal.NAME]
    covered = chain.covered(store, guest) if inside else {}
    for file in inside:
        if file in covered and covered[file] not in gone:
            raise RefusedError(
                f"{subject}: it is inside '{file}', which snapshot '{covered[file]}' is made of",
                f"remove snapshot '{covered[file]}' first",
                "covered",
            )


def clones_of(store: Store, guest: str, name: str) -> list[str]:
    """Names of the running clones whose overlays stand on a snapshot's images."""
    found = []
    for path in sorted((rundir.root() / "clone" / guest).glob(".*/state.json")):
        try:
            state = files.read_object(path)
        except StoreError:
            continue
        about = (state.get("store"), state.get("guest"), state.get("snapshot"))
        if about == (str(store.root), guest, name) and rundir.is_process(state):
            found.append(f"'{path.parent.name[1:]}'")
    return found


def half_removed(store: Store, guest: Optional[str]) -> list[tuple[str, str]]:
    """(guest, snapshot) of those whose removal has begun, and not ended."""
    return [
        (each, name)
        for each in ([guest] if guest is not None else store.guests())
        for name in store.entries(each)[0]
        if chain.is_merging(store.snapshot(each, name))
    ]


def planned(store: Store, guest: Optional[str]) -> list[str]:
    """What finish() would do, one sentence each."""
    said = []
    for each, name in half_removed(store, guest):
        with contextlib.ExitStack() as stack:
            if _locked(stack, store.guest(each)):
                said.append(f"would finish removing snapshot '{name}' of guest '{each}'")
    return said


def finish(store: Store, guest: Optional[str]) -> list[str]:
    """End removals that were cut short, one sentence each; those that go on are left alone.

    LivesnapError when one cannot be ended; what was is in its result as `recovered`.
    """
    said: list[str] = []
    failed: list[str] = []
    for each, name in half_removed(store, guest):
        try:
            with contextlib.ExitStack() as stack:
                if not _locked(stack, store.guest(each)):
                    continue
                if not chain.is_merging(store.snapshot(each, name)):
                    continue
                above = chain.above(store, each, name)
                _refuse(store, each, name, above)
                _remove(store, each, name, above)
        except LivesnapError as err:
            failed.append(str(err))
            continue
        said.append(_said("finished removing", each, name, above))
    if failed:
        raise LivesnapError("; ".join(failed), "", {"recovered": said})
    return said


def _locked(stack: contextlib.ExitStack, folder: Path) -> bool:
    """Whether nobody else works on the chains of a folder."""
    try:
        stack.enter_context(chain.locked(folder, 0.0))
    except RefusedError:
        return False
    return True
