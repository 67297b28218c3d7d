# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """How modules are told where a guest is."""

    DOCUMENTATION = r"""
options:
  qmp_socket:
    description:
      - The guest's QMP socket on the hypervisor.
      - Without it the guest is the libvirt domain of the name or UUID O(guest).
    type: path
  agent_socket:
    description:
      - The socket of the guest's agent on the hypervisor. Without it file systems of a guest with a O(qmp_socket) are
        not frozen. libvirt speaks to the agents of its domains itself.
    type: path
  uri:
    description: The libvirt of this hypervisor that has the guest, where no O(qmp_socket) is given.
    type: str
    default: qemu:///system
"""
