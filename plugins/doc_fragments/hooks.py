# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What is run before and after a snapshot."""

    DOCUMENTATION = r"""
options:
  before:
    description:
      - Commands that are run, in this order, right before the guest is frozen and stopped, when everything else is ready.
        One that fails fails the snapshot. A guest that is off has none run.
      - A command on the hypervisor finds C(LIVESNAP_GUEST) and C(LIVESNAP_SNAPSHOT) in its environment.
    type: list
    elements: dict
    suboptions:
      command:
        description: The program, by its whole path, and its arguments. There is no shell.
        type: list
        elements: str
        required: true
      where:
        description: Whether it runs on the hypervisor, or in the guest by its agent (guest-exec).
        type: str
        choices: [host, guest]
        default: host
      timeout:
        description:
          - Seconds that it may take. On the hypervisor it is ended then, with all that it has started. In a guest it may run on, because
            the agent can't end it.
        type: int
        default: 30
  after:
    description:
      - Commands that are run right after the guest was thawed, while RAM and disks are still being copied, or when what O(before)
        has begun comes to nothing. One that fails is a warning.
      - If everything dies in between, the guest's next run or M(livesnap.qemu.livesnap_recover) runs them, so that they
        may run twice.
    type: list
    elements: dict
    suboptions:
      command:
        description: As in O(before).
        type: list
        elements: str
        required: true
      where:
        description: As in O(before).
        type: str
        choices: [host, guest]
        default: host
      timeout:
        description: As in O(before).
        type: int
        default: 30
"""
