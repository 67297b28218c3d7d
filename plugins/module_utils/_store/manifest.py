# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""manifest.json: written once, checked whenever it is read (docs/manifest.md)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, Callable, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import StoreError
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files, names, sums

SCHEMA = "livesnap-manifest"
VERSION = 1
NAME = "manifest.json"
#: Of a snapshot that is being removed: what it has goes into the one that stands on it.
MERGING = "merging.json"
LIMIT = 4 << 20

_TAIL = re.compile(rb'  "sha256": "([0-9a-f]{64})"\n}\n')
_TAIL_LENGTH = len('  "sha256": ""\n}\n') + 64

Check = Callable[[Any], bool]


def _int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _bool(value: Any) -> bool:
    return isinstance(value, bool)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= {str}


def _words(value: Any) -> bool:
    """An object of strings."""
    return isinstance(value, dict) and set(map(type, value.values())) <= {str}


def _null(value: Any) -> bool:
    return value is None


_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")


def _time(value: Any) -> bool:
    return isinstance(value, str) and _MOMENT.fullmatch(value) is not None


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _one_of(*words: str) -> Check:
    return lambda value: value in words


# Stores have ten thousand manifests: loops here take half of the time that generators do.
def _object(**table: Check) -> Check:
    fields = tuple(table.items())

    def test(value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        for key, check in fields:  # noqa: SIM110
            if key not in value or not check(value[key]):
                return False
        return True

    return test


def _list_of(check: Check) -> Check:
    def test(value: Any) -> bool:
        if not isinstance(value, list):
            return False
        for item in value:  # noqa: SIM110
            if not check(item):
                return False
        return True

    return test


def _rows(*texts: str, ints: Sequence[str] = ()) -> Check:
    """A list of objects with strings and sizes under these keys, looked at by columns."""

    def test(value: Any) -> bool:
        if not isinstance(value, list):
            return False
        try:
            return all(_texts([row[key] for row in value]) for key in texts) and all(
                _int(row[key]) for key in ints for row in value
            )
        except (KeyError, TypeError):
            return False

    return test


def _numbers(*keys: str) -> Check:
    """An object with a number, or null, under each of these keys."""

    def test(value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        for key in keys:
            number = value.get(key, "")
            if number is not None and (type(number) not in (int, float) or number < 0):
                return False
        return True

    return test


_FREEZE = _object(
    asked=_one_of("auto", "required", "never"),
    achieved=_bool,
    reason=_or_null(_text),
    filesystems=_int,
)
_MEMORY = _object(
    file=names.is_file,
    bytes=_int,
    zero_bytes=_int,
    stored_bytes=_int,
    file_bytes=_int,
    checksum=_text,
    compression=_one_of("none", "lz4", "zstd"),
    faults=_int,
    fault_us=_numbers("p50", "p99", "max"),
    proof=_object(scans=_int, chunks=_int),
    gpa=_rows("block", ints=("gpa", "offset", "length")),
    ramblock=_text,
)
#: How a disk may have been captured.
SCHEMES = ("backup", "command", "internal", "overlay", "reflink")
#: Of these, what lies outside of the snapshot's folder, and has no file.
OUTSIDE = ("command", "internal", "overlay")
_BASE = _object(id=names.is_uuid, name=lambda value: not names.problem(value), file=names.is_file)
_COMMANDS = _object(key=_text, remove=_text, restore=_text)
_LAYERS = _object(
    covered=lambda value: _text(value) and value.startswith("/"),
    overlay=_or_null(names.is_layer),
)
_FIELDS_OF_DISK = _object(
    match=_text,
    device=_or_null(_text),
    qdev=_or_null(_text),
    node=_text,
    serial=_or_null(_text),
    scheme=_one_of(*SCHEMES),
    file=_or_null(names.is_file),
    format=_one_of("qcow2", "raw"),
    bytes=_int,
    stored_bytes=_int,
    file_bytes=_int,
    source=_object(file=_text, format=_text),
)


def _disk(value: Any) -> bool:
    return (
        _FIELDS_OF_DISK(value)
        and (value["file"] is None) == (value["scheme"] in OUTSIDE)
        and (value["scheme"] != "command" or _COMMANDS(value.get("commands")))
        and (value["scheme"] != "internal" or _text(value.get("internal")))
        and (value["scheme"] != "overlay" or _LAYERS(value))
        # These came later.
        and (value.get("base") is None or (value["scheme"] == "backup" and _BASE(value["base"])))
        and (value.get("full_because") is None or _text(value["full_because"]))
        and _texts(value["source"].get("below", []))
    )


TIMINGS = (
    "freeze_ms",
    "pause_ms",
    "preflush_ms",
    "disks_ms",
    "device_state_ms",
    "arm_ms",
    "protected_s",
    "sweep_s",
    "disk_copy_s",
    "total_s",
)
_devices_as_rows = _rows("path", "type")


def _devices(value: Any) -> bool:
    # Once it was a list, of up to a hundred objects, which took most of the time of reading.
    return _words(value) or _devices_as_rows(value)


_FACTS = _object(
    name=_or_null(_text),
    qemu_version=_text,
    qemu_package=_text,
    machine=_text,
    arch=_text,
    accelerator=_text,
    cpu=_text,
    vcpus=_int,
    memory_bytes=_int,
    argv=_texts,
    cwd=_text,
    exe=_text,
    user=_text,
    uid=_int,
    gid=_int,
    cgroup=_text,
    firmware=_rows("path", "sha256"),
    device_tree=_devices,
    block_nodes=_rows("node", "driver", "file"),
)

#: Field -> (check, what is expected there)
FIELDS: dict[str, tuple[Check, str]] = {
    "livesnap": (_text, "a string"),
    "id": (names.is_uuid, "a UUID"),
    "guest": (lambda value: not names.problem(value), "a name"),
    "name": (lambda value: not names.problem(value), "a name"),
    "uuid": (_or_null(names.is_uuid), "a UUID or null"),
    "created": (_time, "a time"),
    "started": (_time, "a time"),
    "complete": (lambda value: value is True, "true"),
    "was_running": (_bool, "true or false"),
    "engine": (_or_null(_one_of("uffd", "qemu", "pause")), "a known engine or null"),
    "consistency": (
        _object(
            level=_one_of("crash", "filesystem", "application", "clean"),
            indications=_texts,
            freeze=_FREEZE,
        ),
        "level, indications, freeze",
    ),
    "timings": (_numbers(*TIMINGS), "times"),
    "memory": (_or_null(_MEMORY), "a memory entry or null"),
    "devices": (
        _or_null(_object(file=_one_of("devices"), bytes=_int, sha256=_text)),
        "a devices entry or null",
    ),
    "disks": (_list_of(_disk), "a list of disk entries"),
    "excluded_disks": (_rows("match", "node"), "a list of {match, node}"),
    "guest_facts": (_FACTS, "facts about the guest"),
    "restore_blockers": (_texts, "a list of strings"),
    "schedule": (_or_null(_text), "a string or null"),
    "slot": (_or_null(_text), "a string or null"),
    "bracket": (
        _object(attempts=_int, deadline_s=_number, warnings=_texts),
        "attempts, deadline_s, warnings",
    ),
    "parent": (_null, "null"),
    "encryption": (_null, "null"),
}


#: Fields that came later: what is there must be right.
LATER: dict[str, tuple[Check, str]] = {
    "was_off": (_bool, "true or false"),
    "domain": (
        _or_null(_object(file=_one_of("domain.xml"), bytes=_int, sha256=_text, uri=_text)),
        "a domain entry or null",
    ),
}


def encode(fields: Mapping[str, Any]) -> bytes:
    """The file of these fields, with their checksum as the last one."""
    body: dict[str, Any] = {"schema": SCHEMA, "version": VERSION}
    body.update((key, value) for key, value in fields.items() if key not in body)
    body.pop("sha256", None)
    check(body, "the new manifest")
    head = json.dumps(body, indent=2, allow_nan=False)
    # Everything before the last line, which is "}".
    start = (head[: head.rindex("\n")] + ",\n").encode()
    digest = hashlib.sha256(start).hexdigest()
    return start + f'  "sha256": "{digest}"\n}}\n'.encode()


def decode(data: bytes, what: str = "the manifest") -> dict[str, Any]:
    """The fields of a manifest's bytes, checksum, version and types checked."""
    if len(data) > LIMIT:
        raise StoreError(f"{what} is longer than {LIMIT} bytes")
    tail = _TAIL.fullmatch(data[-_TAIL_LENGTH:])
    if tail is None:
        raise StoreError(f"{what} does not end with its checksum: it was cut or edited")
    if hashlib.sha256(data[:-_TAIL_LENGTH]).hexdigest().encode() != tail.group(1):
        raise StoreError(f"{what} does not have the checksum that it names: it was edited")
    fields = files.parse_object(data, what)
    check(fields, what)
    return fields


def check(fields: Mapping[str, Any], what: str) -> None:
    """Schema, version and types; raises StoreError naming the field."""
    if fields.get("schema") != SCHEMA:
        raise StoreError(f"{what} is of schema '{fields.get('schema')}', not '{SCHEMA}'")
    version = fields.get("version")
    if not isinstance(version, int) or not _int(version) or version == 0:
        raise StoreError(f"{what} has version '{version}', which is none")
    if version > VERSION:
        raise StoreError(
            f"{what} has version {version}; this livesnap reads up to {VERSION}",
            "use the version that made it, or a newer one",
        )
    for key, (test, expected) in FIELDS.items():
        if key not in fields:
            raise StoreError(f"{what} lacks '{key}'")
        if not test(fields[key]):
            raise StoreError(f"{what} has a bad '{key}': expected {expected}")
    for key, (test, expected) in LATER.items():
        if key in fields and not test(fields[key]):
            raise StoreError(f"{what} has a bad '{key}': expected {expected}")
    for disk in fields["disks"]:
        if "checksums" in disk and not sums.fits(disk["checksums"], disk["file_bytes"]):
            raise StoreError(f"{what} has bad 'checksums' of disk '{disk['match']}'")
    used = [disk["file"] for disk in fields["disks"] if disk["file"] is not None]
    if len(set(used)) != len(used):
        raise StoreError(f"{what} names the same file for two disks")


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a snapshot's folder, with everything checked that is cheap to check.

    Names must agree with the folders; each file must be there, a regular file of the recorded size.
    """
    path = f"{folder}/{NAME}"
    if os.path.lexists(f"{folder}/{MERGING}"):
        raise StoreError(
            f"snapshot '{folder.name}' is being removed: its disks are merged into those of the one"
            " that stands on it",
            "livesnap_recover finishes that if nobody is at it any more",
        )
    fields = decode(files.read_regular(path, LIMIT), f"'{path}'")
    expected = folder.parts[-2:]
    if (fields["guest"], fields["name"]) != expected:
        raise StoreError(
            f"'{path}' is of snapshot '{fields['guest']}/{fields['name']}', not of"
            f" '{expected[0]}/{expected[1]}': the folder was moved or copied"
        )
    looked: set[str] = set()
    for name, size in sizes(fields):
        check_file(folder, name, size, looked)
    return fields


def sizes(fields: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(file, bytes) of all files that a manifest names."""
    found = [
        (disk["file"], disk["file_bytes"]) for disk in fields["disks"] if disk["file"] is not None
    ]
    if fields["memory"] is not None:
        found.append((fields["memory"]["file"], fields["memory"]["file_bytes"]))
    if fields["devices"] is not None:
        found.append((fields["devices"]["file"], fields["devices"]["bytes"]))
    if fields.get("domain") is not None:
        found.append((fields["domain"]["file"], fields["domain"]["bytes"]))
    return found


def check_contents(folder: Path, fields: Mapping[str, Any]) -> None:
    """Raise StoreError unless device state and libvirt's XML have their checksums."""
    for about in (fields["devices"], fields.get("domain")):
        if about is not None:
            data = files.read_regular(folder / about["file"], 1 << 30)
            if hashlib.sha256(data).hexdigest() != about["sha256"]:
                raise StoreError(
                    f"'{folder / about['file']}' does not have the checksum that its manifest"
                    " names: it was damaged",
                    "use another snapshot",
                )


def check_file(
    folder: Path, name: str, size: int, looked: Optional[set[str]] = None
) -> None:
    """Raise StoreError unless it is a regular file of that size; no part of it may be a link.

    `looked`: the folders that were found to be none already, of one reading.
    """
    path = f"{folder}/{name}"
    parent = path.rpartition("/")[0]
    try:
        if looked is None or parent not in looked:
            if stat.S_ISLNK(os.lstat(parent).st_mode):
                raise StoreError(f"'{parent}' is a symbolic link")
            if looked is not None:
                looked.add(parent)
        info = os.lstat(path)
    except OSError as err:
        raise StoreError(f"'{path}' cannot be read: {err.strerror}") from None
    if not stat.S_ISREG(info.st_mode):
        raise StoreError(f"'{path}' is not a regular file")
    if info.st_size != size:
        raise StoreError(f"'{path}' has {info.st_size} bytes; the manifest says {size}")
