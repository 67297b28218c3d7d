#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: livesnap_prune
short_description: Removes the snapshots that no rule of a policy keeps
version_added: 0.1.0
author:
  - The livesnap authors (@livesnap)
description:
  - Decides about each snapshot of a store, or of a guest, and removes those that nothing keeps. Each decision has its reasons.
  - The rules are those of C(restic forget) 0.18. A snapshot is kept if any of them keeps it. Of each period a rule keeps the
    newest snapshot; while it has some left to keep, it keeps the oldest of all as well.
  - Whatever the policy says, it keeps what is pinned, what a kept snapshot or a running clone stands on, the newest complete and the
    newest verified one of each group (but see O(allow_empty)), and what is dated in the future.
  - What is in the making, or has no valid manifest of this collection, is never touched and uses up no slot.
  - A snapshot that can't be removed does not keep others from it. The task then fails at its end, and says which it was. What an
    interrupted run has left is finished by the next one.
options:
  guest:
    description: Only snapshots of this guest.
    type: str
  keep_last:
    description: How many of the newest snapshots are kept. V(-1) is all, also in the options that follow; V(0) is none.
    type: int
    default: 0
  keep_hourly:
    description: For how many of the newest hours that have a snapshot one is kept.
    type: int
    default: 0
  keep_daily:
    description: For how many of the newest days that have a snapshot one is kept.
    type: int
    default: 0
  keep_weekly:
    description: For how many of the newest weeks (ISO 8601, from Monday on) that have a snapshot one is kept.
    type: int
    default: 0
  keep_monthly:
    description: For how many of the newest months that have a snapshot one is kept.
    type: int
    default: 0
  keep_yearly:
    description: For how many of the newest years that have a snapshot one is kept.
    type: int
    default: 0
  keep_within:
    description:
      - All snapshots that are less than this older than the newest one of their group are kept. A number of years, months, days and
        hours, such as V(1y5m7d2h) or V(2d).
    type: str
  keep_within_hourly:
    description: As O(keep_within), but one of each hour.
    type: str
  keep_within_daily:
    description: As O(keep_within), but one of each day.
    type: str
  keep_within_weekly:
    description: As O(keep_within), but one of each week.
    type: str
  keep_within_monthly:
    description: As O(keep_within), but one of each month.
    type: str
  keep_within_yearly:
    description: As O(keep_within), but one of each year.
    type: str
  keep_labels:
    description:
      - Snapshots with one of these labels are kept. An entry that names several, with commas between them, is for those that have them
        all, and an empty one for those without labels.
    type: list
    elements: str
  keep_when:
    description:
      - A JMESPath expression over a snapshot as M(livesnap.qemu.livesnap_info) returns it. Those for which it is true are kept.
    type: str
  group_by:
    description:
      - Rules are applied to the snapshots of each V(guest) by themselves; or to those of each V(schedule) of a guest, or of each
        set of labels (V(label)).
    type: str
    choices: [guest, schedule, label]
    default: guest
  timezone:
    description: The time zone in which hours, days, weeks, months and years begin, such as V(Europe/Berlin).
    type: str
    default: UTC
  allow_empty:
    description: Whether the newest complete and the newest verified snapshot of a group may be removed, if no rule keeps them.
    type: bool
    default: false
  max_remove:
    description: Fail and remove nothing, if more snapshots than this would be removed. V(0) is no limit.
    type: int
    default: 0
  gone:
    description:
      - What is done with the snapshots of a guest that is not here any more. V(keep) keeps them all. V(prune) applies the policy to
        them as to others.
      - A guest is gone if libvirt does not know its domain; without libvirt, if no process has its command line and none of its disk
        images is there. That is judged by its newest snapshot. One of which nobody can tell counts as gone. See RV(gone).
    type: str
    choices: [keep, prune]
    default: keep
extends_documentation_fragment:
  - livesnap.qemu.attributes
  - livesnap.qemu.attributes.helper
  - livesnap.qemu.store
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: livesnap.qemu.livesnap
  - module: livesnap.qemu.livesnap_info
"""

EXAMPLES = r"""
- name: See what a policy would remove
  livesnap.qemu.livesnap_prune:
    keep_hourly: 24
    keep_daily: 7
    keep_weekly: 5
    keep_monthly: 12
  check_mode: true
  diff: true

- name: Prune a guest, but not more than expected
  livesnap.qemu.livesnap_prune:
    guest: web1
    keep_within: 2d
    keep_within_daily: 14d
    keep_labels: [audit]
    keep_when: consistency.level == 'application'
    timezone: Europe/Berlin
    max_remove: 50
"""

RETURN = r"""
decisions:
  description: A decision about each snapshot, the newest of each guest first.
  returned: always
  type: list
  elements: dict
  contains:
    guest:
      description: The guest's name in the store.
      type: str
      sample: web1
    name:
      description: Name of the snapshot.
      type: str
      sample: hourly-20261123T0100Z
    id:
      description: Its UUID. Null where that is not known.
      type: str
      sample: 4a6f1f5e-52c1-4f3b-8f2a-0f8a5d3c9a10
    created:
      description: Its instant, RFC 3339 in UTC. Null where that is not known.
      type: str
      sample: "2026-11-23T01:00:03.417000Z"
    decision:
      description: V(keep), V(remove), or V(leave) for what was not judged.
      type: str
      sample: keep
    reasons:
      description: Why.
      type: list
      elements: str
      sample: ["keep_daily", "the newest verified one"]
    freed_bytes:
      description: What its removal frees, in bytes; of disks of scheme V(overlay), at most.
      type: int
      sample: 0
    removed:
      description: Whether it was removed; in check mode, whether it would be.
      type: bool
      sample: false
    error:
      description: Why it could not be removed. Null otherwise.
      type: str
      sample: null
table:
  description: The decisions as lines of text.
  returned: always
  type: list
  elements: str
  sample:
    - "SNAPSHOT                    CREATED               DECISION  FREED    REASONS"
    - "web1/hourly-20261123T0100Z  2026-11-23T01:00:03Z  remove    412 MiB  no rule keeps it"
freed_bytes:
  description: What all removals together have freed, or would free in check mode, in bytes.
  returned: always
  type: int
  sample: 432013312
gone:
  description: The guests that are not here any more, or of which nobody can tell, and what speaks for it.
  returned: always
  type: list
  elements: dict
  contains:
    guest:
      description: The guest's name in the store.
      type: str
      sample: old1
    why:
      description: What was looked for in vain.
      type: str
      sample: libvirt at 'qemu:///system' has no domain '9f86d081-884c-4d65-9a2f-eaa0c55ad015'
actions:
  description: What was removed, or would be removed in check mode, in order.
  returned: always
  type: list
  elements: str
  sample: ["removed snapshot 'hourly-20261123T0100Z' of guest 'web1'"]
recovered:
  description: What an earlier run had left behind and this one put right. Counts as a change.
  returned: always
  type: list
  elements: str
  sample: []
"""

from typing import NoReturn

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _deps
from ..module_utils._errors import LivesnapError
from ..module_utils._options import argument_spec
from ..module_utils._prune import PruneRequest, prune


def main() -> NoReturn:
    """Arguments, decisions, and without check mode the removals."""
    module = AnsibleModule(argument_spec=argument_spec("livesnap_prune"), supports_check_mode=True)
    _deps.ensure(module, libvirt_too=True)
    try:
        result = prune(PruneRequest.of(module.params), apply=not module.check_mode)
    except LivesnapError as error:
        module.fail_json(msg=str(error), **error.result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
