# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""File names as QEMU reads them. Pure."""

from __future__ import annotations

import os


def absolute(name: str, cwd: str) -> str:
    """A file name as from `cwd`; what has a protocol ('nbd:', 'json:', 'rbd:') stays.

    As path_has_protocol() of QEMU: a colon before the first slash.
    """
    if not name or name.startswith("/"):
        return name
    if ":" in name.split("/", 1)[0]:
        if not name.startswith("file:"):
            return name
        name = name[5:]
    return os.path.normpath(os.path.join(cwd, name))
