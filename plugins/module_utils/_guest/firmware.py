# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hashes of the files that a machine is built from, so that a restore can tell whether they are
still the same: under -incoming their content comes from the stream, but their sizes must fit."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Iterable

_LIMIT = 64 << 20


@dataclass(frozen=True)
class Firmware:
    """A file of the machine: firmware, kernel, initrd, option ROM."""

    path: str
    sha256: str
    bytes: int


def firmware_of(paths: Iterable[str], root: str = "/") -> list[Firmware]:
    """Hashes of those that are readable regular files of 64 MiB at most.

    `root` is where QEMU sees its files, such as /proc/PID/root.
    """
    found = []
    for path in dict.fromkeys(paths):
        try:
            with open(os.path.join(root, path.lstrip("/")), "rb") as file:
                data = file.read(_LIMIT + 1)
        except OSError:
            continue
        if len(data) <= _LIMIT:
            found.append(Firmware(path, hashlib.sha256(data).hexdigest(), len(data)))
    return found
