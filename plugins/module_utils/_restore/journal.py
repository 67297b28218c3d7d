# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a restore in place is about to do, written down before it does it.

STORE/GUEST/.restore/ has journal.json, root's alone, as long as a restore of that guest is not
finished or undone, and what else is only needed until then. It outlives the machine: a restore that
was cut short is found by the next run.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import StoreError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest import process
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.images import (
    Exchange,
    exchange_of,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files, rundir
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store

FOLDER = ".restore"
_FILE = "journal.json"

#: New images and files in the making; the guest is not touched.
COPIES = "copies"
#: The guest stands still for us.
HELD = "held"
#: Its QEMU is told to end, then images are exchanged, then it is brought back.
EXCHANGE = "exchange"
#: It is back: what was kept aside can go.
BACK = "back"


def boot_id() -> str:
    """Another one after each start of the machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


@dataclass
class Journal:
    """One restore of one guest.

    kept: name of the snapshot of the present, once it is complete. process: pid and start time of
    the QEMU that ran before, [] where none did. brought: that of the new one, as soon as it is
    known. how: Guest.noted().
    """

    store: str
    guest: str
    snapshot: str
    id: str
    how: dict[str, Any]
    exchanges: list[dict[str, Any]]
    process: list[int]
    was_running: bool
    stage: str = COPIES
    kept: Optional[str] = None
    brought: list[int] = field(default_factory=list)
    owner: dict[str, Any] = field(default_factory=rundir.myself)
    boot: str = field(default_factory=boot_id)

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return folder_of(self.store, self.guest)

    @property
    def disks(self) -> list[Exchange]:
        """What is to be done, or was done, with each disk."""
        return [exchange_of(each) for each in self.exchanges]

    @property
    def what(self) -> str:
        """For messages."""
        return f"the restore of guest '{self.guest}' to snapshot '{self.snapshot}'"

    def begin(self) -> None:
        """Make its folder, and write it for the first time."""
        with files.as_store_error(f"'{self.folder}' cannot be made"):
            # Without a journal in it there was nothing to undo yet.
            files.remove_tree(self.folder)
            os.mkdir(self.folder, 0o700)
            files.sync_folder(self.folder.parent)
        self.write()

    def enter(self, stage: str) -> None:
        """Before anything of that stage is done."""
        self.stage = stage
        self.write()

    def write(self) -> None:
        """Replace it, durably."""
        with files.as_store_error(f"'{self.folder / _FILE}' cannot be written"):
            files.write_json(self.folder / _FILE, asdict(self))

    def remove(self) -> None:
        """Nothing is left to be done."""
        with files.as_store_error(f"'{self.folder}' cannot be removed"):
            # The journal goes last.
            for name in os.listdir(self.folder):
                if name != _FILE:
                    os.unlink(self.folder / name)
            files.remove_tree(self.folder)

    def original_alive(self) -> bool:
        """Whether the QEMU that ran before is still there."""
        return self.boot == boot_id() and bool(self.process) and process.is_alive(*self.process)


def folder_of(store: str, guest: str) -> Path:
    """The folder of a guest's restore."""
    return Store(store).guest(guest) / FOLDER


def read(store: str, guest: str) -> Optional[Journal]:
    """The journal of a guest's restore that is under way or was cut short, None without one."""
    path = folder_of(store, guest) / _FILE
    if not os.path.lexists(path):
        return None
    about = files.read_object(path)
    try:
        return Journal(**{each.name: about[each.name] for each in fields(Journal)})
    except KeyError as err:
        raise StoreError(f"'{path}' lacks {err}: it was edited") from None


def cut_short(store: str, guest: Optional[str] = None) -> list[Journal]:
    """The journals, of a guest or of all, whose writers are gone."""
    found = []
    for name in [guest] if guest is not None else Store(store).guests():
        journal = read(store, name)
        if journal is None:
            continue
        if journal.boot != boot_id() or not rundir.is_process(journal.owner):
            found.append(journal)
    return found
