# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk's image file goes back to what it was: made beside it, exchanged by rename, undone.

Under the guest's name there is always a whole image. The old one stays aside, under a name of its
own in the same folder, until finish().
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import RestoreError
from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files

#: The slowest that a copy may be and not count as stuck, in bytes a second; and what is added.
_SLOWEST, _LIMIT = 10 << 20, 60.0


@dataclass(frozen=True)
class Exchange:
    """One disk. source: the snapshot's image, '' where it
    has none in the store. path: the guest's image, no symbolic link.

    fresh and aside: names beside it, of the new image in the making and of the old one. bytes: the
    most that the new image takes. options: what qemu-img is told of the new one's format.
    """

    label: str
    source: str
    path: str
    format: str
    options: str
    bytes: int
    fresh: str
    aside: str
    #: The first journals do not have it.
    source_format: str = "qcow2"

    def noted(self) -> dict[str, Any]:
        """For the journal; exchange_of() reads it."""
        return asdict(self)


def exchange_of(about: Mapping[str, Any]) -> Exchange:
    """From noted()."""
    known = {each.name for each in fields(Exchange)}
    return Exchange(**{name: value for name, value in about.items() if name in known})


def beside(path: str, mark: str) -> tuple[str, str]:
    """(fresh, aside) of an image, for a restore with that mark. Pure."""
    folder, name = os.path.split(path)
    stem = f"{folder}/.{name}.livesnap-{mark}"
    return f"{stem}.new", f"{stem}.old"


def make(exchange: Exchange, qemu_img: str, fetch: Callable[[str, float], None]) -> None:
    """The new image, beside the old one and not in use yet: whole and durable, root's alone.

    `fetch` copies a disk that is not in the store into an empty file, within so many seconds.
    """
    with files.as_store_error(f"'{exchange.fresh}' cannot be made"):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(exchange.fresh, flags, 0o600))
    limit = _LIMIT + exchange.bytes / _SLOWEST
    if exchange.source:
        _convert(exchange, qemu_img, limit)
    else:
        fetch(exchange.fresh, limit)
    with files.as_store_error(f"'{exchange.fresh}' cannot be completed"):
        os.chmod(exchange.fresh, 0o600)
        files.sync_file(Path(exchange.fresh))


def _convert(exchange: Exchange, qemu_img: str, limit: float) -> None:
    argv = [qemu_img, "convert", "-q", "-f", exchange.source_format, "-O", exchange.format]
    argv += ["-o", exchange.options] if exchange.options else []
    done = run_bounded([*argv, exchange.source, exchange.fresh], limit)
    if done.problem or done.code != 0:
        raise RestoreError(
            f"disk '{exchange.label}' cannot be copied to '{exchange.fresh}': 'qemu-img convert'"
            f" {done.problem or 'failed: ' + done.words}"
        )


def put(exchange: Exchange) -> None:
    """The new image takes the old one's place, owner, mode and labels. Nobody has either open."""
    with files.as_store_error(f"'{exchange.path}' cannot be exchanged"):
        _dress(exchange.path, exchange.fresh)
        try:
            # A second name first: so the image's own name always leads to a whole one.
            os.link(exchange.path, exchange.aside)
        except OSError as err:
            if err.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            os.rename(exchange.path, exchange.aside)
        os.rename(exchange.fresh, exchange.path)
        files.sync_folder(Path(exchange.path).parent)


def _dress(old: str, new: str) -> None:
    """Owner, mode and extended attributes (labels, access lists) of a file for another."""
    about = os.lstat(old)
    os.chown(new, about.st_uid, about.st_gid)
    os.chmod(new, stat.S_IMODE(about.st_mode))
    try:
        names = os.listxattr(old, follow_symlinks=False)
    except OSError as err:
        if err.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        names = []
    for name in names:
        os.setxattr(new, name, os.getxattr(old, name, follow_symlinks=False))


def put_back(exchange: Exchange) -> bool:
    """Undo make() and put(), however far they came; whether the old image had been exchanged."""
    exchanged = False
    with files.as_store_error(f"'{exchange.aside}' cannot be put back as '{exchange.path}'"):
        if os.path.lexists(exchange.aside):
            exchanged = not _same(exchange.aside, exchange.path)
            os.rename(exchange.aside, exchange.path)
            # rename(2) of two names of one file does nothing.
            _remove(exchange.aside)
        _remove(exchange.fresh)
        files.sync_folder(Path(exchange.path).parent)
    return exchanged


def finish(exchange: Exchange) -> None:
    """The new image stays: what was kept aside goes."""
    with files.as_store_error(f"'{exchange.aside}' cannot be removed"):
        _remove(exchange.fresh)
        _remove(exchange.aside)


def left(exchanges: Sequence[Exchange]) -> list[str]:
    """The old images that lie aside."""
    return [each.aside for each in exchanges if os.path.lexists(each.aside)]


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except FileNotFoundError:
        return False


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
