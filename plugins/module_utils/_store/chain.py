# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Increments: disk images of snapshots that stand on those of earlier ones, up to a full copy.

`base` of a disk in the manifest is {id, name, file}: the snapshot of the same guest that its image
stands on, and that one's image. Nobody else stands on a base: a chain does not branch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    RefusedError,
    StoreError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files, manifest
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import NEEDS, Store

#: No chain of ours is that long: manifests that name one another in a circle are found.
LONGEST = 200
_POLL = 0.1
#: In every manifest with a disk that is part of a chain. Most have none, and need no decoding.
_HAS_LINK = re.compile(rb'"base"\s*:\s*\{|"covered"\s*:\s*"')


@dataclass(frozen=True)
class Link:
    """An image of a chain: the folder of its snapshot, and its entry in that one's manifest."""

    folder: Path
    disk: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """Of the image."""
        return self.folder / str(self.disk["file"])


def links(
    folder: Path, disk: Mapping[str, Any], known: Optional[dict[Path, dict[str, Any]]] = None
) -> list[Link]:
    """What a disk of a snapshot is made of, its own image first, the full copy last.

    `known`: folder -> manifest of those that were read already; others are read, and added to it.
    StoreError when one is not there, or is not what the one above it names.
    """
    known = {} if known is None else known
    found = [Link(folder, disk)]
    while found[-1].disk.get("base") is not None:
        if len(found) > LONGEST:
            raise StoreError(f"'{found[0].path}' stands on more than {LONGEST} others")
        found.append(_below(found[-1], known))
    return found


def _below(link: Link, known: dict[Path, dict[str, Any]]) -> Link:
    base = link.disk["base"]
    folder = link.folder.parent / base["name"]
    try:
        fields = known[folder] = known.get(folder) or _manifest(folder)
    except StoreError as err:
        raise StoreError(
            f"'{link.path}' stands on snapshot '{base['name']}', which is not sound: {err.msg}",
            err.hint,
        ) from None
    entry = next((each for each in fields["disks"] if each["file"] == base["file"]), None)
    if fields["id"] != base["id"] or entry is None:
        raise StoreError(
            f"'{link.path}' stands on '{base['file']}' of the snapshot with id {base['id']};"
            f" '{base['name']}' has id {fields['id']}, or no such file"
        )
    return Link(folder, entry)


def _manifest(folder: Path) -> dict[str, Any]:
    """Of one that others stand on. While it is merged into them its images grow, and are right."""
    if is_merging(folder):
        return manifest.decode(files.read_regular(folder / manifest.NAME, manifest.LIMIT))
    return manifest.read(folder)


def is_merging(folder: Path) -> bool:
    """Whether a snapshot is being removed, and was not removed whole."""
    return os.path.lexists(folder / manifest.MERGING)


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a snapshot that is to be used: all that its disks stand on is there, too."""
    fields = manifest.read(folder)
    known = {folder: fields}
    for disk in fields["disks"]:
        links(folder, disk, known)
    return fields


def above(store: Store, guest: str, name: str) -> list[str]:
    """The complete snapshots that stand on one, the nearest first.

    One whose files are not sound counts too: it may be repaired.
    """
    return all_above(uppers(dict(_linked(store, guest))), name)


def uppers(known: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Snapshot -> those that stand right on it, by the manifests of all of a guest's. Pure."""
    cover = _covered(known)
    found: dict[str, list[str]] = {}
    for each, fields in known.items():
        for base in bases(fields):
            found.setdefault(base, []).append(each)
        for disk in fields["disks"]:
            if disk.get("overlay") in cover:
                found.setdefault(each, []).append(cover[disk["overlay"]])
    return found


def all_above(right_above: Mapping[str, Sequence[str]], name: str) -> list[str]:
    """Those that stand on a snapshot, right on it or on others, the nearest first. Pure."""
    found = [name]
    for each in found:
        found += [up for up in dict.fromkeys(right_above.get(each, ())) if up not in found]
    return found[1:]


def tied(known: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, set[str]]:
    """Snapshot -> those that cannot go before it, of the disks of all of a guest's. Pure.

    A snapshot inside an image (scheme internal) can be removed as long as nothing covers that, and
    goes with it: with the layer of another snapshot, if that is its image.
    """
    inside: dict[str, set[str]] = {}
    layers: dict[str, tuple[str, str]] = {}
    for name, disks in known.items():
        for disk in disks:
            if disk["scheme"] == "internal":
                inside.setdefault(disk["source"]["file"], set()).add(name)
            elif disk.get("overlay") is not None:
                layers[disk["overlay"]] = (name, disk["covered"])
    found: dict[str, set[str]] = {}
    for image, names in inside.items():
        if image in layers:
            for name in names:
                found.setdefault(name, set()).add(layers[image][0])
    for name, disks in known.items():
        below = [disk["covered"] for disk in disks if disk.get("covered") is not None]
        for image in below:
            found.setdefault(name, set()).update(inside.get(image, ()))
            if image in layers and layers[image][1] not in below:
                below.append(layers[image][1])
    return {name: needed - {name} for name, needed in found.items()}


def covered(store: Store, guest: str) -> dict[str, str]:
    """Image -> the complete snapshot of scheme overlay that it is a disk of."""
    return _covered(dict(_linked(store, guest)))


def overlays(store: Store, guest: str) -> dict[str, str]:
    """Image -> the complete snapshot of scheme overlay since which it has the guest's writes."""
    return {
        disk["overlay"]: name
        for name, fields in _linked(store, guest)
        for disk in fields["disks"]
        if disk.get("overlay") is not None
    }


def below(store: Store, guest: str, image: str) -> list[str]:
    """The snapshots by scheme overlay whose layers an image stands on, the nearest first."""
    known = dict(_linked(store, guest))
    layers = {
        disk["overlay"]: (name, disk["covered"])
        for name, fields in known.items()
        for disk in fields["disks"]
        if disk.get("overlay") is not None
    }
    found: list[str] = []
    while image in layers and layers[image][0] not in found:
        name, image = layers[image]
        found.append(name)
    return found


def _covered(known: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {
        disk["covered"]: name
        for name, fields in known.items()
        for disk in fields["disks"]
        if disk.get("covered") is not None
    }


def _linked(store: Store, guest: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and manifest of the complete snapshots with a disk that is part of a chain."""
    for name in store.entries(guest)[0]:
        path = store.snapshot(guest, name) / manifest.NAME
        with contextlib.suppress(StoreError):
            data = files.read_regular(path, manifest.LIMIT)
            if _HAS_LINK.search(data):
                yield name, manifest.decode(data)


def bases(fields: Mapping[str, Any]) -> set[str]:
    """Names of the snapshots that the disks of a manifest stand on. Pure."""
    return {disk["base"]["name"] for disk in fields["disks"] if disk.get("base") is not None}


def note_needs(folder: Path, names: Sequence[str]) -> None:
    """Of a folder in the making: these snapshots must not go. Its guest's folder is
    locked."""
    with files.as_store_error(f"'{folder / NEEDS}' cannot be written"):
        files.write_json(folder / NEEDS, {"names": sorted(names)})


def needed_in_the_making(store: Store, guest: str, name: str) -> Optional[str]:
    """Name of the snapshot in the making whose disks are going to stand on this one."""
    for each in store.entries(guest)[1]:
        with contextlib.suppress(StoreError):
            if name in files.read_object(store.partial(guest, each) / NEEDS).get("names", ()):
                return each
    return None


@contextlib.contextmanager
def locked(folder: Path, timeout: float, shared: bool = False) -> Iterator[None]:
    """Of a guest's folder: which of its snapshots others stand on does not change meanwhile.
    Of a snapshot's folder: its images stay as they are, or (not shared) are ours to change.

    RefusedError when others have it for longer than so many seconds.
    """
    with files.as_store_error(f"'{folder}' cannot be locked"):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _lock(fd, folder, timeout, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, folder: Path, timeout: float, kind: int) -> None:
    end = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return
        except OSError as err:
            if err.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                raise StoreError(f"'{folder}' cannot be locked: {err.strerror}") from None
        if time.monotonic() > end:
            raise RefusedError(
                f"'{folder}' is in use: its images are read, or snapshots are removed (waited"
                f" {timeout:g} s)",
                "try again later",
                "chain_busy",
            )
        time.sleep(_POLL)
