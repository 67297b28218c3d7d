# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that become files of the store. Pure."""

from __future__ import annotations

import re

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError

PARTIAL = ".partial"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/=+-]{0,127}")
_FILE = re.compile(r"(?:disks/)?[A-Za-z0-9][A-Za-z0-9._+-]{0,200}")
_LAYER = re.compile(r"\.livesnap-[0-9a-f]{8}\.qcow2\Z")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def problem(name: object, what: str = "name") -> str:
    """What is wrong with the name of a guest or snapshot; '' when nothing is."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return (
            f"{what} '{name}' is not usable: it must begin with a letter or digit, hold only"
            " letters, digits and . _ + -, and have 128 characters at most"
        )
    if name.endswith(PARTIAL):
        return f"{what} '{name}' is not usable: '{PARTIAL}' marks an unfinished snapshot"
    return ""


def check(name: object, what: str = "name") -> None:
    """Raise LivesnapError unless the name can be one of a guest or snapshot."""
    wrong = problem(name, what)
    if wrong:
        raise LivesnapError(wrong)


def check_label(label: object) -> None:
    """Raise LivesnapError unless the text can be a label."""
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise LivesnapError(
            f"label '{label}' is not usable: it must begin with a letter or digit, hold only"
            " letters, digits and . _ : / = + -, and have 128 characters at most"
        )


def is_file(text: object) -> bool:
    """Whether a manifest may name this file: inside the snapshot's folder, or its disks/."""
    return isinstance(text, str) and _FILE.fullmatch(text) is not None


def is_uuid(text: object) -> bool:
    """Whether it is a UUID in lower case."""
    return isinstance(text, str) and _UUID.fullmatch(text) is not None


def safe(text: str) -> str:
    """A part of a file name that resembles any text."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", text).strip("._-+")[:80] or "disk"


def layer_of(file: str, snapshot_id: str) -> str:
    """The image that covers another one since a snapshot: beside it, whatever covers what below."""
    return f"{_LAYER.sub('', file)}.livesnap-{snapshot_id[:8]}.qcow2"


def same_disk(one: str, other: str) -> bool:
    """Whether two images are, or were, layers of one disk, or its first image."""
    return _LAYER.sub("", one) == _LAYER.sub("", other)


def is_layer(text: object) -> bool:
    """Whether an image was made to cover another one."""
    return isinstance(text, str) and text.startswith("/") and _LAYER.search(text) is not None
