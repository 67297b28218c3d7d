#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: livesnap_recover
short_description: Puts right what a crash or a reboot left behind
version_added: 0.1.0
author:
  - The livesnap authors (@livesnap)
description:
  - Removes snapshots that were never completed, ends what was left of their processes, and sets guests free.
  - Snapshots that are in the making are left alone.
  - Each run of M(livesnap.qemu.livesnap) does this for its guest by itself.
  - Before a guest is left to itself, it can be rid of all that livesnap has in its images.
options:
  guest:
    description: Only what belongs to this guest. Required for O(state=flattened).
    type: str
  state:
    description:
      - The state to reach.
      - With V(flattened) the guest is also left on the images that it began with. All of its snapshots with a disk by scheme
        V(overlay) or V(internal) are B(removed), pinned ones too, as M(livesnap.qemu.livesnap) with O(livesnap.qemu.livesnap#module:state=absent) does,
        and so are dirty bitmaps of this collection. Other snapshots stay; the next one by scheme V(backup) is a full copy.
    type: str
    choices: [recovered, flattened]
    default: recovered
  qmp_socket:
    description:
      - The QMP socket of a guest that is to be flattened, and so has to run.
      - Without it the guest is the libvirt domain of the name or UUID O(guest).
    type: path
  uri:
    description: The libvirt of this hypervisor that has the guest, where no O(qmp_socket) is given.
    type: str
    default: qemu:///system
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
"""

EXAMPLES = r"""
- name: Put right what was left behind, whatever guest it is of
  livesnap.qemu.livesnap_recover:

- name: Only see what there is to do for one guest
  livesnap.qemu.livesnap_recover:
    guest: web1
  check_mode: true

- name: Leave a guest as if it had never been captured
  livesnap.qemu.livesnap_recover:
    guest: web1
    state: flattened
    qmp_socket: /run/guests/web1/qmp.sock
"""

RETURN = r"""
recovered:
  description: What was put right, or would be in check mode. Counts as a change.
  returned: always
  type: list
  elements: str
  sample: ["removed the unfinished snapshot 'hourly-20261123T0100Z' of guest 'web1'"]
actions:
  description: As RV(recovered), then what was removed for O(state=flattened).
  returned: always
  type: list
  elements: str
  sample: ["removed the unfinished snapshot 'hourly-20261123T0100Z' of guest 'web1'"]
"""

from typing import Any, Mapping, NoReturn

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _deps
from ..module_utils._changes import Changes
from ..module_utils._errors import LivesnapError
from ..module_utils._flatten import flatten
from ..module_utils._guest.address import Address, DomainAddress, SocketAddress
from ..module_utils._options import argument_spec
from ..module_utils._recover import plan_recovery, recover


def address(params: Mapping[str, Any]) -> Address:
    """How the guest is reached that is to be flattened."""
    if params["qmp_socket"]:
        return SocketAddress(params["qmp_socket"])
    return DomainAddress(params["uri"], params["guest"])


def main() -> NoReturn:
    """Lists what was left behind in check mode, else puts it right."""
    module = AnsibleModule(
        argument_spec=argument_spec("livesnap_recover"),
        required_if=[("state", "flattened", ("guest",))],
        supports_check_mode=True,
    )
    _deps.ensure(module, libvirt_too=True)
    changes = Changes()
    store, guest = module.params["store"], module.params["guest"]
    try:
        changes.recover(
            plan_recovery(store, guest)
            if module.check_mode
            else recover(store, guest, module.params["_livesnap_helper"] or "")
        )
        if module.params["state"] == "flattened":
            for done in flatten(store, guest, address(module.params), not module.check_mode):
                changes.add(done, done, "present", "absent")
    except LivesnapError as error:
        module.fail_json(msg=str(error), **{**_told(changes), **error.result})
    module.exit_json(**_told(changes))


def _told(changes: Changes) -> dict[str, Any]:
    found = changes.result()
    return {**found, "actions": found["recovered"] + found["actions"]}


if __name__ == "__main__":
    main()
