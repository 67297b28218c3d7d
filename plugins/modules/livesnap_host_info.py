#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: livesnap_host_info
short_description: What a hypervisor has, which guests, and what is possible for each of them
version_added: 0.1.0
author:
  - The livesnap authors (@livesnap)
description:
  - Tells the versions and the features of the kernel that snapshots depend on, and lists the guests. Of each guest it says
    which engines and schemes can capture it here, and why the others can't. It asks what a snapshot asks before it begins.
  - Queries only. Nothing is attached to, no agent is spoken to, nothing is changed.
options:
  uri:
    description:
      - The libvirt of this hypervisor, whose domains are listed, those that are off among them.
      - Where it can't be reached RV(host.libvirt.problem) says why, and only O(guests) are listed.
    type: str
    default: qemu:///system
  guests:
    description: Guests that are reached by QMP sockets of their own, besides libvirt's.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the guest in the store.
        type: str
        required: true
      qmp_socket:
        description: The guest's QMP socket on the hypervisor.
        type: path
        required: true
      agent_socket:
        description: The socket of the guest's agent on the hypervisor.
        type: path
  select:
    description:
      - A JMESPath expression over the list of libvirt's guests, as RV(host.guests) has them, but for what is asked of each
        guest with O(preflight=true). Of libvirt's guests only those remain that it comes to, in its order.
      - With it, a libvirt that can't be reached is an error.
    type: str
  preflight:
    description: Whether each guest is asked what is possible. V(false) lists them only.
    type: bool
    default: true
extends_documentation_fragment:
  - livesnap.qemu.attributes
  - livesnap.qemu.attributes.helper
  - livesnap.qemu.store
attributes:
  check_mode:
    support: full
  diff_mode:
    support: N/A
seealso:
  - module: livesnap.qemu.livesnap
"""

EXAMPLES = r"""
- name: See what this hypervisor can do, and what is possible for libvirt's guests
  livesnap.qemu.livesnap_host_info:
  register: hypervisor

- name: Ask about a guest that has a QMP socket of its own
  livesnap.qemu.livesnap_host_info:
    guests:
      - name: web1
        qmp_socket: /run/guests/web1/qmp.sock
        agent_socket: /run/guests/web1/agent.sock

- name: List the guests of libvirt that start with the hypervisor
  livesnap.qemu.livesnap_host_info:
    select: "[?autostart]"
    preflight: false
"""

RETURN = r"""
host:
  description: The hypervisor and its guests.
  returned: always
  type: dict
  contains:
    versions:
      description: Versions of what has a part in a snapshot. Null for what is not there.
      type: dict
      contains:
        livesnap:
          description: This collection.
          type: str
          sample: 0.1.0
        helper:
          description: What the helper calls itself.
          type: str
          sample: livesnap-helper 0.1.0 (protocol 1, x86_64)
        kernel:
          description: The kernel that runs.
          type: str
          sample: 6.18.5
        qemu:
          description: The emulator that is installed. A guest may run on an older one, see RV(host.guests[].qemu_version).
          type: str
          sample: 7.2.22
        qemu_img:
          description: The program qemu-img.
          type: str
          sample: 7.2.22
        libvirt:
          description: The libvirt that runs.
          type: str
          sample: 9.0.0
        python:
          description: The Python that this module ran under.
          type: str
          sample: 3.11.2
        packages:
          description: What it has of the packages that modules import.
          type: dict
          sample: {"qemu.qmp": "0.0.6", "jmespath": "1.1.0", "libvirt": "9.0.0"}
    kernel:
      description: What the kernel can do, as C(livesnap-helper features) finds it.
      type: dict
      contains:
        release:
          description: Its release.
          type: str
          sample: 6.18.5
        arch:
          description: The machine's architecture.
          type: str
          sample: x86_64
        userfaultfd:
          description: Whether there is C(/dev/userfaultfd) or a call that root may use, and the features of it.
          type: dict
          sample: {"device": true, "syscall": true, "features": ["PAGEFAULT_FLAG_WP", "WP_HUGETLBFS_SHMEM"]}
        unprivileged_userfaultfd:
          description: The sysctl C(vm.unprivileged_userfaultfd). livesnap does not need it. Null where there is none.
          type: int
          sample: 0
        pagemap_scan:
          description: Whether PAGEMAP_SCAN is there (Linux 6.7). Without it arming takes longer.
          type: bool
          sample: true
        pidfd_getfd:
          description: Whether that call is there. The engine V(uffd) needs it.
          type: bool
          sample: true
        yama:
          description: Scope of Yama's ptrace restrictions, -1 without Yama. With 3 nothing can be attached to.
          type: int
          sample: 1
        cap_sys_ptrace:
          description: Whether the helper has CAP_SYS_PTRACE.
          type: bool
          sample: true
        ksm:
          description: C(run) is that of KSM. 1 is merging, -1 is no KSM.
          type: dict
          sample: {"run": 0}
        thp:
          description: Whether transparent huge pages are used.
          type: str
          sample: madvise
    memory:
      description: The host's memory, in bytes.
      type: dict
      contains:
        total_bytes:
          description: All of it.
          type: int
          sample: 33554432000
        available_bytes:
          description: What can be had without swapping.
          type: int
          sample: 21474836480
    store:
      description: The O(store).
      type: dict
      contains:
        path:
          description: Where it is.
          type: str
          sample: /var/lib/livesnap
        problem:
          description: Why it can't be used. Null when it can.
          type: str
          sample: null
        free_bytes:
          description: Room that is left in it, in bytes. Null where it can't be used.
          type: int
          sample: 107374182400
    libvirt:
      description: The libvirt that was asked.
      type: dict
      contains:
        uri:
          description: As O(uri).
          type: str
          sample: qemu:///system
        problem:
          description: Why it could not be asked. Null when it could.
          type: str
          sample: null
    guests:
      description: The guests, libvirt's by name and then those of O(guests).
      type: list
      elements: dict
      contains:
        name:
          description: Name of the guest, in libvirt and in the store.
          type: str
          sample: db1
        uuid:
          description: Its UUID. Null where it is not known.
          type: str
          sample: 5fd9e3a7-7ac9-4b9c-9b0e-6f4d7c3a2b10
        manager:
          description: V(libvirt), or V(qmp) for one of O(guests).
          type: str
          sample: libvirt
        state:
          description:
            - V(running), V(paused), V(off), V(crashed), V(suspended) to memory by the guest itself, V(ending) or V(unknown).
            - Of a guest that is not libvirt's, what QEMU says.
          type: str
          sample: running
        autostart:
          description: Whether libvirt starts it with the hypervisor. Null for guests that are not libvirt's, as the next one.
          type: bool
          sample: true
        persistent:
          description: Whether libvirt keeps it when it is off.
          type: bool
          sample: true
        memory_bytes:
          description: The most RAM that it can have, in bytes. Null where it is not known.
          type: int
          sample: 4294967296
        title:
          description: Title that it has in libvirt, perhaps empty.
          type: str
          sample: Database of the shop
        description:
          description: Description that it has in libvirt, perhaps empty.
          type: str
          sample: ""
        metadata:
          description: What others have put into its metadata in libvirt, an entry for each element there.
          type: list
          elements: dict
          sample: [{"name": "backup", "namespace": "https://example.com/backup", "attributes": {}, "text": "daily"}]
        problem:
          description: Why no snapshot of it can be taken now, whatever engine and scheme. Null when nothing stands in the way.
          returned: with O(preflight=true), as all that follows
          type: str
          sample: null
        qemu_version:
          description: The QEMU that it runs on. Null where that could not be asked.
          type: str
          sample: 7.2.22
        machine:
          description: Its machine type. Null where that could not be asked.
          type: str
          sample: pc-i440fx-7.2
        engines:
          description: For each engine whether it can capture the guest's RAM, and every reason why not.
          type: dict
          sample: {"uffd": {"possible": false, "reasons": ["the balloon's free-page-reporting gives memory back"]}}
        schemes:
          description: For each scheme whether it can capture the guest's writable disks, and every reason why not.
          type: dict
          sample: {"backup": {"possible": true, "reasons": []}}
        freeze:
          description: Whether an agent listens that could freeze the guest's file systems, and why not.
          type: dict
          sample: {"possible": false, "reason": "no agent has opened its port in the guest"}
        restore_blockers:
          description: What would prevent a restore of a snapshot, as far as that is known now.
          type: list
          elements: str
          sample: []
"""

from typing import NoReturn

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _deps
from ..module_utils._errors import LivesnapError
from ..module_utils._host.info import HostRequest, describe
from ..module_utils._options import argument_spec


def main() -> NoReturn:
    """Asks, and changes nothing, in check mode or not."""
    module = AnsibleModule(
        argument_spec=argument_spec("livesnap_host_info"), supports_check_mode=True
    )
    _deps.ensure(module, libvirt_too=True)
    try:
        host = describe(HostRequest.of(module.params))
    except LivesnapError as error:
        module.fail_json(msg=str(error), **error.result)
    module.exit_json(changed=False, host=host)


if __name__ == "__main__":
    main()
