# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disk images of a snapshot, as qemu-img sees them. A clone may stand on them meanwhile."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Mapping, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.request import BadSnapshot

_INFO_LIMIT = 30.0
#: `qemu-img check` reads tables only; how long at most, and so many bytes of an image a second.
_LIMIT, _SLOWEST = 60.0, 20 << 20
#: What `qemu-img check` ends with: errors, leaks only, nothing of the kind possible.
_ERRORS, _LEAKS = 2, 3


def check(path: Path, disk: Mapping[str, Any], below: Optional[Path], program: str) -> None:
    """BadSnapshot unless it has the disk's size, its tables are sound, and it stands on `below`
    and nothing else."""
    about = _info(path, disk["format"], program)
    _check_backing(path, about.get("full-backing-filename", about.get("backing-filename")), below)
    extents = about.get("format-specific", {}).get("data", {})
    if extents.get("data-file"):
        raise BadSnapshot(f"disk image '{path}' has its data in another file")
    if about["virtual-size"] != disk["bytes"]:
        raise BadSnapshot(
            f"disk image '{path}' is of {about['virtual-size']} bytes; the guest's disk had"
            f" {disk['bytes']}"
        )
    limit = _LIMIT + disk["file_bytes"] / _SLOWEST
    argv = [program, "check", "-q", "-U", "-f", disk["format"], str(path)]
    done = run_bounded(argv, limit)
    if done.problem:
        raise LivesnapError(f"'{program} check' of '{path}' {done.problem}")
    if done.code in (_ERRORS, _LEAKS):
        said = (done.text + done.words).strip().splitlines()
        raise BadSnapshot(f"disk image '{path}' has errors: {'; '.join(said)[-300:]}")
    if done.code != 0:
        raise BadSnapshot(f"disk image '{path}' cannot be checked: {done.words}")


def _check_backing(path: Path, backing: Optional[str], below: Optional[Path]) -> None:
    wanted = None if below is None else os.path.normpath(below)
    if (None if backing is None else os.path.normpath(backing)) == wanted:
        return
    if backing is None:
        raise BadSnapshot(f"disk image '{path}' stands alone; its manifest says on '{below}'")
    missing = "" if Path(backing).exists() else ", which is not there"
    expected = f"; its manifest says on '{below}'" if below is not None else ""
    raise BadSnapshot(
        f"disk image '{path}' stands on '{backing}'{missing}{expected}: its chain is not complete"
        " in the store"
    )


def _info(path: Path, kind: str, program: str) -> dict[str, Any]:
    argv = [program, "info", "-U", "-f", kind, "--output=json", str(path)]
    done = run_bounded(argv, _INFO_LIMIT)
    if done.problem:
        raise LivesnapError(f"'{program} info' of '{path}' {done.problem}")
    if done.code != 0:
        raise BadSnapshot(f"disk image '{path}' cannot be read as {kind}: {done.words}")
    about: dict[str, Any] = json.loads(done.text)
    return about
