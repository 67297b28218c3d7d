# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest is left on the images that it began with, and these without a trace of livesnap."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Optional

from ansible_collections.livesnap.qemu.plugins.module_utils import _remove
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import (
    bitmaps,
    layers,
    outside,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.internal import Internal
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.leftovers import PREFIX
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.overlay import Overlay
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    QmpConnectError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.address import Address
from ansible_collections.livesnap.qemu.plugins.module_utils._store import listing, names
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store

#: Schemes whose snapshots are in the guest's own images, or among them.
_IN_IMAGES = (Internal.NAME, Overlay.NAME)


def flatten(store: str, guest: str, address: Address, apply: bool) -> Iterator[str]:
    """Remove what a guest has of ours in its images and beside them; one sentence each, as it is
    done or (not `apply`) would be.

    Snapshots that are whole without these images stay. LivesnapError where something is left.
    """
    place = Store(store)
    making = [
        name
        for name in place.entries(guest)[1]
        if listing.in_progress(place, guest, name) is not None
    ]
    if making:
        raise RefusedError(
            f"snapshot '{making[0]}' of guest '{guest}' is in the making",
            "wait for its end, or abort it (state: absent)",
            "making",
        )
    # A socket of QMP serves one at a time, and whoever removes snapshots needs it as well.
    with _connected(address):
        pass
    # What is inside an image, or upon it, stands in the way of what was taken before.
    gone: list[str] = []
    for name in _in_images(place, guest):
        yield _remove.remove_complete(place, guest, name, apply, gone)
        gone.append(name)
    with _connected(address) as qmp:
        if qmp is not None:
            yield from _bitmaps(qmp, apply)
            if apply:
                _check(qmp, guest, store)


def _in_images(store: Store, guest: str) -> list[str]:
    """Names of the snapshots that go, the newest first."""
    found = []
    for about in listing.list_snapshots(str(store.root), guest):
        folder = store.snapshot(guest, about["name"])
        noted = about["in_progress"] is None and outside.is_noted(folder)
        disks = outside.read(folder)["disks"] if noted else []
        if any(disk["scheme"] in _IN_IMAGES for disk in disks):
            found.append(about["name"])
    return found


@contextlib.contextmanager
def _connected(address: Address) -> Iterator[Optional[Connection]]:
    """The guest's QEMU; None of a libvirt domain that is off, which has no bitmaps of ours."""
    with contextlib.ExitStack() as stack:
        qmp: Optional[Connection] = None
        try:
            qmp = stack.enter_context(address.connect())
        except QmpConnectError as err:
            if err.kind != "off":
                raise
        yield qmp


def _bitmaps(qmp: Connection, apply: bool) -> list[str]:
    if apply:
        return [f"removed {each}" for each in bitmaps.remove_all(qmp, PREFIX)]
    return [
        f"removed dirty bitmap '{each['name']}'"
        for node in bitmaps.of_nodes(qmp).values()
        for each in node.get("dirty-bitmaps", ())
        if str(each.get("name", "")).startswith(PREFIX)
    ]


def _check(qmp: Connection, guest: str, store: str) -> None:
    left = [
        layer.file
        for stack in layers.stacks(qmp)
        for layer in stack.layers
        if names.is_layer(layer.file)
    ]
    if left:
        raise LivesnapError(
            f"guest '{guest}' still stands on '{left[0]}', of which store '{store}' does not know",
            "is there another store with snapshots of it?",
        )
