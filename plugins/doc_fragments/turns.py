# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """How many snapshots are made at once."""

    DOCUMENTATION = r"""
options:
  host_turns:
    description:
      - How many snapshots are made on this hypervisor at once, by whatever runs and controllers. One that comes in addition waits for its
        turn before it looks at its guest. 0 is no limit.
      - A number counts for those that are given the same; one that is given none does not wait, and is not counted.
    type: int
    default: 0
  store_turns:
    description: The same for all that write into O(store), from several hypervisors too, if the file system that they share has locks.
    type: int
    default: 0
  turn_timeout:
    description: Seconds to wait for a turn.
    type: int
    default: 3600
"""
