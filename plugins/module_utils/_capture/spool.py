# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where QEMU writes a whole migration stream to, and cannot fail: room that was taken beforehand.

QEMU 6.0 to 8.0 does not survive it when whoever takes the stream of its background snapshot fails:
RAM stays protected, and its monitor is dead for good. So nobody takes it: QEMU gets a file of
memory, or, where the host has none to spare, one in the store's file system, its room reserved.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import StoreError

#: Left to the host besides the half, bytes: as the helper does it (docs/helper.md, `staging`).
_RESERVE = 256 << 20


def stream_bytes(ram: int) -> int:
    """The most that a stream of so many bytes of RAM takes. Pure.

    8 bytes in front of each page, and a block's name of 256 at most with the first page of a block
    and after a fault in another; devices take some MiB.
    """
    return ram + ram // 4096 * (8 + 257) + (64 << 20)


def fits_in_memory(size: int, staging: int, available: int) -> bool:
    """Whether memory may be taken for it: `staging` bytes, or for 0 half of what there is. Pure."""
    return size <= (staging or max(0, available - _RESERVE) // 2)


def available_bytes() -> int:
    """The host's memory that can be had without swapping."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) << 10
    except (OSError, ValueError):
        pass
    return 0


class Spool:
    """One such file, without a name."""

    def __init__(self, size: int, staging: int, folder: Path) -> None:
        """Takes `size` bytes, in memory or else in the folder; StoreError when there is no room."""
        self._fd: Optional[int] = None
        self.in_memory = fits_in_memory(size, staging, available_bytes())
        try:
            if self.in_memory:
                fd = os.memfd_create("livesnap-spool", os.MFD_CLOEXEC)
            else:
                flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
                fd = os.open(folder, flags, 0o600)
        except OSError as err:
            raise StoreError(f"no file for QEMU's stream in '{folder}': {err.strerror}") from None
        self._fd = fd
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as err:
            self.close()
            where = "memory" if self.in_memory else f"'{folder}'"
            why = "no room" if err.errno == errno.ENOSPC else err.strerror
            raise StoreError(
                f"{size} bytes for QEMU's stream cannot be reserved in {where}: {why}",
                "give 'staging' room for the guest's RAM, or the store",
            ) from None
        self.size = size

    @property
    def fd(self) -> int:
        """Its descriptor; QEMU's copy of it moves the same position."""
        if self._fd is None:
            raise AssertionError
        return self._fd

    @property
    def path(self) -> str:
        """By which the helper opens it while this process has it."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def written(self) -> int:
        """Bytes that QEMU has written."""
        return os.lseek(self.fd, 0, os.SEEK_CUR)

    def close(self) -> None:
        """Let go of it; may be called again."""
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None
