# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user knows of his guest's memory: one place in it, and what has to stand there. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import RefusedError

#: The longest value and pattern, bytes.
_MOST = 4096


@dataclass(frozen=True)
class Probe:
    """Checked. Exactly one of physical, virtual and pattern is given; `offset` counts from there.

    value: what has to stand there, None if anything may. disk: match of a disk that has the same
    at `disk_offset`; as numbers (little-endian) they may be `most_apart` from one another.
    """

    name: str
    physical: Optional[int]
    virtual: Optional[int]
    pattern: Optional[bytes]
    offset: int
    length: int
    value: Optional[bytes]
    disk: Optional[str]
    disk_offset: int
    most_apart: int

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Probe:
        """From an entry of the module's `probes`; RefusedError."""
        name = given["name"]
        places = [key for key in ("physical", "virtual", "pattern") if given[key] is not None]
        if len(places) != 1:
            raise _wrong(name, "has to have one of physical, virtual and pattern")
        value = _bytes(name, "value", given["value"])
        length = len(value) if value is not None else given["length"]
        if not 1 <= length <= _MOST:
            raise _wrong(name, f"has length '{length}', which is not between 1 and {_MOST}")
        for key in ("disk_offset", "most_apart"):
            if given[key] < 0:
                raise _wrong(name, f"has {key} '{given[key]}', which is negative")
        pattern = _bytes(name, "pattern", given["pattern"])
        if pattern is not None and not 4 <= len(pattern) <= _MOST:
            raise _wrong(name, f"has a pattern that is not of 4 to {_MOST} bytes")
        return cls(
            name=name,
            physical=_address(name, "physical", given["physical"]),
            virtual=_address(name, "virtual", given["virtual"]),
            pattern=pattern,
            offset=given["offset"],
            length=length,
            value=value,
            disk=given["disk"],
            disk_offset=given["disk_offset"],
            most_apart=given["most_apart"],
        )


def _wrong(name: str, what: str) -> RefusedError:
    return RefusedError(f"probe '{name}' {what}", reason="probes")


def _address(name: str, key: str, text: Optional[str]) -> Optional[int]:
    if text is None:
        return None
    try:
        found = int(str(text), 0)
    except ValueError:
        found = -1
    if not 0 <= found < 1 << 64:
        raise _wrong(name, f"has {key} '{text}', which is no address (such as 0x5e68000)")
    return found


def _bytes(name: str, key: str, text: Optional[str]) -> Optional[bytes]:
    r"""Text as it is, and \xNN for a byte."""
    if text is None:
        return None
    try:
        return text.encode("ascii").decode("unicode_escape").encode("latin-1")
    except UnicodeError:
        raise _wrong(
            name, rf"has {key} '{text}', which is not ASCII with \xNN for other bytes"
        ) from None
