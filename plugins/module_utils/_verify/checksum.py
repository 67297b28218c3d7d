# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Level checksum: every byte of RAM image, device state, libvirt's XML and disk images.

RAM is read by livesnap-helper, the disks beside it in threads. Which pieces of a disk were good is
noted now and then, so that a check that was cut short goes on where it was.
"""

from __future__ import annotations

import os
import time
from typing import Any, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    HelperError,
    StoreError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._helper import HelperProcess
from ansible_collections.livesnap.qemu.plugins.module_utils._store import manifest, sums
from ansible_collections.livesnap.qemu.plugins.module_utils._store.chain import Link
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.request import (
    BadSnapshot,
    Check,
)

_POLL = 0.1
#: Seconds between notes of what was good so far, and how long such a note counts.
_NOTE_EVERY, _NOTE_COUNTS = 2.0, 24 * 3600.0
#: The helper tells its progress four times a second: silent for so long, it hangs. Seconds.
_SILENT = 300.0
#: How many damaged places are named.
_NAMED = 8
_DONE = "good.json"


def check(about: Check) -> dict[str, Any]:
    """Evidence; BadSnapshot names what is damaged."""
    begun = time.monotonic()
    try:
        manifest.check_contents(about.folder, about.fields)
    except StoreError as err:
        raise BadSnapshot(err.msg) from None
    images = _images(about)
    known = _Known(about, images)
    subjects = [
        sums.Subject(
            link.path,
            link.disk["file_bytes"],
            link.disk["checksums"]["chunk_bytes"],
            known.pieces(link),
        )
        for link in images
    ]
    memory = about.fields["memory"]
    ram = None if memory is None else _Ram(about, known)
    try:
        with sums.Digests(subjects, min(4, os.cpu_count() or 1), stored=True) as digests:
            _follow(about, known, ram, digests)
            _judge(images, digests.found())
    finally:
        if ram is not None:
            ram.end()
    return {
        "ram_bytes": 0 if memory is None else memory["bytes"],
        "disk_bytes": digests.total_bytes,
        "resumed_bytes": known.resumed_bytes,
        "seconds": round(time.monotonic() - begun, 3),
    }


def _images(about: Check) -> list[Link]:
    """What is read of the disks, and of what they stand on; those that are older than their
    checksums have none."""
    found = []
    for disk in about.fields["disks"]:
        if disk["file"] is None:
            about.not_done.append(f"bytes of disk '{disk['match']}': it is not in the store")
            continue
        links = about.links(disk)
        found += [link for link in links if "checksums" in link.disk]
        if any("checksums" not in link.disk for link in links):
            about.not_done.append(
                f"bytes of disk '{disk['match']}': the snapshot is older than their checksums"
            )
    return found


def _follow(about: Check, known: _Known, ram: Optional[_Ram], digests: sums.Digests) -> None:
    """Until both are through."""
    noted = time.monotonic()
    total = digests.total_bytes + (ram.total_bytes if ram is not None else 0)
    while True:
        disks = _read(digests)
        through = (ram is None or ram.poll()) and disks
        done = digests.done_bytes + (ram.done_bytes if ram is not None else 0)
        about.tell("checksum", 100.0 * done / max(1, total), done, total)
        if through or time.monotonic() - noted > _NOTE_EVERY:
            noted = time.monotonic()
            known.note(digests.found(), ram is not None and ram.good)
        if through:
            return
        if ram is None or ram.good:
            time.sleep(_POLL)


def _read(digests: sums.Digests) -> bool:
    try:
        return digests.finished()
    except StoreError as err:
        raise BadSnapshot(err.msg) from None


def _judge(images: Sequence[Link], found: list[dict[int, str]]) -> None:
    """BadSnapshot that names each piece that is another one."""
    damaged = []
    for link, digests in zip(images, found):
        chunk = link.disk["checksums"]["chunk_bytes"]
        for piece, expected in enumerate(link.disk["checksums"]["sha256"]):
            if digests[piece] != expected:
                end = min(link.disk["file_bytes"], (piece + 1) * chunk)
                damaged.append(f"'{_label(link)}' between byte {piece * chunk} and {end}")
    if damaged:
        more = f" and {len(damaged) - _NAMED} more places" if len(damaged) > _NAMED else ""
        raise BadSnapshot(f"damaged: {', '.join(damaged[:_NAMED])}{more}")


def _label(link: Link) -> str:
    """An image, as a path below the guest's folder."""
    return f"{link.folder.name}/{link.disk['file']}"


class _Ram:
    """livesnap-helper, which reads the RAM image."""

    def __init__(self, about: Check, known: _Known) -> None:
        memory = about.fields["memory"]
        self.total_bytes = int(memory["file_bytes"])
        self.done_bytes = 0
        self.good = known.ram
        self._expected = str(memory["checksum"])
        self._path = about.folder / memory["file"]
        self._helper: Optional[HelperProcess] = None
        self._heard = time.monotonic()
        if self.good:
            self.done_bytes = self.total_bytes
            return
        sums.forget(self._path)
        self._helper = HelperProcess(about.request.helper, ["verify", str(self._path)])

    def poll(self) -> bool:
        """Whether all of it was read, and is good."""
        if self.good or self._helper is None:
            return True
        try:
            event = self._helper.event(_POLL)
        except HelperError as err:
            if err.word in ("torn", "storage"):
                raise BadSnapshot(err.msg) from None
            raise
        if event is None:
            if time.monotonic() - self._heard > _SILENT:
                raise HelperError(f"livesnap-helper reads nothing of '{self._path}' any more")
            return False
        self._heard = time.monotonic()
        if event.get("event") == "progress":
            share = float(event.get("percent", 0)) / 100
            self.done_bytes = int(share * self.total_bytes)
        elif event.get("event") == "done":
            self._compare(str(event.get("checksum")))
            self.done_bytes, self.good = self.total_bytes, True
        return self.good

    def _compare(self, checksum: str) -> None:
        if checksum != self._expected:
            raise BadSnapshot(
                f"'{self._path}' has checksum {checksum}, and its manifest names {self._expected}:"
                " it is the image of another snapshot"
            )

    def end(self) -> None:
        """It goes, whatever it does."""
        if self._helper is not None:
            self._helper.end(0.1)


class _Known:
    """What an earlier check of this very snapshot, which was cut short, had found to be good."""

    def __init__(self, about: Check, images: Sequence[Link]) -> None:
        self._about = about
        self._images = images
        note = about.run.read(_DONE) or {}
        age = time.time() - float(note.get("at") or 0)
        if note.get("id") != about.fields["id"] or not 0 <= age < _NOTE_COUNTS:
            note = {}
        self.ram = note.get("ram") is True
        self._good: dict[str, Any] = note.get("disks") or {}
        self.resumed_bytes = about.fields["memory"]["file_bytes"] if self.ram else 0

    def pieces(self, link: Link) -> dict[int, str]:
        """Piece -> checksum of those of an image."""
        digests = link.disk["checksums"]["sha256"]
        good = self._good.get(_label(link))
        found = {
            piece: digests[piece]
            for piece in (good if isinstance(good, list) else [])
            if isinstance(piece, int) and 0 <= piece < len(digests)
        }
        self.resumed_bytes += min(
            link.disk["file_bytes"], len(found) * int(link.disk["checksums"]["chunk_bytes"])
        )
        return found

    def note(self, found: list[dict[int, str]], ram: bool) -> None:
        """What is good so far."""
        good = {
            _label(link): [
                piece
                for piece, digest in digests.items()
                if digest == link.disk["checksums"]["sha256"][piece]
            ]
            for link, digests in zip(self._images, found)
        }
        about = {"id": self._about.fields["id"], "at": time.time(), "ram": ram, "disks": good}
        self._about.run.write(_DONE, about)
