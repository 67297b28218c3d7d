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
      - V(overlay) lays a new qcow2 image upon the disk's image, beside it, and copies nothing. The guest writes to the new one from
        then on, and B(has to be started with it from then on). libvirt's domains are, by libvirt; whoever starts a guest that is
        reached by its QMP socket has to see to it. What covers a snapshot's image is merged into it when the snapshot is removed,
        while the guest runs on; of a domain also while it is off. For disks that are image files.
      - V(auto) is V(overlay) for a disk of a libvirt domain that it can capture, and that stands on less than O(max_chain) of them.
        It is V(backup) for every other disk.
    type: str
    choices: [auto, backup, command, internal, overlay, reflink]
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
        choices: [auto, backup, command, internal, overlay, reflink, none]
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
  max_chain:
    description:
      - How many copies of a disk by scheme V(backup) may stand one on another, each with what was written since the one before.
        The next one after that many is a full copy; with 0 each one is.
      - A dirty bitmap in the guest's QEMU counts what is written. A qcow2 image keeps it when QEMU ends; of a raw one
        the first copy after that is full. So is one where anything is in doubt, and RV(snapshot.disks[].full_because) says why.
      - A snapshot that others stand on can be removed like any other. While a disk has the bitmap, QEMU refuses C(loadvm).
      - By scheme V(overlay), how many snapshots a disk may stand on; O(when_chain_full) says what becomes of the next one after that
        many. With 0 there is no such number.
    type: int
    default: 16
  when_chain_full:
    description:
      - What becomes of a snapshot by scheme V(overlay) when a disk stands on O(max_chain) of them. With V(merge) it is taken, then the oldest
        one that is not pinned is B(removed), and what covers its image is merged into that.
    type: str
    choices: [refuse, merge]
    default: refuse
  foreign_bitmaps:
    description:
      - What becomes of a disk by scheme V(overlay) whose image keeps dirty bitmaps that are not of this collection. They do not
        count what is written to another image, so who relies on them would miss it. V(ignore) goes on all the same.
    type: str
    choices: [refuse, ignore]
    default: refuse
  disk_bandwidth:
    description:
      - Bytes a second that are copied by scheme V(backup) at most, a size such as V(50M). All disks of the guest share it, in equal
        parts. 0 is no limit.
      - What the guest itself overwrites meanwhile is copied before that, however much it is.
    type: bytes
    default: 0
  disk_compression:
    description:
      - How copies by scheme V(backup) are compressed. Without it they are as sparse as the disk. Each first write of the guest to 64 KiB
        of the disk waits for its compression as long as the copy lasts.
      - Copies by libvirt, of a domain's disks, can't be compressed.
    type: str
    choices: [none, zlib, zstd]
    default: none
"""
