# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs of Debian's packages that tests ask, unpacked into build/ and not installed."""

from __future__ import annotations

import fcntl
import hashlib
import platform
import re
import subprocess
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from layout import REPO


class Unavailable(Exception):
    """The program cannot be had here, and why."""


@dataclass(frozen=True)
class Program:
    """A program of a package that is pinned by its checksum."""

    name: str
    version: str
    deb: str
    sha256: str

    def path(self) -> Path:
        """Where it is, from Debian's mirror the first time; Unavailable says why it cannot be."""
        if platform.machine() != "x86_64":
            raise Unavailable(f"the pinned package is for x86_64, not for {platform.machine()}")
        folder = REPO / "build" / self.name
        found = folder / self.name
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not found.exists():
                self._unpack(self._download(), found)
        return found

    def _download(self) -> bytes:
        known = mirrors()
        what = f"{self.name} {self.version}"
        if not known:
            raise Unavailable(f"{what} is not in build/{self.name}, and apt knows no Debian mirror")
        failures = []
        for mirror in known:
            try:
                with urllib.request.urlopen(f"{mirror}/{self.deb}", timeout=60) as answer:
                    data: bytes = answer.read()
            except OSError as error:
                failures.append(f"{mirror}/{self.deb}: {error}")
                continue
            if hashlib.sha256(data).hexdigest() == self.sha256:
                return data
            failures.append(f"{mirror}/{self.deb} is another file than the pinned one")
        raise Unavailable(f"{what} cannot be fetched: " + "; ".join(failures))

    def _unpack(self, data: bytes, program: Path) -> None:
        with tempfile.TemporaryDirectory(dir=program.parent) as name:
            package = Path(name) / "package.deb"
            package.write_bytes(data)
            done = subprocess.run(
                ["dpkg-deb", "-x", str(package), name], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise Unavailable(f"the package of {self.name} cannot be unpacked: {done.stderr}")
            (Path(name) / "usr" / "bin" / self.name).rename(program)


def mirrors() -> list[str]:
    """The Debian mirrors that apt uses on this machine."""
    etc = Path("/etc/apt")
    files = [etc / "sources.list", *sorted(etc.glob("sources.list.d/*"))]
    text = "\n".join(path.read_text() for path in files if path.is_file())
    return list(dict.fromkeys(re.findall(r"https?://\S+/debian(?=/?\s)", text)))
