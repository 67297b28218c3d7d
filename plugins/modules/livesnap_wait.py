#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: livesnap_wait
short_description: Waits until few enough snapshots or checks run that were begun side by side
version_added: 0.1.0
author:
  - The livesnap authors (@livesnap)
description:
  - Snapshots of several guests are made side by side by M(livesnap.qemu.livesnap) with C(async) and C(poll=0), and checked so by
    M(livesnap.qemu.livesnap_verify). This waits on the hypervisor until at most O(most) of them still run, whichever those are, and
    brings the results of the others.
  - Where M(ansible.builtin.async_status) waits for one, a slow guest would hold up those that are begun after it.
options:
  jobs:
    description: What was begun.
    type: list
    elements: dict
    required: true
    suboptions:
      guest:
        description: The guest, or whatever else it is known by, which comes back with the result.
        type: str
        required: true
      ansible_job_id:
        description: As M(livesnap.qemu.livesnap) returned it.
        type: str
        required: true
      results_file:
        description: As M(livesnap.qemu.livesnap) returned it.
        type: path
        required: true
  most:
    description: How many may still run at the end.
    type: int
    default: 0
  seconds:
    description: After so many it gives up, and RV(ended) is empty. Repeat it then, with C(until).
    type: int
    default: 30
extends_documentation_fragment:
  - livesnap.qemu.attributes
attributes:
  check_mode:
    support: none
  diff_mode:
    support: none
seealso:
  - module: livesnap.qemu.livesnap
"""

EXAMPLES = r"""
- name: Begin two snapshots side by side
  livesnap.qemu.livesnap:
    guest: "{{ item }}"
    name: before-upgrade
    qmp_socket: "/run/guests/{{ item }}/qmp.sock"
  async: 3600
  poll: 0
  register: begun
  loop: [web1, db1]

- name: Wait for both, for an hour at most
  livesnap.qemu.livesnap_wait:
    jobs:
      - guest: web1
        ansible_job_id: "{{ begun.results[0].ansible_job_id }}"
        results_file: "{{ begun.results[0].results_file }}"
      - guest: db1
        ansible_job_id: "{{ begun.results[1].ansible_job_id }}"
        results_file: "{{ begun.results[1].results_file }}"
  register: waited
  until: waited.ended | length > 0
  retries: 120
  delay: 0
"""

RETURN = r"""
ended:
  description: Those of O(jobs) that have ended, each with its result, of success or failure. Whether any of them changed something is
    RV(ignore:changed).
  returned: always
  type: list
  elements: dict
  contains:
    guest:
      description: As given.
      type: str
      sample: web1
    ansible_job_id:
      description: As given.
      type: str
      sample: j123456.4711
    results_file:
      description: As given. The file is gone.
      type: str
      sample: /root/.ansible_async/j123456.4711
    result:
      description: What M(livesnap.qemu.livesnap) returned.
      type: dict
      sample: {"changed": true, "snapshot": {"name": "before-upgrade"}}
running:
  description: Those that still run.
  returned: always
  type: list
  elements: dict
  sample: []
"""

from typing import NoReturn

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _deps
from ..module_utils._errors import LivesnapError
from ..module_utils._jobs import wait
from ..module_utils._options import argument_spec


def main() -> NoReturn:
    """Waits, and hands on what others have returned."""
    module = AnsibleModule(argument_spec=argument_spec("livesnap_wait"))
    _deps.ensure(module)
    params = module.params
    try:
        ended, running = wait(params["jobs"], params["most"], params["seconds"])
    except LivesnapError as error:
        module.fail_json(msg=str(error), **error.result)
    for job in ended:
        for warning in job["result"].pop("warnings", []):
            module.warn(f"{job['guest']}: {warning}")
    changed = any(job["result"].get("changed") for job in ended)
    module.exit_json(changed=changed, ended=ended, running=running)


if __name__ == "__main__":
    main()
