# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A program that is run to its end, within a limit: no input, what it prints, how it ended."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import Any, Optional, Sequence


@dataclass(frozen=True)
class Ended:
    """How a program ended. `problem` is empty if it was run, and ended by itself in time."""

    code: Optional[int]
    out: bytes = b""
    err: bytes = b""
    problem: str = ""
    timed_out: bool = False

    @property
    def text(self) -> str:
        """What it printed."""
        return self.out.decode("utf-8", "replace")

    @property
    def words(self) -> str:
        """The end of what it said on its standard error."""
        return self.err.decode("utf-8", "replace").strip()[-300:]


def run_bounded(
    argv: Sequence[str], timeout: float, user: Optional[tuple[int, int, Sequence[int]]] = None
) -> Ended:
    """Run it; SIGKILL after so many seconds. Never raises for what becomes of the program.

    `user`: uid, gid and further groups that it runs as, where they are not ours. Which error a
    failure is, and in which words, is for the caller to say.
    """
    as_user: dict[str, Any] = {}
    if user is not None:
        as_user = {"user": user[0], "group": user[1], "extra_groups": list(user[2])}
    try:
        done = subprocess.run(  # pylint: disable=ansible-bad-function
            list(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
            cwd="/",
            **as_user,
        )
    except subprocess.TimeoutExpired:
        return Ended(None, problem=f"did not end within {timeout:g} s", timed_out=True)
    except OSError as err:
        return Ended(None, problem=f"cannot be run: {err.strerror or err}")
    return Ended(done.returncode, done.stdout, done.stderr)
