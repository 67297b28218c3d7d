# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest's RAM in huge pages again, when something has taken them apart."""

from __future__ import annotations

import ctypes
import os
import re

from .guest import Guest

_HUGE = 2 << 20
_SYS_PROCESS_MADVISE = 440  # x86-64
_MADV_COLLAPSE = 25


def collapse(guest: Guest) -> None:
    """process_madvise(MADV_COLLAPSE), Linux 6.1; what cannot be in huge pages stays as it is.

    The kernel itself gives huge pages only while it has free ones, and QEMU's background-snapshot
    leaves none. A guest with thp=False is left alone.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with guest.look() as qmp:
        found = re.search(r" is (0x[0-9a-f]+)", qmp.hmp("gpa2hva 0x100000"))
    if found is None or not guest.options.thp:
        return
    first = int(found.group(1), 16) - 0x100000
    pidfd = os.pidfd_open(guest.pid or 0)
    try:
        for at in range(first, first + (guest.options.memory << 20), _HUGE):
            piece = (ctypes.c_uint64 * 2)(at, _HUGE)
            libc.syscall(_SYS_PROCESS_MADVISE, pidfd, piece, ctypes.c_ulong(1), _MADV_COLLAPSE, 0)
    finally:
        os.close(pidfd)
