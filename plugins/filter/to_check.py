# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: to_check
short_description: Chooses the snapshots that are to be checked
version_added: 0.1.0
author:
  - The livesnap authors (@livesnap)
description:
  - Chooses among the snapshots that M(livesnap.qemu.livesnap_info) has listed. Those in the making are left out.
  - What has the name of a snapshot and cannot be read as one is always chosen, because a check has to say so.
positional: which, level, sample
options:
  _input:
    description: RV(livesnap.qemu.livesnap_info#module:snapshots).
    type: list
    elements: dict
    required: true
  which:
    description:
      - The V(newest) of each guest; the V(unverified) ones, which have no good verdict of O(level) or have a bad one; a V(sample) of
        each guest's, chosen by chance; or V(all).
    type: str
    choices: [newest, unverified, sample, all]
    default: newest
  level:
    description: What a verdict has to be of.
    type: str
    choices: [checksum, structure, memory, drill]
    default: structure
  sample:
    description: How many a V(sample) of O(which) has for each guest.
    type: int
    default: 1
"""

EXAMPLES = r"""
- name: Show which snapshots nobody has ever brought back
  ansible.builtin.debug:
    msg: "{{ known.snapshots | livesnap.qemu.to_check('unverified', 'drill') }}"
  vars:
    known: {snapshots: []}
"""

RETURN = r"""
_value:
  description: The chosen ones, in the order in which they were given, each with its C(guest) and C(name).
  type: list
  elements: dict
  sample: [{"guest": "web1", "name": "hourly-20261123T0100Z"}]
"""

import random
from datetime import datetime, timezone
from typing import Any, Callable, Mapping, Sequence

from ansible.errors import AnsibleFilterError

from ..module_utils._store.names import PARTIAL
from ..module_utils._verify.verdict import LEVELS, standing

WHICH = ("newest", "unverified", "sample", "all")

Snapshots = Sequence[Mapping[str, Any]]


def to_check(
    snapshots: Snapshots, which: str = "newest", level: str = "structure", sample: int = 1
) -> list[dict[str, str]]:
    """See DOCUMENTATION."""
    if which not in WHICH or level not in LEVELS or sample < 1:
        raise AnsibleFilterError(
            f"livesnap.qemu.to_check: '{which}', '{level}', {sample} is no choice: the first is"
            f" one of {', '.join(WHICH)}, the second one of {', '.join(LEVELS)}, the third 1 or more"
        )
    there = [
        each
        for each in snapshots
        if not each["in_progress"] and not str(each["path"]).endswith(PARTIAL)
    ]
    chosen: list[Mapping[str, Any]] = []
    for guest in dict.fromkeys(each["guest"] for each in there):
        whole = [each for each in there if each["guest"] == guest and each["complete"]]
        chosen += _of_guest(whole, which, level, sample)
    return [
        {"guest": each["guest"], "name": each["name"]}
        for each in there
        if not each["complete"] or any(each is one for one in chosen)
    ]


def _of_guest(whole: Snapshots, which: str, level: str, sample: int) -> Snapshots:
    """Of the complete ones of a guest."""
    if which == "newest":
        return [max(whole, key=lambda each: str(each["created"]))] if whole else []
    if which == "sample":
        return random.sample(list(whole), min(sample, len(whole)))
    if which == "unverified":
        now = datetime.now(timezone.utc)
        return [each for each in whole if standing(each["verdicts"], level, None, now) is None]
    return whole


class FilterModule:
    """What Ansible asks for filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {"to_check": to_check}
