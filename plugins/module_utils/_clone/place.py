# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a clone lies, and what is known of it.

    /run/livesnap/clone/GUEST/NAME/       its sockets, its user's; QEMU's working directory
    /run/livesnap/clone/GUEST/.NAME/      root's: state.json, qemu.log, export.log, serve.log
    STORE/GUEST/.clones/NAME/             its overlays

A QEMU of a clone is found by its working directory, so even one that was started right before its
maker died is not lost; that of a domain by the UUID that state.json has before there is one.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._clone import launch
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.domain_end import end_domain
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import CloneError, StoreError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest import process
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files, names

RUN_ROOT = "/run/livesnap"


@dataclass(frozen=True)
class Place:
    """The folders of one clone."""

    store: Path
    run_root: Path
    guest: str
    name: str

    @classmethod
    def of(cls, store: str, guest: str, name: str, run_root: str = RUN_ROOT) -> Place:
        """Names checked; nothing is made."""
        names.check(guest, "guest")
        names.check(name)
        return cls(Path(store), Path(run_root), guest, name)

    @property
    def sockets(self) -> Path:
        """The folder of its sockets."""
        return self.run_root / "clone" / self.guest / self.name

    @property
    def private(self) -> Path:
        """The folder of its state and logs."""
        return self.run_root / "clone" / self.guest / f".{self.name}"

    @property
    def overlays(self) -> Path:
        """The folder of its overlays."""
        return self.store / self.guest / ".clones" / self.name

    def folders(self) -> tuple[Path, Path, Path]:
        """All that is to be gone when the clone is."""
        return self.sockets, self.private, self.overlays

    def left(self) -> list[str]:
        """Which of them are there."""
        return [str(folder) for folder in self.folders() if os.path.lexists(folder)]

    def make(self, uid: int, gid: int) -> None:
        """Make them. The store's folder of the guest must be there."""
        try:
            for top in (self.run_root, self.run_root / "clone", self.sockets.parent):
                _folder(top, 0o711)
            _folder(self.overlays.parent, 0o711)
            os.mkdir(self.private, 0o700)
            os.mkdir(self.overlays, 0o711)
            os.chmod(self.overlays, 0o711)
            os.mkdir(self.sockets, 0o700)
            os.chown(self.sockets, uid, gid)
        except OSError as err:
            raise CloneError(f"folder '{err.filename}' cannot be made: {err.strerror}") from None

    def remove(self) -> None:
        """End its QEMU and remove everything; what is not there is not missed."""
        state = self.state() or {}
        end_domain(state)
        for pid, started in launch.processes_in(str(self.sockets)):
            launch.end(pid, started)
        qemu = [state.get("pid"), state.get("start_time")]
        for identity in (qemu, *state.get("feeders", ())):
            if len(identity) == 2 and all(isinstance(part, int) for part in identity):
                launch.end(*identity)
        for folder in self.folders():
            try:
                if folder.is_symlink():
                    os.unlink(folder)
                else:
                    # QEMU, as it ends, removes its sockets at the same time.
                    files.remove_tree(folder)
            except OSError as err:
                raise CloneError(f"'{err.filename}' cannot be removed: {err.strerror}") from None
        # Others may have clones there.
        for folder in (self.overlays.parent, self.sockets.parent, self.sockets.parent.parent):
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    @property
    def server_log(self) -> str:
        """Last words of the process that brings RAM to it."""
        return str(self.private / "serve.log")

    def write(self, state: dict[str, Any]) -> None:
        """Replace state.json."""
        files.write_json(self.private / "state.json", state, durable=False)

    def state(self) -> Optional[dict[str, Any]]:
        """What was written; None when there is nothing sound."""
        try:
            return files.read_object(self.private / "state.json")
        except StoreError:
            return None

    def living(self) -> Optional[dict[str, Any]]:
        """The state of a clone that is complete and whose QEMU lives."""
        state = self.state()
        if state is None or state.get("stage") != "complete":
            return None
        alive = process.is_alive(int(state["pid"]), int(state["start_time"]))
        return state if alive else None


def _folder(path: Path, mode: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode)
        os.chmod(path, mode)
