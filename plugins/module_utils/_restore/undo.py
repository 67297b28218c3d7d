# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Undoes a restore in place from its journal: by the run itself, or by a later one.

The guest stood still for us when its present was kept, so its old images and the RAM in that
snapshot are of one instant: brought back, it goes on where it stood.
"""

from __future__ import annotations

from typing import Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._disks import uncover
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RestoreError,
    TimedOutError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._restore import images, journal
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.domain_guest import (
    KIND as DOMAIN,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.domain_guest import (
    DomainGuest,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.guest import Guest, State
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.journal import Journal
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.qemu_guest import QemuGuest
from ansible_collections.livesnap.qemu.plugins.module_utils._store import chain
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store
from ansible_collections.livesnap.qemu.plugins.module_utils._store.locks import (
    GuestLock,
    forget,
    is_held,
)

#: How long others' work on the same chains is waited for, seconds.
_CHAIN_LIMIT = 30.0


def lock_key(guest: str) -> str:
    """The name of the lock under which a guest is restored."""
    return f"restore-{guest}"[:250]


def guest_of(left: Journal, helper: str) -> Guest:
    """The guest of a journal."""
    kind = DomainGuest if left.how.get("kind") == DOMAIN else QemuGuest
    return kind.from_noted(left.how, left.guest, helper, left.folder)


def guest_key(guest: str, process: Sequence[int]) -> str:
    """The name of the lock of a guest's QEMU (pid and start time), or of a guest that is off."""
    return "-".join(map(str, process)) or f"off-{guest}"[:250]


def undo(left: Journal, helper: str) -> str:
    """Everything as it was before: what the state of things is then. RestoreError says otherwise.

    One whose guest is back already is finished instead.
    """
    if left.stage == journal.BACK:
        return finish(left)
    guest = guest_of(left, helper)
    if left.original_alive():
        return _let_go(left, guest)
    if left.stage != journal.EXCHANGE and left.process:
        # It ended of itself, or with the machine; nothing of it was exchanged.
        return _tidy(left, "its guest ended meanwhile, and nothing of it had been changed")
    guest.kill(left.brought if left.boot == journal.boot_id() else [])
    if not left.process:
        return _tidy(left, "the guest is off, as it was, and its disks are as they were")
    return _start_again(left, guest)


def _let_go(left: Journal, guest: Guest) -> str:
    """Its QEMU was not told to end, or had not begun to."""
    if left.stage != journal.COPIES and left.was_running:
        guest.release()
    return _tidy(left, "nothing of the guest was changed, and it goes on where it stood")


def _start_again(left: Journal, guest: Guest) -> str:
    if left.boot != journal.boot_id():
        where = f"; what it had in RAM is in snapshot '{left.kept}'" if left.kept else ""
        return _tidy(
            left,
            "the machine was started anew meanwhile: the guest is off, and its disks are as they"
            f" were{where}",
        )
    state: Optional[State] = None
    if left.kept is not None:
        folder = Store(left.store).snapshot(left.guest, left.kept)
        state = State.of(folder, chain.read(folder))

    def noted(pid: int, started: int) -> None:
        left.brought = [pid, started]
        left.write()

    _put_back(left)
    said = guest.bring_back(state, noted)
    how = (
        f"it was brought back from snapshot '{left.kept}', and goes on where it stood"
        if state is not None
        else "it was started from power-on: what it had in RAM is lost"
    )
    return _tidy(left, "; ".join([f"the guest has its disks as they were, and {how}", *said]))


def _put_back(left: Journal) -> None:
    for each in left.disks:
        images.put_back(each)


def _tidy(left: Journal, said: str) -> str:
    """What is left of the restore goes; the images, if they were exchanged, are the old ones."""
    _put_back(left)
    left.remove()
    return said


def finish(left: Journal) -> str:
    """The guest is back: what was kept aside goes."""
    _tell_uncovered(left)
    for each in left.disks:
        images.finish(each)
    left.remove()
    return "the guest was back already, and its old images were removed"


def _tell_uncovered(left: Journal) -> None:
    """An image that covered the disk of a snapshot is another one now, which stands on nothing."""
    store = Store(left.store)
    with chain.locked(store.guest(left.guest), _CHAIN_LIMIT):
        for each in left.disks:
            uncover.tell_uncovered(store, left.guest, each.path)


def needs(store: str, guest: str, snapshot: str) -> bool:
    """Whether a restore that is under way, or was cut short, goes to a snapshot or back to it."""
    found = journal.read(store, guest)
    return found is not None and snapshot in (found.snapshot, found.kept)


def planned(store: str, guest: Optional[str] = None) -> list[str]:
    """What recover_left() would do, one sentence each."""
    return [
        f"would finish {each.what}, whose process is gone"
        if each.stage == journal.BACK
        else f"would undo {each.what}, whose process is gone"
        for each in journal.cut_short(store, guest)
        if not is_held(lock_key(each.guest))
    ]


def recover_left(store: str, guest: Optional[str], helper: str) -> list[str]:
    """Undo or finish the restores that were cut short; one sentence each. RestoreError."""
    said = []
    for each in journal.cut_short(store, guest):
        try:
            with GuestLock.acquire(lock_key(each.guest), {"guest": each.guest}, 1.0):
                said.append(recovered(each, helper))
        except TimedOutError:
            # Somebody restores it just now, and has recovered before.
            continue
    return said


def recovered(left: Journal, helper: str) -> str:
    """undo() of one that was cut short; its lock is held."""
    done = "finished" if left.stage == journal.BACK else "undid"
    try:
        said = undo(left, helper)
    except LivesnapError as err:
        raise RestoreError(f"{left.what} was cut short: {stuck(left, err)}", err.hint) from None
    # That process may be gone, and then nobody comes after its lock.
    forget(guest_key(left.guest, left.process))
    return f"{done} {left.what}, which had been cut short: {said}"


def stuck(left: Journal, err: LivesnapError) -> str:
    """What is to be said when undo() failed: nothing is lost, and where it is."""
    aside = images.left(left.disks)
    said = [f"it could not be undone: {err.msg}"]
    if aside:
        said.append(f"its old images lie at {', '.join(aside)}")
    if left.kept:
        said.append(f"its RAM is in snapshot '{left.kept}'")
    return "; ".join([*said, f"'{left.folder}' says what is to be done: run livesnap_recover"])
