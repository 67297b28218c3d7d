# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A link of a chain goes: what it has is kept for the snapshot that stands on it.

What the upper image has is written into the lower one, which is right for the upper snapshot at
every moment of that. Then the lower image takes the upper one's name, and the upper snapshot gets a
manifest that says so. The lower snapshot is not one any more from the first write on (merging.json
in its folder); cut short anywhere, the same again ends it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
    StoreError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded
from ansible_collections.livesnap.qemu.plugins.module_utils._store import (
    chain,
    files,
    manifest,
    space,
    sums,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._units import format_size

#: The slowest that storage may be and not count as stuck, bytes a second; what is added, seconds.
_SLOWEST, _LIMIT = 10 << 20, 60.0
#: How long those who read the images are waited for, seconds.
_LOCK_LIMIT = 10.0
_THREADS = 2
_POLL = 0.05


@dataclass(frozen=True)
class _Pair:
    """A disk of the snapshot that stays, its image; the same of the one that goes."""

    disk: Mapping[str, Any]
    over: Path
    base: Mapping[str, Any]
    under: Path

    @property
    def image(self) -> Path:
        """Where what is merged lies: cut short, it may have its new name already."""
        return self.under if os.path.lexists(self.under) else self.over


def merge(folder: Path, onto: Path) -> None:
    """Make the disks of snapshot `onto` stand on what those of `folder` stand on.

    The guest's folder is locked. RefusedError and StoreError leave both as they were;
    LivesnapError comes after the first write, and says so.
    """
    goes, stays = (
        manifest.decode(files.read_regular(each / manifest.NAME, manifest.LIMIT))
        for each in (folder, onto)
    )
    pairs = _pairs(folder, goes, onto, stays)
    if not pairs:
        return
    with chain.locked(folder, _LOCK_LIMIT), chain.locked(onto, _LOCK_LIMIT):
        if not chain.is_merging(folder):
            _check(pairs)
            with files.as_store_error(f"'{folder / manifest.MERGING}' cannot be written"):
                files.write_json(folder / manifest.MERGING, {"into": stays["name"]})
        for pair in pairs:
            if os.path.lexists(pair.under):
                _commit(pair)
        _exchange(pairs, onto, stays)


def _pairs(
    folder: Path, goes: Mapping[str, Any], onto: Path, stays: Mapping[str, Any]
) -> list[_Pair]:
    found = []
    for disk in stays["disks"]:
        base = disk.get("base")
        if base is None or base["name"] != goes["name"]:
            continue
        entry = next((each for each in goes["disks"] if each["file"] == base["file"]), None)
        if base["id"] != goes["id"] or entry is None:
            raise StoreError(f"'{onto / disk['file']}' stands on another snapshot than '{folder}'")
        found.append(_Pair(disk, onto / disk["file"], entry, folder / base["file"]))
    return found


def _check(pairs: Sequence[_Pair]) -> None:
    """There is room; and no damage that the new checksums would hide."""
    for pair in pairs:
        need = int(pair.disk["stored_bytes"]) + space.SLACK
        free = space.free_bytes(pair.under.parent)
        if need > free:
            raise RefusedError(
                f"'{pair.over}' cannot be merged into '{pair.under}': that may take"
                f" {format_size(need)}, and {format_size(free)} are free",
                "enlarge the store's file system, or remove later snapshots first",
                "store_full",
            )
        for path, about in ((pair.over, pair.disk), (pair.under, pair.base)):
            manifest.check_file(path.parent, path.name, about["file_bytes"])
            expected = about.get("checksums")
            if expected and _digests(path, expected["chunk_bytes"]) != expected["sha256"]:
                raise StoreError(
                    f"'{path}' is damaged, so it is not merged",
                    "livesnap_verify names the place; snapshots that stand on it are lost",
                )


def _digests(path: Path, chunk: int) -> list[str]:
    """Of all pieces of a file."""
    size = path.stat().st_size
    with sums.Digests([sums.Subject(path, size, chunk, {})], _THREADS) as digests:
        while not digests.finished():
            time.sleep(_POLL)
        (found,) = digests.found()
    return [found[piece] for piece in sorted(found)]


def _commit(pair: _Pair) -> None:
    """Write what the upper image has into the lower one. The upper one stays as it is (-d)."""
    limit = _LIMIT + int(pair.disk["file_bytes"]) / _SLOWEST
    argv = ["nice", "qemu-img", "commit", "-q", "-d", "-f", "qcow2", str(pair.over)]
    done = run_bounded(argv, limit)
    if done.problem or done.code != 0:
        raise LivesnapError(
            f"'{pair.over}' cannot be merged into '{pair.under}': 'qemu-img commit'"
            f" {done.problem or 'failed: ' + done.words}",
            "its snapshot is whole; remove the cause, and livesnap_recover goes on",
        )
    files.sync_file(pair.under)


def _exchange(pairs: Sequence[_Pair], onto: Path, stays: Mapping[str, Any]) -> None:
    """The merged images take their names, and the manifest tells of them."""
    merged = {pair.disk["file"]: _entry(pair, len(stays["disks"])) for pair in pairs}
    disks = [merged.get(disk["file"], disk) for disk in stays["disks"]]
    data = manifest.encode({**stays, "disks": disks})
    with files.as_store_error(f"'{onto}' cannot be given its merged disks"):
        for pair in pairs:
            if os.path.lexists(pair.under):
                os.rename(pair.under, pair.over)
                files.sync_folder(pair.over.parent)
                files.sync_folder(pair.under.parent)
        files.write_whole(onto / manifest.NAME, data)


def _entry(pair: _Pair, count: int) -> dict[str, Any]:
    """A merged disk in disks[] of the manifest."""
    info = pair.image.stat()
    chunk = sums.chunk_bytes(info.st_size, count)
    return {
        **pair.disk,
        "stored_bytes": info.st_blocks * 512,
        "file_bytes": info.st_size,
        "checksums": {"chunk_bytes": chunk, "sha256": _digests(pair.image, chunk)},
        "base": pair.base.get("base"),
        "full_because": pair.base.get("full_because"),
    }
