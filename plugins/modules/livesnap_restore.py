#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: livesnap_restore
short_description: Takes a guest back to one of its snapshots, in place
version_added: 0.1.0
author:
  - The livesnap authors (@livesnap)
description:
  - The guest goes back to what it was at the instant of a snapshot, its disks and its RAM, and goes on from there.
  - Everything that can be known is checked before anything is touched, and new images are made beside the old ones while the
    guest runs. Then it stands still until it is back.
  - A snapshot of the present is taken first, named C(before-SNAPSHOT-TIME). It is an ordinary snapshot, and nothing removes it unasked.
  - A guest that cannot be brought back from the snapshot is brought back from that of the present, with its old images, and
    goes on where it stood.
  - There is no state in which a guest is at a snapshot, so this always changes something.
options:
  snapshot:
    description: Name of the snapshot. It needs RAM. A guest that was paused then is paused afterwards.
    type: str
    required: true
  qmp_socket:
    description:
      - The guest's QMP socket on the hypervisor. Its QEMU is told to quit, and started again with its own command line.
      - Without it the guest is the libvirt domain of the name or UUID O(guest).
    type: path
  agent_socket:
    description: The socket of the guest's agent on the hypervisor, where a O(qmp_socket) is given.
    type: path
  uri:
    description: The libvirt of this hypervisor that has the guest, where no O(qmp_socket) is given.
    type: str
    default: qemu:///system
  keep_current:
    description:
      - Whether a snapshot of the present is taken first.
      - Without it nothing is left of the present, and what fails after the guest was ended makes it start from power-on. A
        guest that does not run can only be restored without it.
    type: bool
    default: true
  force:
    description:
      - Go back although something would be lost that no snapshot of livesnap has. That is snapshots inside an image that is replaced,
        and the fit of a writable disk that the snapshot left out, which stays as it is now.
    type: bool
    default: false
  lock_timeout:
    description: Seconds to wait for another run with the same guest.
    type: int
    default: 60
extends_documentation_fragment:
  - livesnap.qemu.attributes
  - livesnap.qemu.attributes.helper
  - livesnap.qemu.store
  - livesnap.qemu.store.guest
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: livesnap.qemu.livesnap
  - module: livesnap.qemu.livesnap_clone
  - module: livesnap.qemu.livesnap_recover
"""

EXAMPLES = r"""
- name: The upgrade was a mistake
  livesnap.qemu.livesnap_restore:
    guest: web1
    snapshot: before-upgrade
    qmp_socket: /run/guests/web1/qmp.sock
    agent_socket: /run/guests/web1/agent.sock

- name: Only see whether it could go back further, and what that would do
  livesnap.qemu.livesnap_restore:
    guest: web1
    snapshot: month-end
    qmp_socket: /run/guests/web1/qmp.sock
    agent_socket: /run/guests/web1/agent.sock
  check_mode: true
"""

RETURN = r"""
snapshot:
  description: What the guest was taken back to, as M(livesnap.qemu.livesnap) returns it.
  returned: success
  type: dict
  sample: {"guest": "web1", "name": "before-upgrade", "created": "2026-11-23T01:00:07.123456Z"}
kept:
  description: Name of the snapshot of the present. Null without O(keep_current).
  returned: always
  type: str
  sample: before-before-upgrade-20261123T091500Z
pid:
  description: Process id of the guest's QEMU. In check mode that of the one that would be ended, null where it is off.
  returned: success
  type: int
  sample: 4711
running:
  description: Whether its processors run.
  returned: success
  type: bool
  sample: true
actions:
  description: What was done, or would be done in check mode, in order.
  returned: success
  type: list
  elements: str
  sample: ["took snapshot 'before-before-upgrade-20261123T091500Z' of guest 'web1'", "took guest 'web1' back to snapshot 'before-upgrade'"]
recovered:
  description: What an earlier run had left behind and was put right.
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
from ..module_utils._restore.plan import RestoreRequest
from ..module_utils._restore.restore import plan_restore, restore


def main() -> NoReturn:
    """Arguments, plan, stop here in check mode, apply, describe."""
    module = AnsibleModule(
        argument_spec=argument_spec("livesnap_restore"), supports_check_mode=True
    )
    _deps.ensure(module, libvirt_too=module.params["qmp_socket"] is None)
    try:
        request = RestoreRequest.of(module.params)
        result = plan_restore(request) if module.check_mode else restore(request)
    except LivesnapError as error:
        module.fail_json(msg=str(error), **{"kept": None, "recovered": [], **error.result})
    for warning in result.pop("warnings", []):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
