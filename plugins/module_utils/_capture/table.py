# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How RAM is captured: one file an engine, with its NAME, reasons() and CAPTURE."""

from __future__ import annotations

from ansible_collections.livesnap.qemu.plugins.module_utils._capture import pause, qemu, uffd

#: Name of an engine -> its file. `auto` takes the first that has no reason to stand aside.
ENGINES = {uffd.NAME: uffd, qemu.NAME: qemu, pause.NAME: pause}
