# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """How RAM is captured."""

    DOCUMENTATION = r"""
options:
  engine:
    description:
      - How RAM is captured.
      - V(uffd) write-protects it from outside of QEMU, and the guest runs on while it is copied.
      - V(qemu) lets QEMU do so itself (its background-snapshot), from 6.0 on, for guests with a QMP socket that the
        helper cannot attach to (a debugger has them). Their writes wait longer, and the stream that QEMU writes takes as much
        memory as they have RAM, or room in O(store). QEMU up to 8.0 does not survive that storage under it fails.
      - V(pause) copies it while the guest stands still, into O(staging) as far as that has room; it needs O(allow_pause).
      - V(auto) takes the first of them that can, and fails with the reasons where none can. Why those before it could not
        is in RV(snapshot.consistency.indications) and in a warning. What was chosen is never changed later. Check mode does
        not ask QEMU for its own engine.
    type: str
    choices: [auto, uffd, qemu, pause]
    default: auto
  allow_pause:
    description:
      - Whether the guest may stand still until its RAM is copied, where O(engine) cannot do without.
      - That takes about a second for 4 GiB with O(staging) of that size, and as long as storing it takes with less.
        At most it stands still for O(timeout), if that is given, else for 10 s and 1 s for each 32 MiB.
    type: bool
    default: false
"""
