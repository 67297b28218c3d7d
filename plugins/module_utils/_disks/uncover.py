# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A snapshot by scheme overlay goes: the image that covers its own is merged into that.

So the lower image stays, with its name; it is then the guest's own, or that of the next snapshot,
whose manifest is told. Nobody else stands on an image that is written to. What was begun is noted
in the snapshot's folder; cut short anywhere, the same again ends it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import (
    image_file,
    layers,
    outside,
    overlay,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.definition import Definition
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest import process
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.address import reached
from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded
from ansible_collections.livesnap.qemu.plugins.module_utils._store import (
    chain,
    files,
    manifest,
    names,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store

NOTE = "uncovering.json"
#: How long those who read the images are waited for, seconds.
_LOCK_LIMIT = 10.0
_REBASE_LIMIT = 60.0


@dataclass(frozen=True)
class _Cover:
    """A disk of the snapshot that goes, and the snapshot whose disk its cover is, if any."""

    disk: Mapping[str, Any]
    upper: Optional[Path]

    @property
    def covered(self) -> str:
        return str(self.disk["covered"])

    @property
    def over(self) -> str:
        return str(self.disk["overlay"])


def uncover(store: Store, guest: str, name: str) -> None:
    """Merge what covers the disks of a snapshot into them. The guest's folder is locked.

    RefusedError leaves all as it was; LivesnapError may come after a part of it, and the guest
    reads the same as before whatever has failed.
    """
    folder = store.snapshot(guest, name)
    disks = _layers(folder)
    covers = _covers(store, guest, [disk for disk in disks if disk["overlay"] is not None])
    if covers:
        _merge(folder, covers)
    _drop(store, guest, folder, [disk for disk in disks if disk["overlay"] is None])


def _merge(folder: Path, covers: Sequence[_Cover]) -> None:
    locked = {folder, *(each.upper for each in covers if each.upper is not None)}
    with contextlib.ExitStack() as stack:
        for each in sorted(locked):
            stack.enter_context(chain.locked(each, _LOCK_LIMIT))
        whose = outside.read(folder)
        qmp = stack.enter_context(reached(whose))
        definition = stack.enter_context(Definition.of(whose)) if qmp is None else None
        state = _State.of(folder, qmp, definition)
        for cover in covers:
            state.go_on(cover, whose["id"])
            state.check(cover)
        state.begin()
        for cover in covers:
            state.end(cover, whose["id"])


def tell_uncovered(store: Store, guest: str, image: str) -> None:
    """Nothing covers the disk of a snapshot any more whose cover was this image. The guest's
    folder is locked."""
    name = chain.overlays(store, guest).get(image)
    if name is None:
        return

    def without(disk: Mapping[str, Any]) -> dict[str, Any]:
        return {**disk, "overlay": None} if disk.get("overlay") == image else dict(disk)

    _rewrite(store.snapshot(guest, name), without)


def _drop(store: Store, guest: str, folder: Path, disks: Sequence[Mapping[str, Any]]) -> None:
    """What nothing covers goes with its snapshot, unless it is the first image of a disk: others
    have made that."""
    if not disks:
        return
    with chain.locked(folder, _LOCK_LIMIT):
        _mark(folder)
        for disk in disks:
            tell_uncovered(store, guest, disk["covered"])
            if names.is_layer(disk["covered"]):
                overlay.remove(disk["covered"])


def _layers(folder: Path) -> list[dict[str, Any]]:
    disks = outside.read(folder)["disks"] if outside.is_noted(folder) else []
    return [disk for disk in disks if disk["scheme"] == overlay.Overlay.NAME]


def _mark(folder: Path) -> None:
    """From here on the snapshot is none any more."""
    with files.as_store_error(f"'{folder}' cannot be written to"):
        if not chain.is_merging(folder):
            files.write_json(folder / manifest.MERGING, {"into": None})


def _covers(store: Store, guest: str, disks: Sequence[Mapping[str, Any]]) -> list[_Cover]:
    upper = chain.covered(store, guest) if disks else {}
    noted = _noted(store, guest) if disks else {}
    for disk in disks:
        over = disk["overlay"]
        if over in noted and over not in upper:
            raise RefusedError(
                f"snapshot '{noted[over]}', whose manifest is damaged, is made of '{over}', which"
                " would go",
                "repair or remove that snapshot first",
                "damaged_above",
            )
    return [
        _Cover(disk, store.snapshot(guest, upper[over]) if over in upper else None)
        for disk in disks
        for over in [disk["overlay"]]
    ]


def _noted(store: Store, guest: str) -> dict[str, str]:
    """Image -> the snapshot that it is a disk of, of those too whose manifests are damaged."""
    return {
        disk["covered"]: name
        for name in store.entries(guest)[0]
        for folder in [store.snapshot(guest, name)]
        if outside.is_noted(folder) and not chain.is_merging(folder)
        for disk in outside.read(folder)["disks"]
        if disk.get("covered") is not None
    }


class _State:
    """How far it is. qemu: pid and start time of the guest's QEMU when it began.

    committed: what was merged while the guest was off, and its definition may name still.
    """

    def __init__(
        self,
        folder: Path,
        qmp: Optional[Connection],
        definition: Optional[Definition],
        noted: Mapping[str, Any],
    ) -> None:
        self._folder = folder
        self._qmp = qmp
        self._definition = definition
        self._now = None if qmp is None else [qmp.peer_pid, process.start_time(qmp.peer_pid)]
        self._qemu = noted.get("qemu", self._now)
        self._committed: list[str] = list(noted.get("committed", []))
        self._merged: list[str] = list(noted.get("merged", []))

    @classmethod
    def of(
        cls, folder: Path, qmp: Optional[Connection], definition: Optional[Definition]
    ) -> _State:
        """As it was noted, if it has begun before."""
        path = folder / NOTE
        noted = files.read_object(path) if path.exists() else {}
        return cls(folder, qmp, definition, noted)

    def begin(self) -> None:
        """Write it down; from here on the snapshot is none any more."""
        self._write()
        _mark(self._folder)

    def _write(self) -> None:
        about = {"qemu": self._qemu, "committed": self._committed, "merged": self._merged}
        with files.as_store_error(f"'{self._folder}' cannot be written to"):
            files.write_json(self._folder / NOTE, about)

    def go_on(self, cover: _Cover, snapshot_id: str) -> None:
        """Wait for a merging that was begun before, and whose end nobody has seen."""
        if self._qmp is None or not self._has_begun or not Path(cover.over).exists():
            return
        job, limit = overlay.job_of(snapshot_id, cover.over), overlay.limit_of(cover.over)
        layers.finish_begun(self._qmp, cover.over, cover.covered, job, limit)

    def check(self, cover: _Cover) -> None:
        """RefusedError where it cannot be merged as things are."""
        if self._is_merged(cover):
            return
        inside = image_file.look(cover.over, overlay.FORMAT).get("snapshots")
        if inside:
            raise RefusedError(
                f"'{cover.over}' has {len(inside)} snapshots inside, which would go with it",
                f"remove them first, such as '{inside[-1]['name']}' (scheme internal)",
                "snapshots_inside",
            )
        if self._live(cover) is not None:
            return
        if self._qmp is not None and self._runs_on(cover.covered):
            raise RefusedError(
                f"the guest was started with '{cover.covered}', which the snapshot is made of, and"
                f" '{cover.over}' has what it wrote before",
                f"start it with '{cover.over}', or remove that if what it has is not wanted",
                "covered_in_use",
            )
        if cover.upper is None and not self._is_started_with(cover.over):
            where = "the guest is off" if self._qmp is None else "no disk of the guest has it now"
            raise RefusedError(
                f"a guest is started with '{cover.over}', which would go, and {where}",
                "start the guest with it first; it then goes on with the image that is covered now",
                "guest_off",
            )

    def end(self, cover: _Cover, snapshot_id: str) -> None:
        """Merge one, tell the snapshot that it was a disk of, remove it."""
        if not self._is_merged(cover):
            found = self._live(cover)
            if found is not None and self._qmp is not None:
                job, limit = overlay.job_of(snapshot_id, cover.over), overlay.limit_of(cover.over)
                layers.merge_down(self._qmp, *found, job, limit)
            else:
                self._commit_resting(cover)
        if self._qmp is not None:
            layers.forget(self._qmp, cover.over)
        self._merged.append(cover.over)
        self._write()
        _tell(cover)
        overlay.remove(cover.over)

    def _commit_resting(self, cover: _Cover) -> None:
        overlay.commit_resting(cover.over, cover.covered)
        if cover.upper is not None:
            _stand_on(cover)
        self._committed.append(cover.over)
        self._write()
        if self._definition is not None:
            self._definition.leave_out(cover.over, cover.covered, cover.disk["format"])

    def _is_started_with(self, file: str) -> bool:
        return self._definition is not None and self._definition.starts_with(file)

    def _live(self, cover: _Cover) -> Optional[tuple[layers.Stack, int]]:
        if self._qmp is None:
            return None
        return layers.covering(self._qmp, cover.over, cover.covered)

    @property
    def _has_begun(self) -> bool:
        return (self._folder / NOTE).exists()

    def _runs_on(self, file: str) -> bool:
        if self._qmp is None:
            return False
        return any(stack.find(file) is not None for stack in layers.stacks(self._qmp))

    def _is_merged(self, cover: _Cover) -> bool:
        if cover.over in self._merged or not Path(cover.over).exists():
            return True
        if self._qmp is None:
            return cover.over in self._committed and self._is_started_with(cover.covered)
        # The same QEMU that had it as a layer when this began has it no more, or one that was
        # started since then with the image that all of it had been merged into.
        return (
            ((self._has_begun and self._qemu == self._now) or cover.over in self._committed)
            and self._live(cover) is None
            and self._runs_on(cover.covered)
        )


def _stand_on(cover: _Cover) -> None:
    """What covers the cover stands on the lower image from now on: both read the same."""
    if cover.upper is None:
        raise AssertionError
    upper = next(
        disk for disk in outside.read(cover.upper)["disks"] if disk.get("covered") == cover.over
    )
    if upper["overlay"] is None:
        return
    argv = ["qemu-img", "rebase", "-q", "-u", "-f", overlay.FORMAT, "-F", cover.disk["format"]]
    done = run_bounded([*argv, "-b", cover.covered, upper["overlay"]], _REBASE_LIMIT)
    if done.problem or done.code != 0:
        raise LivesnapError(
            f"'{upper['overlay']}' cannot be made to stand on '{cover.covered}':"
            f" {done.problem or done.words}"
        )


def _tell(cover: _Cover) -> None:
    """The snapshot above has the lower image as its disk."""
    if cover.upper is None:
        return
    lower = {key: cover.disk[key] for key in ("covered", "format", "source")}

    def told(disk: Mapping[str, Any]) -> dict[str, Any]:
        return {**disk, **lower} if disk.get("covered") == cover.over else dict(disk)

    _rewrite(cover.upper, told)


def _rewrite(folder: Path, change: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
    """Other entries of the disks of a snapshot, in its note and in its manifest."""
    fields = manifest.decode(files.read_regular(folder / manifest.NAME, manifest.LIMIT))
    whose = outside.read(folder)
    with files.as_store_error(f"'{folder}' cannot be told of its disks"):
        outside.note(folder, whose, [change(disk) for disk in whose["disks"]])
        data = manifest.encode({**fields, "disks": [change(disk) for disk in fields["disks"]]})
        files.write_whole(folder / manifest.NAME, data)
