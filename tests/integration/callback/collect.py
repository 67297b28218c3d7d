# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes each task's result to the file that LIVESNAP_RESULTS names, one JSON object a line."""

from __future__ import annotations

DOCUMENTATION = """
name: collect
type: aggregate
short_description: Each task's result as a line of JSON
description: For tests that look at what modules return.
"""

import json
import os
from typing import Any

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    """What the tests read."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "collect"

    def _note(self, outcome: str, result: Any) -> None:
        path = os.environ.get("LIVESNAP_RESULTS")
        if not path:
            return
        line = {
            "outcome": outcome,
            "host": result._host.get_name(),
            "task": result._task.get_name().rpartition(" : ")[2],
            "action": result._task.action,
            "result": result._result,
        }
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")

    def v2_runner_on_ok(self, result: Any) -> None:
        """A task that went well."""
        self._note("ok", result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """One that failed; in a block with rescue as well."""
        self._note("failed", result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """A host that did not answer."""
        self._note("unreachable", result)
