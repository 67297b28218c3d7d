# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""JMESPath expressions that users give. Pure."""

from __future__ import annotations

import json
from typing import Any

from ansible_collections.livesnap.qemu.plugins.module_utils import _deps
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError


def search(option: str, expression: str, data: Any, what: str) -> Any:
    """What the expression comes to; LivesnapError names it where it makes no sense.

    `option` is what it was given as, `what` it is about: 'the snapshots'.
    """
    try:
        return _deps.jmespath.search(expression, data)
    except _deps.jmespath.exceptions.JMESPathError as error:
        raise LivesnapError(
            f"{option} '{expression}' is not a JMESPath expression that fits {what}: {error}"
        ) from None


def choose(option: str, expression: str, items: list[dict[str, Any]], what: str) -> list[Any]:
    """Those of the items that the expression comes to, in its order; it must be a list of them."""
    found = search(option, expression, items, what)
    if not isinstance(found, list) or not all(each in items for each in found):
        text = json.dumps(found)
        raise LivesnapError(
            f"{option} '{expression}' does not come to a list of {what}, but to"
            f" {text if len(text) <= 200 else text[:200] + '...'}",
            "filter the list, and leave its members as they are: such as \"[?state=='running']\"",
        )
    return found
