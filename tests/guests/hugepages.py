# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Huge pages of 2 MiB for tests, and a hugetlbfs: added to the machine, and taken back."""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")


class NoHugePages(Exception):
    """The machine does not give them, and why."""


def free_pages() -> int:
    """How many of the pool nobody has."""
    return int((POOL / "free_hugepages").read_text())


@contextlib.contextmanager
def pool(pages: int) -> Iterator[None]:
    """So many more in the pool."""
    number = POOL / "nr_hugepages"
    if not number.exists():
        raise NoHugePages("the kernel has no huge pages of 2 MiB")
    with number.open() as lock:
        # The native tests do the same: side by side they would undo each other's number.
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = int(number.read_text())
        try:
            number.write_text(str(before + pages))
            if free_pages() < pages:
                raise NoHugePages(f"the kernel does not give {pages} huge pages")
            yield
        finally:
            number.write_text(str(before))


@contextlib.contextmanager
def hugetlbfs() -> Iterator[Path]:
    """A hugetlbfs with pages of 2 MiB."""
    folder = Path(tempfile.mkdtemp(prefix="livesnap-huge-", dir="/tmp"))
    try:
        subprocess.run(["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "none", str(folder)],
                       check=True, timeout=20)
        try:
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True, timeout=20)
    finally:
        folder.rmdir()
