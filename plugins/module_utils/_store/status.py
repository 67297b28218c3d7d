# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""status.json: what may change of a snapshot (docs/manifest.md)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import StoreError
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files, names

NAME = "status.json"
VERSION = 1


def default() -> dict[str, Any]:
    """The status of a snapshot that has none."""
    return {"version": VERSION, "pinned": False, "labels": [], "verdicts": []}


def read(folder: Path) -> dict[str, Any]:
    """A snapshot's status; the defaults when there is none; StoreError when it makes no sense."""
    path = f"{folder}/{NAME}"
    if not os.path.lexists(path):
        return default()
    status = {**default(), **files.read_object(path)}
    if status["version"] != VERSION:
        raise StoreError(f"'{path}' has version '{status['version']}', not {VERSION}")
    if not isinstance(status["pinned"], bool):
        raise StoreError(f"'{path}' has a bad 'pinned'")
    if not isinstance(status["labels"], list) or not isinstance(status["verdicts"], list):
        raise StoreError(f"'{path}' has bad 'labels' or 'verdicts'")
    for label in status["labels"]:
        names.check_label(label)
    return status


def changed(
    status: dict[str, Any], labels: Optional[Sequence[str]], pinned: Optional[bool]
) -> dict[str, Any]:
    """The status with these labels and pin; None leaves what is there. Pure."""
    result = dict(status)
    if labels is not None:
        for label in labels:
            names.check_label(label)
        result["labels"] = sorted(set(labels))
    if pinned is not None:
        result["pinned"] = pinned
    return result


def write(folder: Path, status: dict[str, Any]) -> None:
    """Replace it by rename."""
    with files.as_store_error(f"'{folder / NAME}' cannot be written"):
        files.write_json(folder / NAME, status)
