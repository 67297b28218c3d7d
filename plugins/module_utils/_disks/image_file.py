# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at image files by qemu-img, which a QEMU may have open."""

from __future__ import annotations

import json
from typing import Any, Mapping

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded

#: Seconds that a look may take.
LOOK_LIMIT = 20.0


def look(path: str, kind: str) -> dict[str, Any]:
    """What `qemu-img info` says of an image of that format; LivesnapError."""
    argv = ["qemu-img", "info", "-U", "-f", kind, "--output=json", path]
    done = run_bounded(argv, LOOK_LIMIT)
    if done.problem or done.code != 0:
        raise LivesnapError(f"'{path}' cannot be read: {done.problem or done.words}")
    about: dict[str, Any] = json.loads(done.text)
    return about


def why_not_alone(path: str, about: Mapping[str, Any]) -> str:
    """Why all of a disk is not in the file itself, for everybody to read; ''. Pure."""
    if about.get("format-specific", {}).get("data", {}).get("data-file"):
        return f"'{path}' has a data file of its own"
    return f"'{path}' is encrypted" if about.get("encrypted") else ""


def check_whole(path: str, entry: Mapping[str, Any]) -> None:
    """LivesnapError unless the file has all of a disk of a manifest, and stands on no other."""
    about = look(path, entry["format"])
    if about.get("backing-filename"):
        raise LivesnapError(f"'{path}' has a backing file")
    if about["virtual-size"] != entry["bytes"]:
        raise LivesnapError(
            f"'{path}' is of {about['virtual-size']} bytes, and the disk of {entry['bytes']}"
        )
