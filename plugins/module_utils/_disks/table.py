# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How disks are captured: one file a scheme."""

from __future__ import annotations

from ansible_collections.livesnap.qemu.plugins.module_utils._disks.backup import Backup
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.command import Command
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.internal import Internal
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.overlay import Overlay
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.reflink import Reflink
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.scheme import Outside, Scheme

#: Name of a scheme -> its class.
SCHEMES: dict[str, type[Scheme]] = {
    each.NAME: each for each in (Backup, Command, Internal, Overlay, Reflink)
}
#: Those whose disks lie outside of the snapshot's folder.
OUTSIDE: dict[str, type[Outside]] = {each.NAME: each for each in (Command, Internal, Overlay)}
