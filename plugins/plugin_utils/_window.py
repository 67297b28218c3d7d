# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time windows of a day. Pure: the time is always given.

Private to this collection.
"""

from __future__ import annotations

import re
from datetime import datetime

from ..module_utils._errors import LivesnapError
from ..module_utils._zones import zone_of

_WINDOW = re.compile(r"\s*([01]?\d|2[0-3]):([0-5]\d)\s*-\s*([01]?\d|2[0-4]):([0-5]\d)\s*")


def within(moment: float, window: str, zone: str = "UTC") -> bool:
    """Whether a moment, in seconds since 1970, is in a window such as 22:00-06:00. ValueError for
    what is no window or zone. Its end is outside; one that ends before it begins is of two days."""
    found = _WINDOW.fullmatch(str(window))
    if not found or (found[3] == "24" and found[4] != "00"):
        raise ValueError(f"window '{window}' is not two times of a day such as 22:00-06:00")
    begin, end = (int(found[n]) * 60 + int(found[n + 1]) for n in (1, 3))
    if begin == end:
        raise ValueError(f"window '{window}' is empty; for all of the day write 00:00-24:00")
    try:
        clock = datetime.fromtimestamp(moment, zone_of(zone))
    except LivesnapError as error:
        raise ValueError(str(error)) from None
    now = clock.hour * 60 + clock.minute
    return begin <= now < end if begin < end else now >= begin or now < end
