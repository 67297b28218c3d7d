# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the action plugin waits for a snapshot and tells how far it is. Private to the collection."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

RUN_ROOT = "/run/livesnap"
FIRST_WAIT, LONGEST_WAIT = 2.0, 30.0
STEP = 10


def waits() -> Iterator[float]:
    """The whole waiting policy, in seconds: 2, then half as long again each time, 30 at most."""
    wait = FIRST_WAIT
    while True:
        yield wait
        wait = min(LONGEST_WAIT, wait * 1.5)


def poll_line(results_file: str, job: str, seconds: float) -> str:
    """A shell line that waits on the target until the job ends, at most so long, and prints where
    things stand.

    Waiting there and not here means one command a poll, and no delay when the job ends early.
    Ansible's async wrapper
    first writes a file that begins with `started`, and replaces it by the module's result. A
    wrapper that is gone without having done so was killed.
    """
    file = shlex.quote(results_file)
    name = job_name(job).split(".")[0]
    # -z splits command lines at their NULs; the brackets keep the pattern from finding itself.
    alive = f"grep -qzsx '[{name[0]}]{name[1:]}' /proc/[0-9]*/cmdline"
    look = (
        f"l=; IFS= read -r l <{file}; "
        """case $l in '{"started"'*) state=running;; *) state=done;; esac"""
    )
    return (
        f"n={max(1, int(seconds * 4))}; while :; do {look}; "
        "[ $state = running ] && [ $n -gt 0 ] || break; n=$((n-1)); sleep 0.25; done; "
        f"if [ $state = running ] && ! {alive}; then {look}; [ $state = done ] || state=gone; fi; "
        'echo "state=$state"; '
        f"for f in {RUN_ROOT}/guest/*/progress.json {RUN_ROOT}/verify/*/*/progress.json; do "
        'if [ -f "$f" ]; then tr -d "\\n" <"$f"; echo; fi; done; :'
    )


def read_poll(text: str) -> tuple[str, list[dict[str, Any]]]:
    """(running, done or gone; all progress that was found) of what that line printed."""
    state = re.search(r"^state=(\w+)", text, re.M)
    found = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                value = json.loads(line)
            except ValueError:
                # Caught while it was written; the next poll sees it whole.
                continue
            if isinstance(value, dict):
                found.append(value)
    return state.group(1) if state else "unknown", found


@dataclass
class Steps:
    """Which of the ten-percent lines are due."""

    shown: int = field(default=-1)

    def due(self, percent: float) -> bool:
        """True once for each step that was reached."""
        step = int(min(100.0, max(0.0, percent)) // STEP)
        if step <= self.shown or step == 0:
            return False
        self.shown = step
        return True


@dataclass
class Pace:
    """How long it still takes, from how fast it went since it was first looked at."""

    begun: float | None = field(default=None)
    first: float = field(default=0.0)

    def left(self, percent: float, now: float) -> float | None:
        """Seconds, None as long as that cannot be told."""
        if self.begun is None:
            self.begun, self.first = now, percent
        if percent <= self.first or now <= self.begun:
            return None
        return max(0.0, (100.0 - percent) * (now - self.begun) / (percent - self.first))


def describe(found: dict[str, Any], left: float | None) -> str:
    """What a line says of progress: percent, bytes where they are known, time left."""
    said = [f"{float(found['percent']):.0f} %"]
    total = int(found.get("total_bytes") or 0)
    if total:
        done = int(found.get("done_bytes") or 0)
        said.append(f"{done / (1 << 20):.0f} of {total / (1 << 20):.0f} MiB")
    if left is not None:
        said.append(
            f"{int(left) // 60} min {int(left) % 60} s left" if left >= 60 else f"{left:.0f} s left"
        )
    return ", ".join(said)


def job_name(text: str) -> str:
    """An async job's id, checked before it becomes part of a shell line."""
    if not re.fullmatch(r"j[0-9]+(\.[0-9]+)?", text):
        raise ValueError(f"'{text}' is not a job id of Ansible's async wrapper")
    return text
