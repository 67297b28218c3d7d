# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs of Ansible's async wrapper on this machine: which have ended, and with what.

The wrapper first writes a results file that begins with `started`, and replaces it by the module's
result. A wrapper that is gone without having done so was killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    StoreError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files

_POLL = 0.25
_LIMIT = 64 << 20
_ID = re.compile(r"j[0-9]+(\.[0-9]+)?")
KILLED = (
    "its process was killed on the hypervisor; a snapshot whose instant had passed completes on its"
    " own, and livesnap_info shows it; if it had not, the guest was set free"
)
#: What the wrapper adds to a module's result.
_OF_WRAPPER = ("ansible_job_id", "started", "finished", "results_file", "invocation")

Job = Mapping[str, Any]


def check(jobs: Sequence[Job]) -> None:
    """A job's id becomes a pattern that processes are compared with."""
    for job in jobs:
        if not _ID.fullmatch(job["ansible_job_id"]):
            raise LivesnapError(
                f"'{job['ansible_job_id']}' is not a job id of Ansible's async wrapper"
            )


def result_of(job: Job) -> Optional[dict[str, Any]]:
    """The module's result, None as long as it runs."""
    path = Path(job["results_file"])
    # Before its file is read: what it wrote last is there once it is gone.
    lives = _lives(job)
    try:
        found = files.parse_object(files.read_regular(path, _LIMIT), f"'{path}'")
    except StoreError as error:
        found = {}
        if path.exists() and not lives:
            return {"failed": True, "msg": str(error)}
    # A module's own result may hold neither; the wrapper's first line holds both.
    if found.get("started") and not found.get("finished", True):
        found = {}
    if found:
        return {key: value for key, value in found.items() if key not in _OF_WRAPPER}
    return None if lives else {"failed": True, "msg": KILLED}


def _lives(job: Job) -> bool:
    name = str(job["ansible_job_id"]).partition(".")[0].encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if name in Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0"):
                    return True
    return False


def wait(
    jobs: Sequence[Job], most: int, seconds: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(those that ended, each with its `result`; those that run), once `most` or fewer run.

    After so many seconds it gives up: then all of them count as running. The results files of
    those that ended are removed.
    """
    check(jobs)
    end = time.monotonic() + seconds
    results: dict[str, dict[str, Any]] = {}
    while True:
        for job in jobs:
            if job["results_file"] not in results:
                result = result_of(job)
                if result is not None:
                    results[job["results_file"]] = result
        if len(jobs) - len(results) <= most:
            break
        if time.monotonic() >= end:
            return [], [dict(job) for job in jobs]
        time.sleep(_POLL)
    ended = []
    running = []
    for job in jobs:
        if job["results_file"] in results:
            ended.append({**job, "result": results[job["results_file"]]})
            with contextlib.suppress(OSError):
                os.unlink(job["results_file"])
        else:
            running.append(dict(job))
    return ended, running
