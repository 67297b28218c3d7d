# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are whole after a crash or not there at all, and reading what is not trusted."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any, Iterator, Union

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import StoreError


def sync_folder(folder: Path) -> None:
    """fsync of a folder: makes the names in it durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """fsync of a file that others wrote."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(folder: Path) -> None:
    """Remove a folder and all that is in it. Somebody else may be doing so at the same time: what
    is gone already is not missed, and nothing else is left because of it."""
    for root, folders, others in os.walk(folder, topdown=False):
        for name in folders:
            path = os.path.join(root, name)
            with contextlib.suppress(FileNotFoundError):
                # A link to a folder is listed as one.
                (os.unlink if os.path.islink(path) else os.rmdir)(path)
        for name in others:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(root, name))
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(folder)


def write_whole(path: Path, data: bytes, mode: int = 0o600, durable: bool = True) -> None:
    """A temporary name, fsync of file and folder, rename. Replaces what was there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(temporary, flags, mode)
        try:
            os.fchmod(fd, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        sync_folder(path.parent)


def write_json(path: Path, value: Any, mode: int = 0o600, durable: bool = True) -> None:
    """The same with JSON."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode(), mode, durable)


def read_regular(path: Union[Path, str], limit: int) -> bytes:
    """A regular file's bytes, as many as there are now: no symbolic link, no device, not longer
    than the limit."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as err:
        raise StoreError(f"'{path}' cannot be read: {err.strerror}") from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise StoreError(f"'{path}' is not a regular file")
        if info.st_size > limit:
            raise StoreError(f"'{path}' has {info.st_size} bytes; at most {limit} are expected")
        data = b""
        while len(data) < info.st_size:
            part = os.read(fd, info.st_size - len(data))
            if not part:
                break
            data += part
    except OSError as err:
        raise StoreError(f"'{path}' cannot be read: {err.strerror}") from None
    finally:
        os.close(fd)
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _value in pairs]
        raise ValueError(f"key '{next(key for key in keys if keys.count(key) > 1)}' occurs twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object, no key twice, no NaN; raises StoreError with what it is."""
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except (ValueError, RecursionError) as err:
        raise StoreError(f"{what} is not valid JSON: {err}") from None
    if not isinstance(value, dict):
        raise StoreError(f"{what} is not a JSON object")
    return value


def read_object(path: Union[Path, str], limit: int = 1 << 20) -> dict[str, Any]:
    """A JSON object in a regular file."""
    return parse_object(read_regular(path, limit), f"'{path}'")


@contextlib.contextmanager
def as_store_error(what: str) -> Iterator[None]:
    """OSError -> StoreError('what: reason')."""
    try:
        yield
    except OSError as err:
        raise StoreError(f"{what}: {err.strerror or err}") from err
