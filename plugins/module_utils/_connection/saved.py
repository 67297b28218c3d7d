# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain from a save file, by libvirt's own restore."""

from __future__ import annotations

import contextlib

from ansible_collections.livesnap.qemu.plugins.module_utils import _deps
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import (
    bounded,
    open_libvirt,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LibvirtError,
    QmpTimeout,
)

_CLOSE_LIMIT = 2.0


def restore(uri: str, path: str, timeout: float) -> None:
    """Make the domain of a save file, and leave it paused with all of its state loaded.

    It is transient unless one of its name and UUID is defined. LibvirtError: libvirt said no, and
    there is no such domain. QmpTimeout: it may still come.
    """
    connection = open_libvirt(uri)
    flags = _deps.libvirt.VIR_DOMAIN_SAVE_PAUSED
    try:
        bounded(lambda: connection.restoreFlags(path, None, flags), timeout)
    except TimeoutError:
        raise QmpTimeout(
            f"libvirt at '{uri}' did not restore '{path}' within {timeout:g} s",
            "is the storage under it, or under the domain's disks, slow or stuck?",
        ) from None
    except _deps.libvirt.libvirtError as err:
        raise LibvirtError(
            f"libvirt at '{uri}' cannot restore the domain: {err.get_error_message()}",
            code=err.get_error_code(),
        ) from None
    finally:
        with contextlib.suppress(TimeoutError, _deps.libvirt.libvirtError):
            bounded(connection.close, _CLOSE_LIMIT)
