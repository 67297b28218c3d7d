# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The witness' lines among all that a guest prints on its console."""

from __future__ import annotations

import json
from typing import Any

MARK = "witness {"


def states(text: str) -> list[dict[str, Any]]:
    """Each whole line of the witness; the last may still be in the making, and is then left out."""
    found = []
    for line in text.split("\n")[:-1]:
        at = line.find(MARK)
        if at < 0:
            continue
        try:
            found.append(json.loads(line[at + len(MARK) - 1:].rstrip("\r")))
        except ValueError:
            # Kernel messages of an emergency do not wait for the end of a line.
            continue
    return found
