# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Boots a test guest by hand and keeps it until Ctrl-C.

PYTHONPATH=tests/guests build/venv/bin/python -m lab
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time

from .guest import DiskSpec, Guest


def main() -> int:
    parser = argparse.ArgumentParser(prog="lab")
    parser.add_argument("--memory", type=int, default=256)
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--disks", type=int, default=1)
    parser.add_argument("--user", default="")
    parser.add_argument("--sandbox", action="store_true")
    parser.add_argument("--net", action="store_true")
    parser.add_argument("--vga", action="store_true")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_unused: sys.exit(0))
    started = time.monotonic()
    with Guest(memory=given.memory, cpus=given.cpus, disks=(DiskSpec(),) * given.disks,
               user=given.user, sandbox=given.sandbox, net=given.net, vga=given.vga) as guest:
        print(json.dumps({
            "pid": guest.pid, "qmp_socket": str(guest.qmp_path),
            "agent_socket": str(guest.agent_path), "serial_log": str(guest.serial_log),
            "accel": guest.accel, "boot_s": round(time.monotonic() - started, 1)}), flush=True)
        try:
            while guest.alive:
                time.sleep(0.5)
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
