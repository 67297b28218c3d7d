# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: summary
short_description: Outcomes of a run as lines, failures last
version_added: 0.1.0
author:
  - The livesnap authors (@livesnap)
description:
  - Orders outcomes as P(livesnap.qemu.outcome#filter) makes them, and says whether the run counts as failed.
positional: policy
options:
  _input:
    description: The outcomes.
    type: list
    elements: dict
    required: true
  policy:
    description: V(any) lets one failure fail the run, V(none) lets none do so, and V(25%) lets more than a quarter of the guests do so.
    type: str
    default: any
"""

EXAMPLES = r"""
- name: Show outcomes
  ansible.builtin.debug:
    msg: "{{ outcomes | livesnap.qemu.summary('25%') }}"
  vars:
    outcomes:
      - {guest: web1, outcome: failed, reason: it is off}
"""

RETURN = r"""
_value:
  description: What to tell of the run.
  type: dict
  contains:
    lines:
      description: One line a guest, failures last.
      type: list
      elements: str
      sample: ["FAILED     web1: it is off"]
    failures:
      description: The guests that failed, and why.
      type: list
      elements: str
      sample: ["web1: it is off"]
    failed:
      description: Whether the run counts as failed.
      type: bool
      sample: true
    counts:
      description: How many guests there are of each outcome.
      type: dict
      sample: {"taken": 0, "predicted": 0, "unchanged": 0, "skipped": 0, "failed": 1}
    counted:
      description: For O(livesnap.qemu.livesnap_metrics#module:outcomes).
      type: list
      elements: dict
      sample: [{"guest": "web1", "outcome": "failed"}]
    guests:
      description: The outcomes by guest.
      type: dict
      sample: {"web1": {"guest": "web1", "outcome": "failed", "reason": "it is off"}}
"""

from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ..plugin_utils import _summary


def summary(outcomes: Sequence[Mapping[str, Any]], policy: str = "any") -> dict[str, Any]:
    """See DOCUMENTATION."""
    try:
        return _summary.summary(outcomes, policy)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AnsibleFilterError(f"livesnap.qemu.summary: {error}") from error


class FilterModule:
    """What Ansible asks for filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {"summary": summary}
