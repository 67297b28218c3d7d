# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes as people and QEMU write them. Pure."""

from __future__ import annotations

import re
from typing import Union

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError

_EXPONENT = {"": 0, "B": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([BKMGTPE]?)(?:i?B)?\s*", re.IGNORECASE)
_LIMIT = 1 << 63


def parse_size(text: Union[str, int], default_unit: str = "", what: str = "size") -> int:
    """Bytes of '512', '64M', '1.5 GiB', ... A unit is a power of 1024, as in QEMU and qemu-img.

    `default_unit` is that of a bare number ('M' for -m). Raises LivesnapError, the text quoted.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        value = float(text)
        unit = default_unit
        exact = text
    else:
        match = _SIZE.fullmatch(str(text))
        if match is None:
            raise LivesnapError(
                f"{what} '{text}' is not a size",
                "write a number of bytes, or one such as '512M' or '4G'",
            )
        value = float(match.group(1))
        unit = match.group(2).upper() or default_unit
        exact = int(match.group(1)) if match.group(1).isdigit() else -1
    factor = 1024 ** _EXPONENT[unit.upper()]
    # A float would round what is above 2^53.
    size = exact * factor if exact >= 0 else int(value * factor)
    if not 0 <= size < _LIMIT:
        raise LivesnapError(f"{what} '{text}' is out of range", "sizes are from 0 to 8 EiB")
    return size


def format_size(count: int) -> str:
    """'0 B', '1.5 GiB': three significant digits, powers of 1024."""
    if abs(count) < 1024:
        return f"{count} B"
    value = float(count)
    units = iter(("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))
    while abs(value) >= 1024:
        value /= 1024
        unit = next(units)
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    text = f"{value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"
