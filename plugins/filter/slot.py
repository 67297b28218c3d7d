# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: slot
short_description: The slot of a schedule that a moment falls into
version_added: 0.1.0
author:
  - The livesnap authors (@livesnap)
description:
  - Cuts time into slots of an interval, in UTC, and says which one a moment is in.
  - Slots of whole weeks begin on Monday.
positional: interval
options:
  _input:
    description:
      - Seconds since 1970 as a number, or a slot as text, such as V(20261123T0100Z) or V(2026-11-23T01:00:00Z),
        which is taken as it is.
    type: raw
    required: true
  interval:
    description: Length of a slot, in whole minutes, with a unit of V(m), V(h), V(d) or V(w).
    type: str
    default: 1h
"""

EXAMPLES = r"""
- name: Show the slot of this hour
  ansible.builtin.debug:
    msg: "{{ now().timestamp() | livesnap.qemu.slot('1h') }}"
"""

RETURN = r"""
_value:
  description: The slot.
  type: dict
  contains:
    name:
      description: As in names of snapshots.
      type: str
      sample: 20261123T0100Z
    start:
      description: Its start, RFC 3339 in UTC.
      type: str
      sample: "2026-11-23T01:00:00Z"
"""

from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ..plugin_utils import _slots


def slot(given: Any, interval: str = "1h") -> dict[str, str]:
    """See DOCUMENTATION."""
    try:
        return _slots.slot(given, interval)
    except ValueError as error:
        raise AnsibleFilterError(f"livesnap.qemu.slot: {error}") from error


class FilterModule:
    """What Ansible asks for filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {"slot": slot}
