# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file system in a file, mounted by a loop device."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from .errors import LabError

_SBIN = {**os.environ, "PATH": f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"}


def _run(*argv: str) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=120, env=_SBIN, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stderr}")


class FileSystem:
    """`with FileSystem("xfs") as mounted: mounted.path`; kinds and options are those of mkfs."""

    def __init__(self, kind: str, mib: int = 4096, *options: str) -> None:
        self.kind = kind
        self._options = options
        self._folder = Path(tempfile.mkdtemp(prefix="livesnap-fs-", dir="/tmp"))
        self._folder.chmod(0o755)
        self._image = self._folder / "image"
        self.path = self._folder / kind
        self.path.mkdir()
        with self._image.open("wb") as file:
            file.truncate(mib << 20)

    def __enter__(self) -> FileSystem:
        try:
            _run(f"mkfs.{self.kind}", "-q", *self._options, str(self._image))
            _run("mount", "-o", "loop", str(self._image), str(self.path))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        # A process that was killed lets go of its files a moment after it is seen to be dead.
        deadline = time.monotonic() + 10
        while True:
            try:
                _run("umount", str(self.path))
                break
            except LabError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)
        self._remove()

    def _remove(self) -> None:
        self._image.unlink()
        self.path.rmdir()
        self._folder.rmdir()
