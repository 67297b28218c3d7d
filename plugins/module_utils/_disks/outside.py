# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a snapshot lies outside of its folder: noted in there before it is made, removed by that.

The note stays as long as the folder: who removes a snapshot, finished or not, need not know what
its schemes are.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, Mapping, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._disks.table import OUTSIDE
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    StoreError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files

NOTE = "outside.json"
_WHOSE = ("id", "guest", "name")


def note(folder: Path, whose: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> None:
    """Write down, durably, what is going to be made."""
    with files.as_store_error(f"'{folder / NOTE}' cannot be written"):
        files.write_json(folder / NOTE, {**whose, "disks": list(entries)})


def forget(folder: Path) -> None:
    """None of it was made."""
    with files.as_store_error(f"'{folder / NOTE}' cannot be removed"):
        (folder / NOTE).unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Remove all of it; LivesnapError names what could not be, and the note stays."""
    if not is_noted(folder):
        return
    about = read(folder)
    problems = []
    for disk in about["disks"]:
        try:
            OUTSIDE[disk["scheme"]].discard(about, disk)
        except LivesnapError as err:
            problems.append(err.msg)
    if problems:
        raise LivesnapError(
            f"what snapshot '{about['name']}' of guest '{about['guest']}' has outside of the store"
            f" cannot be removed: {'; '.join(problems)}",
            f"remove the cause and run livesnap_recover; '{folder}' stays until then",
        )
    forget(folder)


def fetch(whose: Mapping[str, Any], entry: Mapping[str, Any], path: str, limit: float) -> None:
    """Copy a disk of a manifest, which is outside, into an empty file. Seconds."""
    OUTSIDE[entry["scheme"]].fetch(whose, entry, path, limit)


def is_noted(folder: Path) -> bool:
    """Whether a snapshot has anything outside of its folder."""
    return os.path.lexists(folder / NOTE)


def read(folder: Path) -> dict[str, Any]:
    """What was noted: whose, and `disks`.

    It names commands that are run, and files that are removed: nobody but us may have written it.
    """
    path = folder / NOTE
    about = files.read_object(path)
    info = os.lstat(path)
    if info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o022:
        raise StoreError(f"'{path}' could have been written by somebody else")
    disks = about.get("disks")
    known = isinstance(disks, list) and all(
        isinstance(disk, dict) and isinstance(disk.get("scheme"), str) and disk["scheme"] in OUTSIDE
        for disk in disks
    )
    if not known or not all(isinstance(about.get(key), str) for key in _WHOSE):
        raise StoreError(f"'{path}' is not what livesnap writes")
    return about
