# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders of the store: where things lie, how one begins, is published and goes away."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Any, Mapping, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import RefusedError, StoreError
from ansible_collections.livesnap.qemu.plugins.module_utils._store import (
    files,
    manifest,
    names,
    status,
)

FOLDER_MODE = 0o711
PRIVATE_MODE = 0o600
#: Of a folder in the making: the snapshots that must not go meanwhile.
NEEDS = "needs.json"
#: A disk image belongs to the user of the guest's QEMU, who may read it; so may root; nobody else.
IMAGE_MODE = 0o400


class Store:
    """The directory of snapshots on this machine."""

    def __init__(self, root: str) -> None:
        """Of an absolute path; nothing is looked at yet."""
        self.root = Path(root)

    def check(self) -> None:
        """Raise RefusedError unless it is there, a folder and can be written to."""
        subject = f"store '{self.root}'"
        try:
            info = os.stat(self.root)
        except OSError as err:
            raise RefusedError(
                f"{subject} cannot be used: {err.strerror}",
                "run playbooks/host.yml, which makes it, or mount it",
                "store_missing",
            ) from None
        if not stat.S_ISDIR(info.st_mode):
            raise RefusedError(f"{subject} is not a folder", reason="store_missing")
        if info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX:
            raise RefusedError(
                f"{subject} may be written to by others (mode {stat.S_IMODE(info.st_mode):04o})",
                f"chmod {FOLDER_MODE:04o} '{self.root}'",
                "store_mode",
            )
        if os.statvfs(self.root).f_flag & os.ST_RDONLY or not os.access(self.root, os.W_OK):
            raise RefusedError(f"{subject} is read-only", reason="store_read_only")

    def guest(self, guest: str) -> Path:
        """The folder of a guest."""
        names.check(guest, "guest")
        return self.root / guest

    def snapshot(self, guest: str, name: str) -> Path:
        """The folder of a complete snapshot."""
        names.check(name)
        return self.guest(guest) / name

    def partial(self, guest: str, name: str) -> Path:
        """The folder of a snapshot in the making."""
        return self.snapshot(guest, name).with_name(name + names.PARTIAL)

    def exists(self, guest: str, name: str) -> bool:
        """Whether something has a complete snapshot's name, sound or not."""
        return os.path.lexists(self.snapshot(guest, name))

    def guests(self) -> list[str]:
        """Names of the guests that have a folder."""
        return sorted(name for name in _folders(self.root) if not name.endswith(names.PARTIAL))

    def entries(self, guest: str) -> tuple[list[str], list[str]]:
        """(names of complete snapshots, names of those in the making) of a guest."""
        found = _folders(self.guest(guest))
        whole = [name for name in found if not name.endswith(names.PARTIAL)]
        making = [_without_partial(name) for name in found if name.endswith(names.PARTIAL)]
        return sorted(whole), sorted(making)

    def check_owner(self, guest: str, uuid: Optional[str], qemu_name: Optional[str]) -> None:
        """Refuse when the folder's snapshots are of another guest than the one that runs."""
        for name in self.entries(guest)[0]:
            path = self.snapshot(guest, name) / manifest.NAME
            try:
                fields = manifest.decode(files.read_regular(path, manifest.LIMIT), f"'{path}'")
            except StoreError:
                # Reported by livesnap_info; it proves nothing either way.
                continue
            theirs = (fields["uuid"], fields["guest_facts"]["name"])
            # A UUID decides; guests without one are told apart by QEMU's -name.
            if theirs[0] != uuid or (uuid is None and theirs[1] != qemu_name):
                raise RefusedError(
                    f"folder '{self.guest(guest)}' holds snapshots of another guest: that of"
                    f" '{name}' has UUID '{theirs[0] or 'none'}' and name"
                    f" '{theirs[1] or 'none'}', the running one has UUID '{uuid or 'none'}' and"
                    f" name '{qemu_name or 'none'}'",
                    "give this guest another name in 'guest'",
                    "other_guest",
                )

    def begin(self, guest: str, name: str) -> Path:
        """Make the folder of a snapshot in the making; what lay there is an error."""
        folder = self.partial(guest, name)
        with files.as_store_error(f"'{folder}' cannot be made"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder.parent, FOLDER_MODE)
                os.chmod(folder.parent, FOLDER_MODE)
                files.sync_folder(self.root)
            if folder.parent.is_symlink():
                raise StoreError(f"'{folder.parent}' is a symbolic link")
            os.mkdir(folder, FOLDER_MODE)
            os.mkdir(folder / "disks", FOLDER_MODE)
            for made in (folder, folder / "disks"):
                os.chmod(made, FOLDER_MODE)
            files.sync_folder(folder.parent)
        return folder

    def publish(
        self, folder: Path, fields: Mapping[str, Any], first_status: Mapping[str, Any]
    ) -> Path:
        """Make a snapshot of a folder in the making: manifest last, then its name."""
        final = folder.with_name(folder.name[: -len(names.PARTIAL)])
        with files.as_store_error(f"'{final}' cannot be published"):
            for name, size in manifest.sizes(fields):
                manifest.check_file(folder, name, size)
                files.sync_file(folder / name)
            files.sync_folder(folder / "disks")
            status.write(folder, dict(first_status))
            files.write_whole(folder / manifest.NAME, manifest.encode(fields), PRIVATE_MODE)
            if os.path.lexists(final):
                raise StoreError(f"'{final}' appeared meanwhile")
            os.rename(folder, final)
            files.sync_folder(final.parent)
            # From here on its manifest says what it stands on.
            (final / NEEDS).unlink(missing_ok=True)
        return final

    def discard(self, folder: Path) -> None:
        """Remove a folder in the making, and the guest's folder if nothing else is in it."""
        if not folder.name.endswith(names.PARTIAL) or folder.parent.parent != self.root:
            raise StoreError(f"'{folder}' is not a snapshot in the making of '{self.root}'")
        with files.as_store_error(f"'{folder}' cannot be removed"):
            if folder.is_symlink():
                os.unlink(folder)
            else:
                # A writer whose keeper died may be removing its image at the same time.
                files.remove_tree(folder)
        with contextlib.suppress(OSError):
            os.rmdir(folder.parent)
        with contextlib.suppress(OSError):
            files.sync_folder(folder.parent)

    def retire(self, guest: str, name: str) -> Path:
        """It loses its name, so that a crash leaves no half one; its folder, to discard()."""
        final, folder = self.snapshot(guest, name), self.partial(guest, name)
        with files.as_store_error(f"'{final}' cannot be removed"):
            if final.is_symlink():
                raise StoreError(f"'{final}' is a symbolic link")
            os.rename(final, folder)
            files.sync_folder(folder.parent)
        return folder


def _without_partial(name: str) -> str:
    return name[: -len(names.PARTIAL)] if name.endswith(names.PARTIAL) else name


def _folders(path: Path) -> list[str]:
    """Names of the folders in a folder that can be guests or snapshots; [] when it is not there."""
    try:
        with os.scandir(path) as entries:
            return [
                entry.name
                for entry in entries
                if entry.is_dir(follow_symlinks=False)
                and not names.problem(_without_partial(entry.name))
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as err:
        raise StoreError(f"'{path}' cannot be read: {err.strerror}") from None
