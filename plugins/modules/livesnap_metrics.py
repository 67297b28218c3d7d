#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: livesnap_metrics
short_description: Metrics of snapshots for Prometheus' node exporter
version_added: 0.1.0
author:
  - The livesnap authors (@livesnap)
description:
  - Writes what the store holds, and what came of a run, as a file for the textfile collector of Prometheus' node exporter. The file
    is replaced as a whole, by rename.
  - Of each guest it tells when its newest complete snapshot and the last check of one were, how long it was frozen, stood still and
    waited, how much is stored, and how often runs failed. The counters go on from the file that is there.
  - Roles P(livesnap.qemu.snapshot#role), P(livesnap.qemu.retention#role) and P(livesnap.qemu.consistency_check#role) run this at their
    end where C(livesnap_metrics) is given.
options:
  path:
    description: The file, in the folder that the node exporter reads, ending in C(.prom).
    type: path
    required: true
  outcomes:
    description: What came of this run. Without it only what the store holds is brought up to date.
    type: list
    elements: dict
    suboptions:
      guest:
        description: Name of the guest in the store.
        type: str
        required: true
      outcome:
        description: What came of the run for it.
        type: str
        choices: [taken, unchanged, skipped, failed]
        required: true
extends_documentation_fragment:
  - livesnap.qemu.attributes
  - livesnap.qemu.store
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: livesnap.qemu.livesnap_info
"""

EXAMPLES = r"""
- name: Show Prometheus what is in the store
  livesnap.qemu.livesnap_metrics:
    path: /var/lib/prometheus/node-exporter/livesnap.prom
"""

RETURN = r"""
metrics:
  description: The content of the file.
  returned: always
  type: str
  sample: |
    # HELP livesnap_last_snapshot_timestamp_seconds The instant of the newest complete snapshot.
    # TYPE livesnap_last_snapshot_timestamp_seconds gauge
    livesnap_last_snapshot_timestamp_seconds{guest="web1",uuid=""} 1795309203
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample: ["wrote metrics to '/var/lib/prometheus/node-exporter/livesnap.prom'"]
recovered:
  description: Always empty.
  returned: always
  type: list
  elements: str
  sample: []
"""

from typing import NoReturn

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _deps
from ..module_utils._errors import LivesnapError
from ..module_utils._metrics import write
from ..module_utils._options import argument_spec


def main() -> NoReturn:
    """Reads the store, and writes one file."""
    module = AnsibleModule(
        argument_spec=argument_spec("livesnap_metrics"), supports_check_mode=True
    )
    _deps.ensure(module)
    params = module.params
    try:
        result = write(params["store"], params["path"], params["outcomes"], not module.check_mode)
    except LivesnapError as error:
        module.fail_json(msg=str(error), **error.result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
