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
options:
  guest:
    description: Only what belongs to this guest.
    type: str
  state:
    description: The state to reach.
    type: str
    choices: [recovered]
    default: recovered
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
"""

RETURN = r"""
recovered:
  description: What was put right, or would be in check mode. Counts as a change.
  returned: always
  type: list
  elements: str
  sample: ["removed the unfinished snapshot 'hourly-20261123T0100Z' of guest 'web1'"]
actions:
  description: As RV(recovered).
  returned: always
  type: list
  elements: str
  sample: ["removed the unfinished snapshot 'hourly-20261123T0100Z' of guest 'web1'"]
"""

from typing import NoReturn

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _deps
from ..module_utils._changes import Changes
from ..module_utils._errors import LivesnapError
from ..module_utils._options import argument_spec
from ..module_utils._recover import plan_recovery, recover


def main() -> NoReturn:
    """Lists what was left behind in check mode, else puts it right."""
    module = AnsibleModule(
        argument_spec=argument_spec("livesnap_recover"), supports_check_mode=True
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
    except LivesnapError as error:
        module.fail_json(msg=str(error), **error.result)
    module.exit_json(**{**changes.result(), "actions": changes.recovered})


if __name__ == "__main__":
    main()
