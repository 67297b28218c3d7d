# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """How disks are captured."""

    DOCUMENTATION = r"""
options:
  disk_scheme:
    description:
      - How disks are captured that O(disks) does not say it of. All disks of a snapshot are of the same instant, whichever
        schemes they are captured by.
      - V(backup) copies each disk into the store while the guest runs on, and leaves the disk's own chain as it is. Of a disk that an
        earlier snapshot has a copy of it copies only what was written since.
      - V(reflink) clones image files while the guest stands still, in next to no time. Image and store have to be on the same
        XFS or btrfs, and the image must be raw or qcow2, without a backing file. The clone takes no room at first, and as
        much as the guest overwrites later.
      - V(command) has O(disk_commands) make a copy, for storage that can do this itself, such as LVM, ZFS or Ceph. The copy lies
        outside of the store.
      - V(internal) makes a snapshot inside the guest's own qcow2 image. It takes no room at first, is copied out for a clone, and
        goes with the image. A restore in place replaces the image, and so is refused unless it is forced.
      - V(auto) is V(backup).
    type: str
    choices: [auto, backup, command, internal, reflink]
    default: auto
  disks:
    description:
      - What is done with which disk. The first entry that matches wins.
      - Without it every writable disk is part of the snapshot.
    type: list
    elements: dict
    suboptions:
      match:
        description: Device id, node name, target or serial of a disk.
        type: str
        required: true
      scheme:
        description: As O(disk_scheme). V(none) leaves the disk out.
        type: str
        choices: [auto, backup, command, internal, reflink, none]
        default: auto
  disk_commands:
    description:
      - Commands of yours for disks that are captured by scheme V(command). C(/bin/sh) runs them on the hypervisor, as root. Environment
        variables such as C(LIVESNAP_SOURCE) say for which disk. What is expected of them, all variables, and examples are in
        C(docs/commands.md).
      - O(disk_commands.remove) and O(disk_commands.restore) are kept with the snapshot.
    type: dict
    suboptions:
      create:
        description: Makes a copy of the disk as it is. The guest stands still meanwhile.
        type: str
        required: true
      remove:
        description: Removes the copy, whole or half made, and succeeds where there is none.
        type: str
        required: true
      restore:
        description: Writes the copy into the file that C(LIVESNAP_TARGET) names.
        type: str
        required: true
      limit:
        description: Seconds that O(disk_commands.create) may take. It has to be less than O(deadline).
        type: int
        default: 5
"""
