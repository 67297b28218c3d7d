# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: within
short_description: Whether a moment is in a time window of the day
version_added: 0.1.0
author:
  - The livesnap authors (@livesnap)
description:
  - Its end is outside of a window. One that ends before it begins goes past midnight.
positional: window, zone
options:
  _input:
    description: Seconds since 1970.
    type: float
    required: true
  window:
    description: Two times of a day, such as V(22:00-06:00).
    type: str
    required: true
  zone:
    description: The time zone of these times.
    type: str
    default: UTC
"""

EXAMPLES = r"""
- name: Show whether it is night in Berlin
  ansible.builtin.debug:
    msg: "{{ now().timestamp() | livesnap.qemu.within('22:00-06:00', 'Europe/Berlin') }}"
"""

RETURN = r"""
_value:
  description: Whether it is.
  type: bool
  sample: true
"""

from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ..plugin_utils import _window


def within(moment: float, window: str, zone: str = "UTC") -> bool:
    """See DOCUMENTATION."""
    try:
        return _window.within(float(moment), window, zone)
    except (ValueError, TypeError) as error:
        raise AnsibleFilterError(f"livesnap.qemu.within: {error}") from error


class FilterModule:
    """What Ansible asks for filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {"within": within}
