# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scheme backup for images that no QEMU has open: qemu-img copies them, under QEMU's own locks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import subprocess
from typing import Callable

from ansible_collections.livesnap.qemu.plugins.module_utils._disks.target import FORMAT
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded

#: Seconds that a look at an image's header may take, and between looks at a copy.
_INFO_LIMIT, _POLL = 30.0, 0.25
_PROGRESS = re.compile(r"\((\d+(?:\.\d+)?)/100%\)\s*")


def check() -> None:
    """Refuse when a program is missing that copies need."""
    for name, package in (("qemu-img", "qemu-utils"), ("setpriv", "util-linux")):
        if shutil.which(name) is None:
            raise RefusedError(f"{name} is not installed", f"install {package}", name)


def measure(path: str, kind: str) -> tuple[int, int]:
    """(size as the guest sees it, allocated by the image and what it stands on) of an image, bytes.

    `kind` is its format, which is never guessed: a guest can write any header into a raw image.
    """
    argv = ["qemu-img", "info", "--output=json", "--backing-chain", "-f", kind, path]
    done = run_bounded(argv, _INFO_LIMIT)
    if done.problem or done.code != 0:
        raise RefusedError(
            f"disk image '{path}' cannot be read: {done.problem or done.words}", reason="image"
        )
    chain = json.loads(done.text)
    return int(chain[0]["virtual-size"]), sum(int(each.get("actual-size", 0)) for each in chain)


def copy(
    source: str,
    kind: str,
    target: str,
    watch: Callable[[float], None],
    speed: int = 0,
    compressed: bool = False,
) -> None:
    """Copy an image into an empty one that is there. `watch` is called with percent, all the time;
    what it raises ends the copy. The copy ends with this process, whatever ends that.

    `speed`: bytes a second at most, 0 is unlimited. `compressed`: in the way that the target has.
    """
    how = ["-r", str(speed)] if speed else []
    how += ["-c"] if compressed else []
    argv = ["setpriv", "--pdeathsig", "KILL", "nice", "qemu-img", "convert", "-p", "-n", *how,
            "--target-is-zero", "-f", kind, "-O", FORMAT, source, target]  # fmt: skip
    try:
        process = subprocess.Popen(  # pylint: disable=ansible-bad-function
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
        )
    except OSError as err:
        raise LivesnapError(f"'qemu-img convert' cannot be run: {err.strerror}") from None
    try:
        said = _follow(process, watch)
        code = process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    if code != 0:
        raise LivesnapError(
            f"the copy of disk image '{source}' failed: {said or f'it ended with code {code}'}",
            "is there room in the store?",
        )


def _follow(process: subprocess.Popen[bytes], watch: Callable[[float], None]) -> str:
    """Until it closes its output; what it said besides its progress."""
    if process.stdout is None:
        raise AssertionError
    said, percent = "", 0.0
    while True:
        watch(percent)
        if not select.select([process.stdout], [], [], _POLL)[0]:
            continue
        data = os.read(process.stdout.fileno(), 65536)
        if not data:
            return said.strip()[-300:]
        said += data.decode("utf-8", "replace").replace("\r", " ")
        numbers = _PROGRESS.findall(said)
        if numbers:
            percent = float(numbers[-1])
            said = _PROGRESS.sub("", said)
