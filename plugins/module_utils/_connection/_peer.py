# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is at the other end of a Unix socket: connects within a limit, looks the peer up in /proc.

/proc/net/unix has a line for each socket: flags (10000 when it listens), state, inode, and the
path as it was bound. A connection that nobody has accepted yet has the path of its listener and
inode 0 (net/unix/af_unix.c, unix_seq_show), which tells a busy QMP socket from one that is not QMP.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import struct
import time
from dataclasses import dataclass

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import QmpConnectError

_QEMU_NAME = re.compile(r"(qemu-system-[\w-]+|qemu-kvm|qemu|kvm)(\.\S+)?( \(deleted\))?")
_LISTENS = 0x10000

BUSY_HINT = "QEMU serves one client at a time: end that client, or give QEMU one more -qmp socket"


@dataclass(frozen=True)
class UnixSocket:
    """A line of /proc/net/unix that has a path."""

    listens: bool
    inode: int
    path: str


def parse_proc_net_unix(text: str) -> list[UnixSocket]:
    """The sockets with a path. Pure."""
    found = []
    for line in text.splitlines()[1:]:
        field = line.split(None, 7)
        if len(field) == 8:
            found.append(UnixSocket(bool(int(field[3], 16) & _LISTENS), int(field[6]), field[7]))
    return found


def connect_unix(path: str, timeout: float, what: str = "QMP socket") -> socket.socket:
    """A connected, non-blocking stream socket, or QmpConnectError.

    Bounded by `timeout` seconds even when the listener's backlog is full.
    """
    subject = f"{what} '{path}'"
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise QmpConnectError(
            "missing", f"{subject} does not exist", "is the guest running, and the path its own?"
        ) from None
    except OSError as err:
        raise QmpConnectError("denied", f"{subject} cannot be reached: {err.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise QmpConnectError("not_socket", f"{subject} is not a socket", "give the guest's socket")
    deadline = time.monotonic() + timeout
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        while True:
            try:
                _connect(sock, path)
                return sock
            except BlockingIOError:
                # The listener's backlog is full: others wait before us.
                if time.monotonic() >= deadline:
                    raise QmpConnectError(
                        "busy",
                        f"{subject} is held by another client, and others wait for it"
                        f" (waited {timeout:g} s)",
                        BUSY_HINT,
                    ) from None
                time.sleep(0.02)
    except OSError as err:
        sock.close()
        if err.errno == errno.ECONNREFUSED:
            raise QmpConnectError(
                "refused",
                f"{subject} refuses connections: no process listens on it",
                "is the guest running?",
            ) from None
        if err.errno == errno.EPROTOTYPE:
            raise QmpConnectError("not_qmp", f"{subject} is not a stream socket") from None
        raise QmpConnectError("denied", f"{subject} cannot be connected: {err.strerror}") from None
    except BaseException:
        sock.close()
        raise


def _connect(sock: socket.socket, path: str) -> None:
    """connect(2); a path longer than sun_path (107 bytes) goes by a descriptor of its folder."""
    if len(os.fsencode(path)) <= 107:
        sock.connect(path)
        return
    folder = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    finally:
        os.close(folder)


def peer_credentials(sock: socket.socket) -> tuple[int, int, int]:
    """pid, uid and gid of the process that called listen(2) (SO_PEERCRED)."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", raw)
    return pid, uid, gid


def is_qemu(pid: int) -> bool:
    """Whether a process is a QEMU that runs guests, by its executable."""
    try:
        exe = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return False
    return _QEMU_NAME.fullmatch(exe) is not None


def held_inodes(pid: int) -> set[int]:
    """Inodes of the sockets that a process has open."""
    inodes: set[int] = set()
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return inodes
    for name in names:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(int(target[8:-1]))
    return inodes


def sockets_of(pid: int, path: str) -> list[UnixSocket]:
    """The sockets of that name in the process's network namespace.

    By base name: recorded is the path as it was bound, perhaps relative, or in another root.
    """
    try:
        with open(f"/proc/{pid}/net/unix", encoding="utf-8", errors="surrogateescape") as file:
            table = parse_proc_net_unix(file.read())
    except OSError:
        return []
    names = {os.path.basename(path), os.path.basename(os.path.realpath(path))}
    return [entry for entry in table if os.path.basename(entry.path) in names]


def listening_qemu(sock: socket.socket, path: str) -> int:
    """Pid of the QEMU process that listens on this socket, or 0.

    It is the peer itself, or whoever has the socket open that a manager made and handed down.
    """
    peer = peer_credentials(sock)[0]
    named = [entry for entry in sockets_of(peer or os.getpid(), path) if entry.listens]
    # Others have sockets of the same base name: the very path decides where it was recorded.
    exact = {entry.inode for entry in named if entry.path in (path, os.path.realpath(path))}
    listeners = exact or {entry.inode for entry in named}
    if peer and is_qemu(peer) and (not listeners or listeners & held_inodes(peer)):
        return peer
    if not listeners:
        return 0
    for name in os.listdir("/proc"):
        if name.isdigit() and is_qemu(int(name)) and listeners & held_inodes(int(name)):
            return int(name)
    return 0


def qemu_of(sock: socket.socket, path: str) -> int:
    """Pid of the QEMU process that listens on a QMP socket, or QmpConnectError."""
    pid = listening_qemu(sock, path)
    if pid:
        return pid
    peer = peer_credentials(sock)[0]
    if is_ending(peer):
        # A moment later nobody would listen.
        raise QmpConnectError(
            "refused",
            f"QMP socket '{path}' belongs to {process_name(peer)}, which is ending",
            "is the guest running?",
        )
    raise QmpConnectError(
        "not_qemu",
        f"QMP socket '{path}' belongs to {process_name(peer)}, which is not a QEMU that runs a"
        " guest",
        "give the guest's own QMP socket",
    )


def is_ending(pid: int) -> bool:
    """Whether a process has no memory any more, and is there still: its sockets go later."""
    try:
        os.readlink(f"/proc/{pid}/exe")
    except FileNotFoundError:
        return os.path.exists(f"/proc/{pid}")
    except OSError:
        return False
    return False


def domain_processes(name: str, uuid: str) -> list[int]:
    """Pids of the QEMUs that were started for a libvirt domain of that name and UUID."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or not is_qemu(int(entry)):
            continue
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                argv = [os.fsdecode(word) for word in file.read().split(b"\0")]
        except OSError:
            continue
        if names_domain(argv, name, uuid):
            found.append(int(entry))
    return sorted(found)


def names_domain(argv: list[str], name: str, uuid: str) -> bool:
    """Whether a command line of libvirt's is of that domain: '-name guest=NAME,... -uuid UUID'.

    A comma in a name is doubled there. Pure.
    """
    values = dict(zip(argv, argv[1:]))
    named = values.get("-name", "")
    wanted = "guest=" + name.replace(",", ",,")
    return values.get("-uuid") == uuid and (named == wanted or named.startswith(wanted + ",debug-"))


def waits_in_backlog(pid: int, path: str) -> bool:
    """Whether some connection to this socket is still waiting to be accepted."""
    return any(entry.inode == 0 for entry in sockets_of(pid, path) if not entry.listens)


def process_name(pid: int) -> str:
    """For messages: the name of a process, or its number."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"{file.read().strip()} (pid {pid})"
    except OSError:
        return f"pid {pid}"
