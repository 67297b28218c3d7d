# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All clones of a store, and those of them that were never finished."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._clone.place import RUN_ROOT, Place
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import TimedOutError
from ansible_collections.livesnap.qemu.plugins.module_utils._store import names, rundir
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store
from ansible_collections.livesnap.qemu.plugins.module_utils._store.locks import (
    GuestLock,
    is_held,
)


def lock_key(guest: str, name: str) -> str:
    """The name of the lock under which a clone is made or removed."""
    return f"clone-{guest}-{name}"[:250]


def all_clones(store: str, guest: Optional[str] = None, run_root: str = RUN_ROOT) -> list[Place]:
    """Every clone that there is anything of, of a guest or of all, by name."""
    found = set()
    for each in [guest] if guest is not None else Store(store).guests():
        for name in _names(Path(store) / each / ".clones"):
            found.add((each, name))
    folder = Path(run_root) / "clone"
    for each in [guest] if guest is not None else _names(folder):
        for name in _names(folder / each):
            place = Place.of(store, each, name.lstrip("."), run_root)
            state = place.state()
            # Another store may have a guest of that name.
            if state is None or state.get("store") == store:
                found.add((each, place.name))
    return [Place.of(store, each, name, run_root) for each, name in sorted(found)]


def _names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not names.problem(name.lstrip("."))]
    except OSError:
        return []


def unfinished(store: str, guest: Optional[str] = None, run_root: str = RUN_ROOT) -> list[Place]:
    """Clones that a crash left half made, or a reboot without their QEMU, and nobody works on; and
    those of drills that ended without removing them.

    Another one that was complete is not: it may have been shut down, and be wanted.
    """
    return [
        place
        for place in all_clones(store, guest, run_root)
        if _is_unfinished(place)
        and not is_held(lock_key(place.guest, place.name))
    ]


def _is_unfinished(place: Place) -> bool:
    state = place.state() or {}
    maker = state.get("maker")
    if isinstance(maker, dict):
        return not rundir.is_process(maker)
    return state.get("stage") != "complete"


def remove_unfinished(
    store: str, guest: Optional[str] = None, run_root: str = RUN_ROOT
) -> list[Place]:
    """Remove them; those that somebody begins to work on meanwhile are left to him."""
    removed = []
    for place in unfinished(store, guest, run_root):
        about = {"guest": place.guest, "clone": place.name}
        with contextlib.suppress(TimedOutError):
            with GuestLock.acquire(lock_key(place.guest, place.name), about, 1.0):
                if _is_unfinished(place):
                    place.remove()
                    removed.append(place)
    return removed
