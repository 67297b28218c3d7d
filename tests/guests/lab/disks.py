# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disk images of test guests: made, read as raw, checked."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from .errors import LabError


def _run(*argv: str) -> str:
    # e2fsprogs is in /sbin, which an ordinary user's PATH may not have.
    env = {**os.environ, "PATH": f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"}
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=120, env=env, check=False)
    if done.returncode:
        said = done.stdout + done.stderr
        raise LabError(f"{' '.join(argv)} ended with {done.returncode}:\n{said}")
    return done.stdout


def make(path: Path, mib: int, image_format: str) -> None:
    """A disk image with an ext4 over all of it."""
    raw = path if image_format == "raw" else path.with_name(path.name + ".raw")
    with raw.open("wb") as file:
        file.truncate(mib << 20)
    # Blocks of 4 KiB, which small disks do not have of themselves: the witness' record is one.
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-E", "lazy_itable_init=0", str(raw))
    if raw != path:
        _run("qemu-img", "convert", "-f", "raw", "-O", image_format, str(raw), str(path))
        raw.unlink()


def versions(images: Sequence[Path]) -> list[tuple[int, int, int]]:
    """What is not the same any more after something else has written or replaced an image."""
    found = [image.stat() for image in images]
    return [(each.st_ino, each.st_size, each.st_mtime_ns) for each in found]


def image_format(image: Path) -> str:
    """raw, qcow2, ..."""
    return str(json.loads(_run("qemu-img", "info", "-U", "--output=json", str(image)))["format"])


@contextlib.contextmanager
def as_raw(image: Path) -> Iterator[Path]:
    """A raw file with the contents of an image and its backing files, as they are now."""
    found = image_format(image)
    if found == "raw":
        yield image
        return
    with tempfile.TemporaryDirectory(prefix="livesnap-raw-", dir="/tmp") as folder:
        raw = Path(folder) / "raw"
        _run("qemu-img", "convert", "-U", "-f", found, "-O", "raw", str(image), str(raw))
        yield raw


def fsck(image: Path) -> list[str]:
    """What `e2fsck -n` finds on the ext4 of an image: empty when it was left clean."""
    with as_raw(image) as raw:
        env = {**os.environ, "PATH": f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"}
        done = subprocess.run(["e2fsck", "-f", "-n", str(raw)], stdin=subprocess.DEVNULL, env=env,
                              capture_output=True, text=True, timeout=120, check=False)
    text = done.stdout + done.stderr
    if done.returncode == 0 and "skipping journal recovery" not in text:
        return []
    return text.splitlines()
