# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: outcome
short_description: What came of a snapshot, of the result of module livesnap
version_added: 0.1.0
author:
  - The livesnap authors (@livesnap)
description:
  - Makes of a result of M(livesnap.qemu.livesnap), or of C(ansible_failed_result), what a summary needs of it.
positional: guest
options:
  _input:
    description: The result.
    type: dict
    required: true
  guest:
    description: Name of the guest.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Take a snapshot
  livesnap.qemu.livesnap:
    guest: web1
    name: before-upgrade
  register: taken

- name: Show what came of it
  ansible.builtin.debug:
    msg: "{{ taken | livesnap.qemu.outcome('web1') }}"
"""

RETURN = r"""
_value:
  description: The guest, its outcome (V(taken), V(predicted), V(unchanged), V(skipped) or V(failed)), the reason, and times and sizes.
  type: dict
  sample: {"guest": "web1", "outcome": "failed", "reason": "guest 'web1' is off"}
"""

from collections.abc import Mapping
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ..plugin_utils import _summary


def outcome(result: Mapping[str, Any], guest: str) -> dict[str, Any]:
    """See DOCUMENTATION."""
    try:
        return _summary.outcome(result, guest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AnsibleFilterError(f"livesnap.qemu.outcome: {error}") from error


class FilterModule:
    """What Ansible asks for filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {"outcome": outcome}
