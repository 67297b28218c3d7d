# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time zones by name, as this machine knows them."""

from __future__ import annotations

import zoneinfo
from datetime import timezone, tzinfo

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import RefusedError


def zone_of(name: str) -> tzinfo:
    """The zone of an IANA name such as Europe/Berlin, or RefusedError."""
    if name == "UTC":
        # A machine without tzdata knows this one as well.
        return timezone.utc
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise RefusedError(
            f"timezone '{name}' is not known here",
            "give a name such as Europe/Berlin, and install tzdata where only UTC is known",
            "timezone",
        ) from None
