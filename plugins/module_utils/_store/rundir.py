# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""/run/livesnap: what runs now, and what earlier runs did not get to undo.

guest/PID-START/ (of QEMU's process) has owner.json (who, for what), journal (each step before it
runs), progress.json, guard.json (what a guard had to undo) and helper.log.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, Mapping, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import StoreError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest import process
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files

_ROOT = Path("/run/livesnap")
#: How often in a row other runs may tidy up what this one makes.
_TRIES = 20


def root() -> Path:
    """Where all of it lies."""
    return _ROOT


def make_root() -> None:
    """root(), guest/ and lock/, closed to others."""
    with files.as_store_error(f"'{root()}' cannot be made"):
        for left in reversed(range(_TRIES)):
            try:
                for folder in (root(), root() / "guest", root() / "lock"):
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(folder, 0o711 if folder == root() else 0o700)
                return
            except FileNotFoundError:
                # Another run's tidy_root().
                if not left:
                    raise


def tidy_root() -> None:
    """Leave no empty folders behind; whoever needs them makes them again."""
    for folder in (root() / "guest", root() / "lock", root()):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def utc(moment: Optional[float] = None) -> str:
    """RFC 3339 with microseconds, of seconds since 1970 or now."""
    moment = time.time() if moment is None else moment
    when = datetime.datetime.fromtimestamp(moment, datetime.timezone.utc)
    return when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def myself() -> dict[str, Any]:
    """This process, so that another one can tell whether it lives."""
    pid = os.getpid()
    return {"pid": pid, "start_time": process.start_time(pid), "since": utc()}


def is_process(about: Mapping[str, Any]) -> bool:
    """Whether the process that wrote myself() lives."""
    pid, started = about.get("pid"), about.get("start_time")
    if not isinstance(pid, int) or not isinstance(started, int):
        return False
    return process.is_alive(pid, started)


def state_of(pid: int) -> str:
    """State letter of a process (proc(5)), '' when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="surrogateescape") as file:
            return process.parse_stat(file.read())[0]
    except (OSError, ValueError):
        return ""


class RunDir:
    """The folder of one QEMU process."""

    def __init__(self, key: str) -> None:
        """Of 'PID-START'; nothing is made."""
        self.key = key
        self.path = root() / "guest" / key

    def make(self) -> None:
        """Make it, closed to others."""
        with files.as_store_error(f"'{self.path}' cannot be made"):
            for last in (False, False, True):
                make_root()
                try:
                    os.mkdir(self.path, 0o700)
                except FileExistsError:
                    return
                except FileNotFoundError:
                    # Another run's tidy_root().
                    if last:
                        raise
                else:
                    return

    def begin(self, run: str, store: str, guest: str, snapshot: str, **more: Any) -> None:
        """Make it, and say who works here on what (owner.json). `run`: the snapshot's id."""
        about = {"id": run, "store": store, "guest": guest, "snapshot": snapshot}
        self.make()
        self.write("owner.json", {**myself(), **about, **more})

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """A JSON file, replaced by rename. /run does not outlive the machine: nothing is synced."""
        with files.as_store_error(f"'{self.path / name}' cannot be written"):
            files.write_json(self.path / name, value, durable=False)

    def read(self, name: str) -> Optional[dict[str, Any]]:
        """A JSON file of it, None when it is not there or not whole."""
        try:
            return files.read_object(self.path / name)
        except StoreError:
            return None

    def note(self, line: Mapping[str, Any]) -> None:
        """Add a line to the journal."""
        with files.as_store_error(f"'{self.path / 'journal'}' cannot be written"):
            with open(self.path / "journal", "ab", buffering=0) as file:
                file.write(json.dumps({**line, "at": utc()}).encode() + b"\n")

    def journal(self) -> list[dict[str, Any]]:
        """Its lines; a torn last one is left out."""
        try:
            data = files.read_regular(self.path / "journal", 16 << 20)
        except StoreError:
            return []
        found = []
        for line in data.splitlines():
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    found.append(value)
        return found

    def progress(
        self, about: Mapping[str, Any], phase: str, percent: float, done: int, total: int
    ) -> None:
        """How far the snapshot is; `about` is its guest, name and id. Failures are ignored."""
        with contextlib.suppress(StoreError):
            self.write(
                "progress.json",
                {
                    **about,
                    "phase": phase,
                    "percent": round(percent, 1),
                    "done_bytes": done,
                    "total_bytes": total,
                    "at": utc(),
                },
            )

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)


def all_run_dirs() -> list[RunDir]:
    """The folders that are there, of any guest."""
    try:
        return [RunDir(name) for name in sorted(os.listdir(root() / "guest"))]
    except OSError:
        return []


class VerifyDir(RunDir):
    """The folder of a check of one snapshot: its progress, and what a later one can go on from."""

    def __init__(self, guest: str, snapshot: str) -> None:
        """Of names that were checked; nothing is made."""
        self.key = f"verify-{guest}-{snapshot}"[:250]
        self.path = root() / "verify" / guest / snapshot

    def make(self) -> None:
        with files.as_store_error(f"'{self.path}' cannot be made"):
            make_root()
            os.makedirs(self.path, 0o700, exist_ok=True)

    def remove(self) -> None:
        super().remove()
        for folder in (self.path.parent, self.path.parent.parent):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
