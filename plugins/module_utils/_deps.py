# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Third-party packages behind one guard, and the move to the interpreter that has them.

Role host makes a virtual environment on each hypervisor; a module that was started under another
interpreter and lacks a package moves there by itself. Nobody has to set ansible_python_interpreter.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from typing import Any

#: Made by role host.
VENV_PYTHON = "/usr/local/lib/livesnap/venv/bin/python"

#: What is imported -> what pip calls it.
PACKAGES = {"qemu.qmp": "qemu.qmp", "jmespath": "jmespath"}
#: The distribution's, of the hypervisor's own libvirt: asked for only where a guest is libvirt's.
LIBVIRT_HINT = "install python3-libvirt on the hypervisor, and run playbooks/host.yml"

qmp_package: Any = None
jmespath: Any = None
libvirt: Any = None
libvirt_qemu: Any = None
_failures: dict[str, str] = {}

try:
    qmp_package = importlib.import_module("qemu.qmp")
except ImportError:
    _failures["qemu.qmp"] = traceback.format_exc()
else:
    # It reports each failed connection as an error on stderr; ours are exceptions.
    logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())
    logging.getLogger("qemu.qmp").propagate = False

try:
    jmespath = importlib.import_module("jmespath")
except ImportError:
    _failures["jmespath"] = traceback.format_exc()

try:
    libvirt = importlib.import_module("libvirt")
    libvirt_qemu = importlib.import_module("libvirt_qemu")
except ImportError:
    libvirt = libvirt_qemu = None


def missing(*names: str) -> list[str]:
    """Those of the packages (all of them when none is named) that this interpreter lacks."""
    return [name for name in names or tuple(PACKAGES) if name in _failures]


def ensure(module: Any, *names: str, libvirt_too: bool = False) -> None:
    """Return when the packages are there; else respawn the module under VENV_PYTHON, or fail_json.

    Call it right after the AnsibleModule was made. On the way to VENV_PYTHON it does not return.
    With `libvirt_too` a lack of libvirt is a reason to move there, but none to fail: who needs it
    says so.
    """
    lacking = missing(*names)
    if not lacking and (libvirt is not None or not libvirt_too):
        return
    from ansible.module_utils.basic import missing_required_lib
    from ansible.module_utils.common.respawn import has_respawned, respawn_module

    if not has_respawned() and os.access(VENV_PYTHON, os.X_OK) and sys.executable != VENV_PYTHON:
        respawn_module(VENV_PYTHON)
    if not lacking:
        return
    module.fail_json(
        msg="; ".join(missing_required_lib(PACKAGES[name]) for name in lacking)
        + f"; run playbooks/host.yml, which prepares this hypervisor with '{VENV_PYTHON}'",
        exception=_failures[lacking[0]],
    )
