#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: livesnap_info
short_description: Which snapshots there are, and which are in the making
version_added: 0.1.0
author:
  - The livesnap authors (@livesnap)
description:
  - Lists the snapshots of a store, newest first, those in the making among them.
  - A snapshot whose manifest is damaged is listed with the reason in RV(snapshots[].problem), and the task goes on.
options:
  guest:
    description: Only snapshots of this guest.
    type: str
  query:
    description: A JMESPath expression over the list of snapshots.
    type: str
extends_documentation_fragment:
  - livesnap.qemu.attributes
  - livesnap.qemu.store
attributes:
  check_mode:
    support: full
  diff_mode:
    support: N/A
seealso:
  - module: livesnap.qemu.livesnap
"""

EXAMPLES = r"""
- name: List the snapshots of a guest
  livesnap.qemu.livesnap_info:
    guest: web1
  register: known

- name: Show the names of those that are pinned
  livesnap.qemu.livesnap_info:
    query: "[?pinned].[guest, name]"
"""

RETURN = r"""
snapshots:
  description:
    - The snapshots, newest first. Each is as RV(livesnap.qemu.livesnap#module:snapshot) describes.
  returned: always
  type: list
  elements: dict
  contains:
    in_progress:
      description: How far a snapshot in the making is. Null for one that is complete.
      type: dict
      contains:
        percent:
          description: How much of RAM and disks is there, in percent. 0 before the instant.
          type: float
          sample: 40.0
        owner:
          description: The process on the hypervisor that makes it, and since when.
          type: dict
          sample: {"pid": 4711, "since": "2026-11-23T01:00:02.100000Z"}
    verdicts:
      description:
        - What later checks of the snapshot came to, the newest last. Each is as RV(livesnap.qemu.livesnap_verify#module:verdict) describes.
      type: list
      elements: dict
      sample: [{"level": "structure", "result": "passed", "when": "2026-11-23T03:00:41.250000Z", "version": "0.1.0", "evidence": {}}]
    own_bytes:
      description:
        - What the snapshot takes for itself, in bytes. Its removal gives that back. Null while it is in the making.
        - Of a disk that scheme V(overlay) captured it is the smaller of the image that is the disk and the one above it, which is
          the most that merging the two can give back, but for the tables of an image. A disk of scheme V(internal) gives nothing
          back, as its image keeps its length. What scheme V(command) made is not counted, since only the operator's commands know it.
      type: int
      sample: 67190784
    shared_bytes:
      description: >-
        What the snapshot needs and others have as well, in bytes. Images that scheme V(reflink) cloned share their blocks with the
        guest's until the guest writes to these; then they become the snapshot's own. Of schemes V(overlay) and V(internal) it is what the
        guest's images take that the disk stands on. Null while it is in the making.
      type: int
      sample: 0
    problem:
      description: Why the snapshot can't be used. Null when it can.
      type: str
      sample: manifest.json does not match its checksum
  sample:
    - guest: web1
      name: hourly-20261123T0100Z
      in_progress: null
query_result:
  description: What O(query) came to.
  returned: when O(query) is given
  type: raw
  sample: [["web1", "month-end"]]
"""

from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _deps
from ..module_utils._errors import LivesnapError
from ..module_utils._options import argument_spec
from ..module_utils._query import search
from ..module_utils._store.listing import list_snapshots


def main() -> NoReturn:
    """Reads the store, and nothing else."""
    module = AnsibleModule(argument_spec=argument_spec("livesnap_info"), supports_check_mode=True)
    query = module.params["query"]
    _deps.ensure(module)
    result: dict[str, Any] = {"changed": False}
    try:
        result["snapshots"] = list_snapshots(module.params["store"], module.params["guest"])
        if query is not None:
            result["query_result"] = search("query", query, result["snapshots"], "the snapshots")
    except LivesnapError as error:
        module.fail_json(msg=str(error), **error.result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
