#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: livesnap_clone
short_description: A running copy of a guest, from one of its snapshots
version_added: 0.1.0
author:
  - The livesnap authors (@livesnap)
description:
  - Starts a second QEMU from a snapshot, beside the guest that it is of, as the same user and with the same sandbox options.
  - It writes to overlays of its own. The snapshot stays as it is, and so does the guest.
  - It has sockets of its own, and no network unless asked for.
  - A guest of libvirt's becomes a second domain of the same libvirt, called O(guest).O(name), with a UUID and MAC addresses of its own.
    It is transient, so libvirt knows nothing of it any more when it has ended. It has the original's ports as pseudo terminals, and its
    display listens nowhere; C(virsh console) and C(virt-viewer --attach) get to them.
options:
  snapshot:
    description: Name of the snapshot. Needed for V(present).
    type: str
  name:
    description: Name of the clone. There is one clone of a name for each guest.
    type: str
    required: true
  state:
    description: V(absent) ends the clone and leaves nothing of it.
    type: str
    choices: [present, absent]
    default: present
  network:
    description:
      - Whether the clone keeps the guest's network cards connected. It then has the guest's addresses as well.
      - A libvirt domain's cards get new MAC addresses, which the system in it takes when it next starts their drivers; until then
        it goes on with the guest's. Without network their cables are pulled.
    type: bool
    default: false
  lazy:
    description:
      - Whether the clone runs at once, and gets what it uses of its RAM from the snapshot when it first uses it. An image that is not
        compressed is mapped by a QEMU of root's; otherwise C(livesnap-helper serve) brings what is asked for, and the rest behind that.
      - A clone that has not got all of it ends with that process.
      - libvirt reads all of it, from a file that is written to the store and removed again.
    type: bool
    default: true
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
"""

EXAMPLES = r"""
- name: Look at yesterday's state without touching the guest
  livesnap.qemu.livesnap_clone:
    guest: web1
    snapshot: before-upgrade
    name: look

- name: Away with it
  livesnap.qemu.livesnap_clone:
    guest: web1
    name: look
    state: absent

- name: The same of a libvirt domain, for a look at 'virsh console db1.look'
  livesnap.qemu.livesnap_clone:
    guest: db1
    snapshot: before-upgrade
    name: look
"""

RETURN = r"""
pid:
  description: Process id of the clone on the hypervisor. Null in check mode, and when absent.
  returned: always
  type: int
  sample: 4711
domain:
  description: The name of its libvirt domain. Null where the guest is not libvirt's, and when absent.
  returned: always
  type: str
  sample: db1.look
uuid:
  description: The UUID of its libvirt domain. Null in check mode, where the guest is not libvirt's, and when absent.
  returned: always
  type: str
  sample: 6fdf9a0b-2b4b-4b0c-8f1f-2f6f1d1f0a52
qmp_socket:
  description: Its QMP socket. Null where libvirt holds it, and when absent.
  returned: always
  type: str
  sample: /run/livesnap/clone/web1/look/qmp.sock
agent_socket:
  description:
    - The socket of its agent. Null where the guest has none, and when absent.
    - libvirt holds that of a domain (C(virsh qemu-agent-command)), and makes it up when the domain is started. So it is null in check mode.
  returned: always
  type: str
  sample: /run/livesnap/clone/web1/look/agent.sock
overlays:
  description: The images that it writes to.
  returned: always
  type: list
  elements: str
  sample: [/var/lib/livesnap/web1/.clones/look/disk0.qcow2]
running:
  description: Whether its processors run.
  returned: always
  type: bool
  sample: true
consoles:
  description: The sockets of its serial consoles. Of a libvirt domain the pseudo terminals, which it has when it runs.
  returned: always
  type: list
  elements: str
  sample: [/run/livesnap/clone/web1/look/serial0.sock]
lazy:
  description: Whether it runs before all of its RAM is read from the snapshot.
  returned: always
  type: bool
  sample: false
actions:
  description: What was done, or would be done in check mode, in order.
  returned: always
  type: list
  elements: str
  sample: ["started clone 'look' of guest 'web1' from snapshot 'before-upgrade'"]
"""

from typing import NoReturn

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _deps
from ..module_utils._clone.clone import CloneRequest, create_clone, plan_clone, remove_clone
from ..module_utils._errors import LivesnapError
from ..module_utils._options import argument_spec


def main() -> NoReturn:
    """Arguments, plan, stop here in check mode, apply, describe."""
    module = AnsibleModule(
        argument_spec=argument_spec("livesnap_clone"),
        required_if=[("state", "present", ("snapshot",))],
        supports_check_mode=True,
    )
    _deps.ensure(module, libvirt_too=True)
    given = module.params
    request = CloneRequest(
        store=given["store"],
        guest=given["guest"],
        name=given["name"],
        snapshot=given["snapshot"] or "",
        network=given["network"],
        lazy=given["lazy"],
        helper=given["_livesnap_helper"] or "",
    )
    try:
        if given["state"] == "absent":
            result = remove_clone(request, check_mode=module.check_mode)
        elif module.check_mode:
            result = plan_clone(request)
        else:
            result = create_clone(request)
    except LivesnapError as error:
        module.fail_json(msg=str(error), **error.result)
    for warning in result.pop("warnings", []):
        module.warn(warning)
    states = ["absent", "present"] if given["state"] == "present" else ["present", "absent"]
    before, after = states if result["changed"] else (given["state"], given["state"])
    module.exit_json(**result, diff={"before": {"state": before}, "after": {"state": after}})


if __name__ == "__main__":
    main()
