#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: livesnap_verify
short_description: Checks whether a snapshot works, and keeps the verdict with it
version_added: 0.1.0
author:
  - The livesnap authors (@livesnap)
description:
  - Checks a snapshot by a level, and all levels below it, and writes the verdict to its C(status.json), where
    M(livesnap.qemu.livesnap_info) shows it and M(livesnap.qemu.livesnap_prune) counts it.
  - The snapshot is only read, and the guest that it is of is not asked anything. What a V(drill) of O(level) needs is in the store's folder
    C(.clones) of the guest and in C(/run/livesnap), and gone afterwards, also if the check is killed.
  - A snapshot that has a good verdict of the level, or of a higher one, is not checked again; but see O(max_age).
  - Fails if the snapshot does not pass. RV(verdict) then says why. Without RV(verdict) it could not be checked, and nothing is known of it.
  - A check that is cut short leaves a note of the pieces that were good, from which the next one within a day goes on.
options:
  snapshot:
    description: Name of the snapshot.
    type: str
    required: true
  level:
    description:
      - V(checksum) reads every byte of RAM image, device state, disk images and manifest, and compares checksums. What is damaged is
        named by guest address, block and file offset, or by disk image and range of bytes.
      - V(structure) also asks whether this machine could bring the snapshot back (QEMU, machine type, CPU, firmware), whether the
        images are sound, stand on what they should and have the sizes of the disks (C(qemu-img check)), whether the device state parses and is of as many
        CPUs as the guest had, and whether the file systems on the disks are without errors (C(e2fsck), C(xfs_repair)).
      - V(memory) also looks into RAM. The processors of the guest, as they are in the device state, have to find one and the same Linux kernel by
        their page tables, if they run one; and O(probes) have to hold. It takes a second, and reads all of RAM for probes with a C(pattern).
      - V(drill) also brings it back. A clone without a network goes on from it, is thawed, has its clock set, and is asked through its
        agent; it runs O(commands), and then has to go on for two seconds. Then it is removed. The guest runs on and is not concerned.
    type: str
    choices: [checksum, structure, memory, drill]
    default: structure
  max_age:
    description:
      - Check again if the good verdict is older than this. A number of years, months, days and hours, such as V(30d), or V(0h) to check
        again in any case. Without it a good verdict holds for ever.
    type: str
  probes:
    description:
      - What you know of the guest's memory, for level V(memory) and above. The first that does not hold fails the check.
      - C(physical), C(virtual) or C(pattern) says where, and C(offset) how many bytes from there. Addresses are text, such as V(0x5e68000).
      - Bytes are given as ASCII, with C(\xNN) for any byte.
    type: list
    elements: dict
    suboptions:
      name:
        description: What it is called in the evidence.
        type: str
        required: true
      physical:
        description: A guest-physical address.
        type: str
      virtual:
        description: A virtual address, as the first processor of the guest sees it.
        type: str
      pattern:
        description: Bytes that are sought in all of RAM, 4 at least. The first place counts.
        type: str
      offset:
        description: Bytes from there to what is looked at.
        type: int
        default: 0
      length:
        description: How many bytes are looked at. Those of O(probes[].value), if that is given.
        type: int
        default: 8
      value:
        description: Bytes that have to be there.
        type: str
      disk:
        description: A disk of the snapshot, as C(disks[].match) of the snapshot calls it, on which the same has to be.
        type: str
      disk_offset:
        description: Where on that disk, in bytes.
        type: int
        default: 0
      most_apart:
        description: Taken as numbers, lowest byte first, what is in memory and what is on the disk may differ by so much.
        type: int
        default: 0
  commands:
    description:
      - What a V(drill) runs in the clone, one after the other, by the guest's agent (guest-exec). The first that does not do as
        expected fails the check.
    type: list
    elements: dict
    suboptions:
      argv:
        description: The program, with its whole path, and its arguments.
        type: list
        elements: str
        required: true
      code:
        description: The exit code that is expected.
        type: int
        default: 0
      stdout:
        description: A regular expression (Python's, over lines) that has to be found in what it prints.
        type: str
      timeout:
        description: Seconds that it may take.
        type: int
        default: 10
  drill_memory:
    description:
      - How much memory all drills of this hypervisor together may take, such as V(16G). Each counts with the RAM of its guest and 192 MiB.
        One that finds no room waits for others, O(lock_timeout) at most. V(0) is half of what is available.
    type: bytes
    default: 0
  drill_cpus:
    description:
      - How many processors the guests of all drills of this hypervisor together may have. One that has more than that waits until no other
        drill runs; others wait as for O(drill_memory). V(0) is as many as the hypervisor has.
    type: int
    default: 0
  drill_timeout:
    description: Seconds after which a drill is ended, and has failed.
    type: int
    default: 300
  lock_timeout:
    description: Seconds to wait for another check of the same snapshot, and for memory and processors of a drill.
    type: int
    default: 60
extends_documentation_fragment:
  - livesnap.qemu.attributes
  - livesnap.qemu.attributes.helper
  - livesnap.qemu.store
  - livesnap.qemu.store.guest
attributes:
  check_mode:
    support: full
    details: Says whether a check would be made, and makes none.
  diff_mode:
    support: full
seealso:
  - module: livesnap.qemu.livesnap_info
  - module: livesnap.qemu.livesnap_prune
"""

EXAMPLES = r"""
- name: Read every byte of a snapshot, and see whether this machine could bring it back
  livesnap.qemu.livesnap_verify:
    guest: web1
    snapshot: month-end

- name: See that RAM holds what is known of it
  livesnap.qemu.livesnap_verify:
    guest: web1
    snapshot: month-end
    level: memory
    probes:
      - name: kernel
        pattern: 'Linux version '

- name: See the newest one work
  livesnap.qemu.livesnap_verify:
    guest: web1
    snapshot: month-end
    level: drill
    commands:
      - argv: [/bin/sh, -c, 'cat /proc/uptime']
        stdout: '^[0-9]'
    drill_memory: 16G

- name: Read it once a month
  livesnap.qemu.livesnap_verify:
    guest: web1
    snapshot: month-end
    level: checksum
    max_age: 30d
"""

RETURN = r"""
verdict:
  description: What the check came to, or the verdict that made it needless. Null in check mode, if there would be a check.
  returned: when there is one
  type: dict
  contains:
    level:
      description: The level that was passed, with all below it; or the one that was not passed.
      type: str
      sample: structure
    result:
      description: V(passed) or V(failed).
      type: str
      sample: passed
    when:
      description: The end of the check, RFC 3339 in UTC.
      type: str
      sample: "2026-11-23T03:00:41.250000Z"
    version:
      description: Version of the collection that made it.
      type: str
      sample: 0.1.0
    evidence:
      description: What was found, level by level; what could not be looked at here, and why; and what is wrong.
      type: dict
      sample:
        checksum: {"ram_bytes": 268435456, "disk_bytes": 201326592, "resumed_bytes": 0, "seconds": 0.61}
        structure:
          images: 1
          device_sections: 37
          file_systems: [{"disk": "vda", "partition": 1, "type": "ext4", "repaired": false}]
          seconds: 1.9
        memory:
          read_by: library
          kernel:
            banner: "Linux version 6.1.0-41-cloud-amd64 (debian-kernel@lists.debian.org) ..."
            virtual: "0xffffffff82000240"
            physical: "0x3000240"
            processors: 2
          probes: [{"name": "sequence number", "physical": "0x5e68010", "memory": "0a00000000000000", "disk": "0a00000000000000"}]
          seconds: 0.4
        drill:
          running_s: 0.71
          lazy: true
          clock_ms: -3.1
          commands: [{"argv": ["/bin/sh", "-c", "cat /proc/uptime"], "code": 0}]
          peak_bytes: 142606336
          seconds: 3.2
        not_done: []
        problem: null
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample: ["checked snapshot 'month-end' of guest 'web1' by level 'structure'"]
"""

from typing import NoReturn

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _deps
from ..module_utils._errors import LivesnapError
from ..module_utils._options import argument_spec
from ..module_utils._verify.request import VerifyRequest
from ..module_utils._verify.verdict import FAILED
from ..module_utils._verify.verify import plan_verify, verify


def main() -> NoReturn:
    """Arguments, stop here in check mode, check, describe."""
    module = AnsibleModule(argument_spec=argument_spec("livesnap_verify"), supports_check_mode=True)
    _deps.ensure(module)
    try:
        request = VerifyRequest.of(module.params)
        result = plan_verify(request) if module.check_mode else verify(request)
    except LivesnapError as error:
        module.fail_json(msg=str(error), **{"actions": [], **error.result})
    verdict = result["verdict"]
    if verdict is not None and verdict["result"] == FAILED:
        module.fail_json(
            msg=f"{request.subject} did not pass '{verdict['level']}':"
            f" {verdict['evidence']['problem']}",
            **result,
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
