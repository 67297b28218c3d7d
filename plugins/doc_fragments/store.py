# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """How modules are told where snapshots lie."""

    DOCUMENTATION = r"""
options:
  store:
    description: Directory of the snapshots on the hypervisor.
    type: path
    default: /var/lib/livesnap
"""

    GUEST = r"""
options:
  guest:
    description: Name of the guest in the store.
    type: str
    required: true
"""
