# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal, by syslog(3): identifier livesnap, guest and id in each line. Never in the pause."""

from __future__ import annotations

import syslog


def log(guest: str, snapshot_id: str, text: str, error: bool = False) -> None:
    """One line. Says nothing that a guest's memory holds."""
    syslog.openlog("livesnap", syslog.LOG_PID, syslog.LOG_DAEMON)
    level = syslog.LOG_ERR if error else syslog.LOG_INFO
    syslog.syslog(level, f"guest={guest} id={snapshot_id} {text}")
