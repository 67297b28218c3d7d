#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: livesnap
short_description: Snapshots of running QEMU guests, disks and RAM of one instant
version_added: 0.1.0
author:
  - The livesnap authors (@livesnap)
description:
  - Takes a snapshot of a running QEMU guest. Its disks, the state of its devices and all of its RAM are of the same
    instant, although the guest runs on while its RAM is copied.
  - A snapshot is complete and checked, or it does not exist.
  - Whatever fails, the guest ends as it was found, running or paused, and thawed.
  - Killing the task after the instant does not abort the snapshot. It completes by itself, and the next run of the same
    name returns it unchanged.
options:
  name:
    description:
      - Name of the snapshot. Letters, digits and any of C(. _ + -), beginning with a letter or digit, 128 characters at
        most, not ending in C(.partial).
    type: str
    required: true
  state:
    description:
      - V(present) takes the snapshot if there is none of that name. On a complete one it brings O(labels) and O(pinned)
        to what was given, and changes nothing else. It never replaces a snapshot.
      - V(absent) removes it. One that is in progress is aborted.
    type: str
    choices: [present, absent]
    default: present
  when_off:
    description:
      - What is done with a domain of libvirt that is off. V(fail) fails. V(skip) does nothing, and says so in RV(skip_reason).
      - V(disks) captures its disks while nothing runs, with consistency V(clean). There is no RAM to capture then, whatever
        O(memory) says, and nothing to freeze. The domain can't be started until they are copied.
      - A O(qmp_socket) that nobody listens on is an error in any case, because it does not tell that the guest is off.
    type: str
    choices: [disks, skip, fail]
    default: fail
  memory:
    description: Whether RAM is part of the snapshot.
    type: bool
    default: true
  freeze:
    description:
      - Whether the guest's agent freezes its file systems for the instant. V(auto) tries, and says what came of it.
      - V(required) fails, without a snapshot, where they could not be frozen. V(never) does not try.
    type: str
    choices: [auto, required, never]
    default: auto
  freeze_timeout:
    description: Seconds that freezing may take.
    type: int
    default: 5
  deadline:
    description:
      - Seconds from freeze to thaw, after which everything is undone. Above 9 a guest with Windows is likely not
        consistent, because VSS gives up after 10. The time that O(allow_pause) allows is not counted.
    type: int
    default: 9
  lock_timeout:
    description: Seconds to wait for another run with the same guest.
    type: int
    default: 60
  timeout:
    description: Seconds that copying may take after the instant. At its end the snapshot is aborted. 0 is no limit.
    type: int
    default: 0
  compression:
    description: How RAM is compressed.
    type: str
    choices: [none, lz4, zstd]
    default: lz4
  compression_level:
    description: >-
      Level of O(compression), as its own library counts. Without it V(1) for zstd, and for lz4 V(-1), which takes a sixth less time than
      V(1) for a thirtieth more bytes.
    type: int
  staging:
    description:
      - Memory in which RAM is gathered before it is stored, such as V(512M). V(auto) takes as much as the guest has RAM, but
        no more than half of what the host has available less 256 MiB, looks again each second, and gives back when others
        wait for memory. RV(snapshot.memory.staging_bytes) says what it took.
      - When it is full, the guest waits for the store at each page that it is the first to write to. See O(bandwidth).
    type: str
    default: auto
  workers:
    description: How many threads compress and store. 0 is as many as are useful.
    type: int
    default: 0
  bandwidth:
    description:
      - Bytes a second that are written to the store at most. 0 is no limit.
      - With a limit, O(staging) should have room for what the guest writes to until it is thawed. When staging is full the
        guest gets on no faster than this. One with frozen file systems is then perhaps not thawed before O(deadline), at
        which all is undone and there is no snapshot. So leave O(staging) at V(auto) where the host has memory to spare, or
        do not freeze (O(freeze=never)).
    type: bytes
    default: 0
  reserve:
    description:
      - What has to stay free of the store's file system, a size such as V(20G), or a part of it such as V(5%).
      - It is looked at beforehand, for the most that the snapshot can take. One that leaves less is refused, and nothing is touched.
    type: str
    default: '0'
  ksm:
    description:
      - What is done where the host merges equal pages of guests (KSM), which would undo the protection of RAM. V(pause) stops
        that while RAM is captured. V(refuse) fails instead.
    type: str
    choices: [pause, refuse]
    default: pause
  schedule:
    description: Name of the schedule that the snapshot was made by. Kept with it.
    type: str
  slot:
    description: Start of the slot that the snapshot was made for, RFC 3339 in UTC. Kept with it.
    type: str
  labels:
    description: Labels of the snapshot. Not given, they stay as they are.
    type: list
    elements: str
  pinned:
    description: Whether pruning has to keep the snapshot. Not given, it stays as it is.
    type: bool
extends_documentation_fragment:
  - livesnap.qemu.attributes
  - livesnap.qemu.attributes.helper
  - livesnap.qemu.disks
  - livesnap.qemu.engine
  - livesnap.qemu.hooks
  - livesnap.qemu.reach
  - livesnap.qemu.store
  - livesnap.qemu.store.guest
  - livesnap.qemu.turns
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: livesnap.qemu.livesnap_info
  - module: livesnap.qemu.livesnap_clone
  - module: livesnap.qemu.livesnap_recover
"""

EXAMPLES = r"""
- name: Take a snapshot, RAM and disks of one instant
  livesnap.qemu.livesnap:
    guest: web1
    name: before-upgrade
    qmp_socket: /run/guests/web1/qmp.sock
    agent_socket: /run/guests/web1/agent.sock

- name: Take one only if the file systems could be frozen, and keep it for good
  livesnap.qemu.livesnap:
    guest: web1
    name: month-end
    qmp_socket: /run/guests/web1/qmp.sock
    agent_socket: /run/guests/web1/agent.sock
    freeze: required
    compression: zstd
    labels: [audit]
    pinned: true

- name: Take one of the disks alone, but not of the scratch disk
  livesnap.qemu.livesnap:
    guest: web1
    name: disks-only
    qmp_socket: /run/guests/web1/qmp.sock
    memory: false
    disks:
      - match: scratch
        scheme: none

- name: Clone the data disk's image in the pause, and copy the others
  livesnap.qemu.livesnap:
    guest: web1
    name: before-migration
    qmp_socket: /run/guests/web1/qmp.sock
    disks:
      - match: data
        scheme: reflink

- name: Remove a snapshot
  livesnap.qemu.livesnap:
    guest: web1
    name: before-upgrade
    state: absent

- name: Take one of a libvirt domain, of its disks alone if it is off
  livesnap.qemu.livesnap:
    guest: db1
    name: before-upgrade
    when_off: disks
"""

RETURN = r"""
snapshot:
  description: The snapshot. In check mode RV(snapshot.id) is null, and sizes are estimates.
  returned: when O(state=present)
  type: dict
  contains:
    id:
      description: UUID of the snapshot.
      type: str
      sample: 4a6f1f5e-52c1-4f3b-8f2a-0f8a5d3c9a10
    guest:
      description: The guest's name in the store.
      type: str
      sample: web1
    uuid:
      description: The guest's UUID as QEMU reports it.
      type: str
      sample: 00000000-0000-0000-0000-000000000000
    name:
      description: Name of the snapshot.
      type: str
      sample: hourly-20261123T0100Z
    created:
      description: The instant, RFC 3339 in UTC.
      type: str
      sample: "2026-11-23T01:00:03.417Z"
    path:
      description: Where it lies on the hypervisor.
      type: str
      sample: /var/lib/livesnap/web1/hourly-20261123T0100Z
    complete:
      description: Whether everything that was asked for is there. False only in check mode.
      type: bool
      sample: true
    consistency:
      description: What the state of the disks is worth.
      type: dict
      contains:
        level:
          description: One of V(crash), V(filesystem), V(application), and V(clean) for a guest that was off.
          type: str
          sample: filesystem
        indications:
          description: What speaks for that, and what was tried in vain; and why another engine could not capture RAM.
          type: list
          elements: str
          sample: ["fsfreeze: 2 file systems frozen in 41 ms"]
        freeze:
          description: What was asked of the agent and what came of it.
          type: dict
          sample: {"asked": "auto", "achieved": true, "reason": null, "filesystems": 2}
    engine:
      description: How RAM was captured. Null without RAM.
      type: str
      sample: uffd
    timings:
      description: How long each step took.
      type: dict
      contains:
        freeze_ms:
          description: From freeze to thaw, in milliseconds. Null without a freeze.
          type: float
          sample: 41.2
        pause_ms:
          description: How long the guest stood still, in milliseconds.
          type: float
          sample: 12.9
        preflush_ms:
          description: Flushing the images from outside before the pause, in milliseconds.
          type: float
          sample: 4.0
        disks_ms:
          description: The transaction over all disks, in milliseconds.
          type: float
          sample: 3.4
        device_state_ms:
          description: Saving the state of the devices, in milliseconds.
          type: float
          sample: 4.1
        arm_ms:
          description: Protecting RAM, in milliseconds.
          type: float
          sample: 2.2
        protected_s:
          description: How long any RAM stayed protected, in seconds.
          type: float
          sample: 0.47
        sweep_s:
          description: Until RAM was stored, in seconds.
          type: float
          sample: 2.31
        disk_copy_s:
          description: Until the disks were copied, in seconds. Null without disks.
          type: float
          sample: 1.87
        total_s:
          description: All of it, in seconds.
          type: float
          sample: 4.82
    memory:
      description: What RAM amounted to. Null without RAM.
      type: dict
      contains:
        bytes:
          description: Size of the guest's RAM.
          type: int
          sample: 268435456
        file:
          description: The RAM image, below RV(snapshot.path).
          type: str
          sample: ram.lsnap
        file_bytes:
          description: Size of that file.
          type: int
          sample: 61210624
        checksum:
          description: Its checksum.
          type: str
          sample: 9f86d081884c7d65
        compression:
          description: How it is compressed.
          type: str
          sample: lz4
        staging_bytes:
          description: The most memory in which RAM was gathered before it was stored. See O(staging).
          type: int
          sample: 301989888
        proof:
          description: How often the kernel was asked whether all is protected, and how many pieces were proven untouched.
          type: dict
          sample: {"scans": 2, "chunks": 128}
        zero_bytes:
          description: How much of it was zero.
          type: int
          sample: 112197632
        stored_bytes:
          description: Size in the store.
          type: int
          sample: 61206528
        faults:
          description: How often the guest had to wait because it wrote to a page that was not saved yet.
          type: int
          sample: 1834
        fault_us:
          description: How long these waits were, in microseconds.
          type: dict
          sample: {"p50": 16.0, "p99": 151.0, "max": 402.0}
    disks:
      description: The disks that are part of it.
      type: list
      elements: dict
      contains:
        match:
          description: How O(disks[].match) finds it.
          type: str
          sample: vda
        device:
          description: QEMU's id of the drive. Null without one.
          type: str
          sample: null
        qdev:
          description: Id or path of the guest's device.
          type: str
          sample: vda
        serial:
          description: Its serial number. Null without one.
          type: str
          sample: null
        format:
          description: Format of RV(snapshot.disks[].file).
          type: str
          sample: qcow2
        file_bytes:
          description: Size of that file.
          type: int
          sample: 201326592
        source:
          description: The running guest's own image, its C(file) and C(format), and C(below), the files that it stands on.
          type: dict
          sample: {"file": "/var/lib/guests/web1.qcow2", "format": "qcow2", "below": []}
        node:
          description: Name of QEMU's block node.
          type: str
          sample: disk0
        scheme:
          description: How it was captured.
          type: str
          sample: backup
        bytes:
          description: Size of the disk.
          type: int
          sample: 1073741824
        stored_bytes:
          description: Size in the store.
          type: int
          sample: 201326592
        file:
          description: Its image, below RV(snapshot.path). Null of schemes V(command), V(internal) and V(overlay), which keep it elsewhere.
          type: str
          sample: disks/0-vda.qcow2
        covered:
          description: The image that is the disk of the snapshot. Null of other schemes than V(overlay).
          type: str
          sample: /srv/guests/web1.qcow2
        overlay:
          description: The image that the guest writes to since the snapshot. Null of other schemes than V(overlay), and after a restore in place.
          type: str
          sample: /srv/guests/web1.qcow2.livesnap-1a2b3c4d.qcow2
        base:
          description: The snapshot that the image stands on, with its C(id), C(name) and C(file). Null of a full copy, and of other schemes.
          type: dict
          sample: {"id": "4a6f1f5e-52c1-4f3b-8f2a-0f8a5d3c9a10", "name": "hourly-20261123T0000Z", "file": "disks/0-vda.qcow2"}
        full_because:
          description: Why it is a full copy. Null where O(max_chain) is 0, and where it is none.
          type: str
          sample: null
    restore_blockers:
      description: What would prevent a restore, as far as that is known now.
      type: list
      elements: str
      sample: []
    schedule:
      description: As given.
      type: str
      sample: hourly
    slot:
      description: As given.
      type: str
      sample: "2026-11-23T01:00:00Z"
    labels:
      description: Its labels.
      type: list
      elements: str
      sample: [audit]
    pinned:
      description: Whether pruning has to keep it.
      type: bool
      sample: false
skip_reason:
  description: Why nothing was done, and the task counts as skipped. Null when it does not. See O(when_off=skip).
  returned: always
  type: str
  sample: "guest 'db1' is off (when_off: skip)"
actions:
  description: What was done, or would be done in check mode, in order.
  returned: always
  type: list
  elements: str
  sample: ["took snapshot 'before-upgrade' of guest 'web1'"]
recovered:
  description: What an earlier run had left behind and this one put right. Counts as a change.
  returned: always
  type: list
  elements: str
  sample: []
"""

from typing import NoReturn

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _deps
from ..module_utils._bracket.api import (
    SnapshotSpec,
    plan_removal,
    plan_snapshot,
    remove_snapshot,
    take_snapshot,
)
from ..module_utils._errors import LivesnapError
from ..module_utils._options import argument_spec


def main() -> NoReturn:
    """Arguments, plan, stop here in check mode, apply, describe."""
    module = AnsibleModule(
        argument_spec=argument_spec("livesnap"),
        supports_check_mode=True,
    )
    _deps.ensure(module, libvirt_too=module.params["qmp_socket"] is None)
    plan, apply = (
        (plan_snapshot, take_snapshot)
        if module.params["state"] == "present"
        else (plan_removal, remove_snapshot)
    )
    try:
        spec = SnapshotSpec.of(module.params)
        result = plan(spec) if module.check_mode else apply(spec)
    except LivesnapError as error:
        module.fail_json(msg=str(error), **error.result)
    for warning in result.pop("warnings", []):
        module.warn(warning)
    module.exit_json(**result, skipped=result.get("skip_reason") is not None)


if __name__ == "__main__":
    main()
