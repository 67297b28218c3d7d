# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What all modules of the collection have in common."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in check_mode and return changed status prediction without modifying target.
  diff_mode:
    description: Will return details on what has changed, or may need changing in check_mode, in diff mode.
  async:
    description: Supports being used with the C(async) keyword.
    support: full
  platform:
    description: Target OS that can be operated against.
    support: full
    platforms: Linux
requirements:
  - Python 3.9 or newer on the hypervisor
  - qemu.qmp and jmespath there, which playbooks/host.yml of this collection installs
notes:
  - Runs as root on the hypervisor; use C(become).
  - The helper program is sent to the hypervisor when it is not there, and is not part of RV(ignore:changed).
"""

    HELPER = r"""
options:
  _livesnap_helper:
    description: Set by the action plugin of this collection, never by users. Where it has put the helper program.
    type: path
"""
