# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The directory of snapshots on a hypervisor, and who works in it (docs/manifest.md)."""

from __future__ import annotations
