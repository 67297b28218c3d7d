# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: report
short_description: A report on the snapshots of many guests, failures first
version_added: 0.1.0
author:
  - The livesnap authors (@livesnap)
description:
  - Tells for each guest the state of its snapshots, the newest one and the last one that is verified, how it was frozen and paused, the
    verdicts, and shows the last month on a line of time.
  - The HTML is one file that needs no other, for wide and narrow screens and for print.
positional: title
options:
  _input:
    description: For each hypervisor's name RV(livesnap.qemu.livesnap_info#module:snapshots).
    type: dict
    required: true
  title:
    description: The heading.
    type: str
    default: Snapshots
"""

EXAMPLES = r"""
- name: Write a report of this hypervisor
  ansible.builtin.copy:
    content: "{{ ({inventory_hostname: known.snapshots} | livesnap.qemu.report).html }}"
    dest: /root/livesnap.html
    mode: "0600"
  vars:
    known: {snapshots: []}
"""

RETURN = r"""
_value:
  description: The report.
  type: dict
  contains:
    html:
      description: The report as a file of HTML.
      type: str
      sample: <!DOCTYPE html>
    guests:
      description:
        - The same as data, one a guest, each with C(host), C(guest), C(state) (V(failed), V(unverified) or V(verified)), C(problems),
          C(newest), C(last_good), C(count) and C(snapshots).
      type: list
      elements: dict
      sample: [{"host": "hv1", "guest": "web1", "state": "verified", "problems": [], "count": 24}]
"""

from datetime import datetime, timezone
from typing import Any, Callable, Mapping, Sequence

from ansible.errors import AnsibleFilterError

from ..plugin_utils import _report


def report(
    hosts: Mapping[str, Sequence[Mapping[str, Any]]], title: str = "Snapshots"
) -> dict[str, Any]:
    """See DOCUMENTATION."""
    try:
        found = _report.rows(hosts)
        html = _report.page(found, datetime.now(timezone.utc), title)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(
            f"livesnap.qemu.report: this is not what livesnap_info returns: {error!r}"
        ) from error
    return {"html": html, "guests": found}


class FilterModule:
    """What Ansible asks for filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {"report": report}
