# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults for tests: what happens when the owner dies, hangs or fails at a step.

LIVESNAP_FAULT_STEP=STEP:KILL|STOP|RAISE, only together with LIVESNAP_TESTING=1. It strikes after
the step was written down and before it does anything; what a step did is there when the next one
strikes.
"""

from __future__ import annotations

import os
import signal

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError

ACTIONS = ("KILL", "STOP", "RAISE")


def strike(step: str) -> None:
    """Do to this process what the environment asks for at this step."""
    if os.environ.get("LIVESNAP_TESTING") != "1":
        return
    name, _sep, action = os.environ.get("LIVESNAP_FAULT_STEP", "").partition(":")
    if name != step:
        return
    if action == "KILL":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "STOP":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "RAISE":
        raise LivesnapError(f"injected failure at step '{step}'")
