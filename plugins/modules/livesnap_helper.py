#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: livesnap_helper
short_description: The helper program on a hypervisor
version_added: 0.1.0
author:
  - The livesnap authors (@livesnap)
description:
  - Puts C(livesnap-helper) on a hypervisor and asks it what the kernel there can do, or removes every version of it.
  - It is not removed while a snapshot is being made, or a clone is there.
  - The other modules send it by themselves, as part of their payload. This one reports it as a change, and is what
    role P(livesnap.qemu.host#role) uses.
  - It is taken from the directory that the variable C(livesnap_helper_dir) names on the controller, from
    C(/usr/share/livesnap/ARCHITECTURE), from C($XDG_CACHE_HOME/livesnap), or else built there.
options:
  state:
    description: Whether the helper is there.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - livesnap.qemu.attributes
  - livesnap.qemu.attributes.helper
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
seealso:
  - module: livesnap.qemu.livesnap
"""

EXAMPLES = r"""
- name: Put the helper in its place
  livesnap.qemu.livesnap_helper:
  register: helper
"""

RETURN = r"""
helper:
  description: Where it is, or in check mode would be. Null when absent.
  returned: always
  type: str
  sample: /usr/local/libexec/livesnap/0123456789abcdef/livesnap-helper
version:
  description: What it calls itself. Null where it is not there.
  returned: always
  type: str
  sample: livesnap-helper 0.1.0 (protocol 1, x86_64)
features:
  description: What C(livesnap-helper features) says of this hypervisor. Empty where it is not there.
  returned: always
  type: dict
  sample: {"kernel": "6.1.0", "arch": "x86_64", "pagemap_scan": false}
"""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._options import argument_spec
from ..module_utils._store import rundir

ROOT = Path("/usr/local/libexec/livesnap")


def users() -> list[str]:
    """Who needs the helper, or the folder of what runs, at this moment."""
    found = []
    for run in rundir.all_run_dirs():
        owner = run.read("owner.json") or {}
        if rundir.is_process(owner):
            found.append(
                f"snapshot '{owner.get('snapshot')}' of guest '{owner.get('guest')}' is being made"
            )
    for folder in sorted((rundir.root() / "clone").glob("*/*")):
        found.append(f"clone '{folder.name}' of guest '{folder.parent.name}' is there")
    return found


def remove(module: AnsibleModule) -> NoReturn:
    """Every version goes, unless something that was made with it is still there."""
    there = ROOT.exists()
    busy = users()
    if busy:
        module.fail_json(
            msg=f"The helper stays: {'; '.join(busy)}. Wait for snapshots, and remove clones, first"
        )
    if there and not module.check_mode:
        try:
            shutil.rmtree(ROOT)
            with contextlib.suppress(OSError):
                # Debian has no such folder until something is put there.
                ROOT.parent.rmdir()
        except OSError as error:
            module.fail_json(msg=f"'{ROOT}' could not be removed: {error}")
    module.exit_json(changed=there, helper=None, version=None, features={})


def describe(module: AnsibleModule, path: str) -> NoReturn:
    """The action plugin has put it there; this says what it can do."""
    found: dict[str, Any] = {"helper": path, "version": None, "features": {}}
    if Path(path).exists():
        _rc, version, _err = module.run_command([path, "--version"], check_rc=True)
        found["version"] = version.strip()
        rc, out, err = module.run_command([path, "features"])
        if rc != 0:
            module.fail_json(
                msg=f"'{path} features' failed on this hypervisor: {err.strip() or out.strip()}",
                **found,
            )
        found["features"] = json.loads(out)
    module.exit_json(changed=False, **found)


def main() -> NoReturn:
    """Arguments, and one of the two."""
    module = AnsibleModule(argument_spec=argument_spec("livesnap_helper"), supports_check_mode=True)
    if module.params["state"] == "absent":
        remove(module)
    if not module.params["_livesnap_helper"]:
        module.fail_json(
            msg="This module was run without its action plugin; use it as livesnap.qemu.livesnap_helper"
        )
    describe(module, module.params["_livesnap_helper"])


if __name__ == "__main__":
    main()
