# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The images that a clone writes to: overlays on those of the snapshot, empty ones, copies."""

from __future__ import annotations

import json
import os

from ansible_collections.livesnap.qemu.plugins.module_utils._clone.source import SourceDisk
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.scheme import Image
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import CloneError
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.checks import ask, qemu_img
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files

#: The slowest that a disk is copied out and not counted as stuck, bytes a second; what is added.
_SLOWEST, _FETCH_LIMIT = 10 << 20, 60.0


class Images:
    """Makes them, for one QEMU and its user."""

    def __init__(self, exe: str, uid: int, gid: int) -> None:
        """`exe`: the QEMU, whose qemu-img is used. RefusedError when there is none."""
        self.program = qemu_img(exe)
        self.owner = (uid, gid)

    def overlay(self, path: str, disk: SourceDisk) -> None:
        """What is written from now on goes there; the image of the snapshot stays as it is."""
        image = disk.image or self._fetched(path, disk)
        below = ("-F", image.format, "-b", image.path)
        ask(self.program, "create", "-q", "-f", "qcow2", *below, path)
        self._own(path)

    def blank(self, path: str, original: str) -> None:
        """An empty disk as large as a file or device, which a guest may have open."""
        info = ask(self.program, "info", "-U", "--output=json", original)
        size = str(json.loads(info)["virtual-size"])
        ask(self.program, "create", "-q", "-f", "qcow2", path, size)
        self._own(path)

    def copy(self, path: str, disk: SourceDisk, kind: str) -> None:
        """All of an image of the snapshot, in another format."""
        image = disk.image or self._fetched(path, disk)
        ask(self.program, "convert", "-q", "-f", image.format, "-O", kind, image.path, path)
        self._own(path)

    def _fetched(self, path: str, disk: SourceDisk) -> Image:
        """A copy beside of a disk that is not in the store."""
        image = Image(f"{path}.base", disk.format)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with files.as_store_error(f"'{image.path}' cannot be made"):
            os.close(os.open(image.path, flags, 0o600))
        disk.fetch(image.path, _FETCH_LIMIT + disk.bytes / _SLOWEST)
        self._own(image.path)
        return image

    def _own(self, path: str) -> None:
        try:
            os.chmod(path, 0o600)
            os.chown(path, *self.owner)
        except OSError as err:
            raise CloneError(f"'{path}' cannot be given to QEMU's user: {err.strerror}") from None
