# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tap devices that lead nowhere, as file descriptors.

A card that had a tap negotiated the virtio header with its guest, and QEMU refuses to restore it on
a backend without. A tap in a network namespace of its own has it, is connected with nothing, and is
gone with its last descriptor: the namespace lives as long as the device does.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import socket
import struct

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import CloneError

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_MULTI_QUEUE = 0x0100


def isolated_tap(queues: int) -> list[int]:
    """`queues` descriptors of one tap with the virtio header; the caller closes them.

    A short child makes it: a process of several threads cannot go back to its old namespace safely.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        child = os.fork()
        if child == 0:
            _child(theirs, queues)
        theirs.close()
        ours.settimeout(10.0)
        try:
            data, ancillary, _flags, _address = ours.recvmsg(
                256, socket.CMSG_SPACE(queues * array.array("i").itemsize)
            )
        except OSError as err:
            data, ancillary = str(err).encode(), []
        finally:
            os.waitpid(child, 0)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if data != b"ok" or len(fds) != queues:
        raise CloneError(
            "a tap device for an isolated network card cannot be made:"
            f" {data.decode('utf-8', 'replace')}",
            "is the kernel's tun module there?",
        )
    return list(fds)


def _child(sock: socket.socket, queues: int) -> None:
    """Never returns. Keeps to system calls: the parent's other threads are not here."""
    try:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare: " + os.strerror(ctypes.get_errno()))
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if queues > 1 else 0)
        fds = []
        for _unused in range(queues):
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"tap0", flags))
            fds.append(fd)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        sock.sendmsg([b"ok"], [rights])
    except OSError as err:
        sock.send(str(err).encode()[:256])
    finally:
        os._exit(0)
