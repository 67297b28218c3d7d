# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A libvirt domain: QMP by libvirt's passthrough; what libvirt must know of, by its own calls.

libvirt's calls have no limits of their own. Each runs in a thread, and its caller waits for so long
and no longer; after that the connection is dead, and the thread ends when libvirt answers. Events
come by libvirt's event loop, in a thread too: they are in order among themselves, but one may come
a moment after the reply to a later command (see events_to). Connect after the last fork.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import threading
import time
from typing import Any, Callable, Mapping, Optional, TypeVar

from ansible_collections.livesnap.qemu.plugins.module_utils import _deps
from ansible_collections.livesnap.qemu.plugins.module_utils._connection import _peer
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LibvirtError,
    LivesnapError,
    QmpCommandError,
    QmpConnectError,
    QmpDisconnected,
    QmpError,
    QmpTimeout,
    RefusedError,
)

T = TypeVar("T")

#: Passing descriptors with a monitor command came with libvirt 8.2.
_OLDEST = (8, 2, 0)
_CLOSE_LIMIT = 2.0
_POLL = 0.25
#: Seconds between libvirt's keep-alive messages, and how many may stay unanswered.
_KEEPALIVE = (2, 3)


@functools.lru_cache(maxsize=1)
def _start_loop() -> int:
    """libvirt's event loop, once a process, which is returned; connections come after that."""
    # It prints every error; ours are exceptions.
    _deps.libvirt.registerErrorHandler(lambda context, error: None, None)
    _deps.libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_turn, name="libvirt-events", daemon=True).start()
    return os.getpid()


def _turn() -> None:
    while True:
        with contextlib.suppress(_deps.libvirt.libvirtError):
            _deps.libvirt.virEventRunDefaultImpl()


#: Calls that were given up on; libvirt may still carry them out.
_given_up: list[threading.Thread] = []


def bounded(call: Callable[[], T], timeout: float) -> T:
    """What `call` returns or raises, or TimeoutError after so many seconds; it then runs on."""
    answer: queue.SimpleQueue[tuple[Optional[T], Optional[BaseException]]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answer.put((call(), None))
        except BaseException as err:  # noqa: BLE001 - raised again where it is waited for
            answer.put((None, err))

    thread = threading.Thread(target=work, name="libvirt-call", daemon=True)
    thread.start()
    try:
        value, error = answer.get(timeout=timeout)
    except queue.Empty:
        _given_up.append(thread)
        raise TimeoutError from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


class Domain(Connection):
    """A conversation with libvirt about one domain."""

    prompt_events = False
    exclusive = False

    def __init__(self, uri: str) -> None:
        """Not connected yet: see connect()."""
        self.uri = uri
        self.name = ""
        self.uuid = ""
        self._connection: Any = None
        self._domain: Any = None
        self._callback: Optional[int] = None
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._dead = ""

    @classmethod
    def find(cls, uri: str, name: str, timeout: float = 10.0) -> Domain:
        """Connect to libvirt, and find the domain of that name or UUID, whether it runs or not.

        Calls only: no commands and no events. QmpConnectError: `kind` is denied (no libvirt there)
        or missing (no such domain).
        """
        domain = cls(uri)
        try:
            domain._open(name, timeout)
        except BaseException:
            domain.close()
            raise
        return domain

    @classmethod
    def connect(cls, uri: str, name: str, timeout: float = 10.0) -> Domain:
        """find(), for a conversation with its QEMU. QmpConnectError `off`: it does not run."""
        end = time.monotonic() + timeout
        domain = cls.find(uri, name, timeout)
        try:
            domain._begin(max(0.1, end - time.monotonic()))
        except BaseException:
            domain.close()
            raise
        return domain

    def _open(self, name: str, timeout: float) -> None:
        self._connection = open_libvirt(self.uri, timeout)
        self._domain = ask(self.uri, lambda: lookup(self._connection, self.uri, name), timeout)
        self.name, self.uuid = self._domain.name(), self._domain.UUIDString()

    def _begin(self, timeout: float) -> None:
        self.peer_pid = self.qemu(timeout)
        self.call("events", self._listen, timeout)
        found = self.execute("query-version", timeout=timeout)
        number = found["qemu"]
        self.version = (int(number["major"]), int(number["minor"]), int(number["micro"]))
        self.package = str(found.get("package", ""))

    def qemu(self, timeout: float = 10.0) -> int:
        """Pid of its QEMU; QmpConnectError `off` where it has none."""
        if not self.call("isActive", lambda domain: domain.isActive(), timeout):
            raise QmpConnectError(
                "off", f"libvirt domain '{self.name}' does not run", "start it first"
            )
        return qemu_of(self.name, self.uuid)

    def xml(self, timeout: float = 10.0) -> str:
        """The domain as it runs, secrets (a console's password) included."""
        flags = _deps.libvirt.VIR_DOMAIN_XML_SECURE
        return str(self.call("dumpxml", lambda domain: domain.XMLDesc(flags), timeout))

    def definition(self) -> str:
        """What libvirt starts it with, whether it runs or not; secrets included."""
        flags = _deps.libvirt.VIR_DOMAIN_XML_SECURE | _deps.libvirt.VIR_DOMAIN_XML_INACTIVE
        return str(self.call("dumpxml", lambda domain: domain.XMLDesc(flags)))

    def define(self, xml: str) -> None:
        """Have libvirt start it with that from now on."""
        self.call("defineXML", lambda domain: domain.connect().defineXML(xml))

    def wait_idle(self, timeout: float) -> None:
        """Until no job (a migration, a save, a backup) is under way on it, or RefusedError."""
        end = time.monotonic() + timeout
        while self.call("jobInfo", lambda domain: domain.jobInfo())[0]:
            if time.monotonic() >= end:
                raise RefusedError(
                    f"libvirt is busy with a job on domain '{self.name}' (waited {timeout:g} s)",
                    f"see 'virsh domjobinfo {self.name}', and try again when it has ended",
                    "job",
                )
            time.sleep(_POLL)

    def _listen(self, domain: Any) -> None:
        self._connection.setKeepAlive(*_KEEPALIVE)
        self._callback = _deps.libvirt_qemu.qemuMonitorEventRegister(
            self._connection, domain, None, self._on_event, None, 0
        )

    def _on_event(
        self,
        connection: Any,
        domain: Any,
        event: str,
        seconds: int,
        micros: int,
        details: Optional[str],
        opaque: Any,
    ) -> None:
        self._events.put(
            {
                "event": event,
                "timestamp": {"seconds": seconds, "microseconds": micros},
                "data": json.loads(details) if details else {},
            }
        )

    def call(self, what: str, function: Callable[[Any], T], timeout: float = 10.0) -> T:
        """A call of libvirt's on its virDomain; LibvirtError, QmpTimeout or QmpDisconnected."""
        if self._dead:
            raise QmpDisconnected(f"the connection to libvirt is gone: {self._dead}")
        try:
            return bounded(lambda: function(self._domain), timeout)
        except TimeoutError:
            self._dead = f"no reply to '{what}' within {timeout:g} s"
            raise QmpTimeout(
                f"libvirt did not answer '{what}' for domain '{self.name}' within {timeout:g} s",
                "QEMU's main loop may be stuck in storage I/O, or libvirtd hangs",
            ) from None
        except _deps.libvirt.libvirtError as err:
            raise self._failure(what, err) from None

    def _failure(self, what: str, err: Any) -> QmpError:
        libvirt = _deps.libvirt
        code, said = err.get_error_code(), err.get_error_message()
        lost = err.get_error_domain() == libvirt.VIR_FROM_RPC or code == libvirt.VIR_ERR_RPC
        if lost or not self._connection.isAlive():
            self._dead = f"it ended during '{what}' ({said})"
            return QmpDisconnected(f"the connection to libvirt ended during '{what}': {said}")
        return LibvirtError(f"libvirt refused '{what}' for '{self.name}': {said}", code=code)

    def execute(
        self, cmd: str, arguments: Optional[Mapping[str, Any]] = None, timeout: float = 10.0
    ) -> Any:
        request = _request(cmd, arguments)
        text = self.call(
            cmd, lambda domain: _deps.libvirt_qemu.qemuMonitorCommand(domain, request, 0), timeout
        )
        return _reply(cmd, text)

    def execute_with_fd(
        self, cmd: str, arguments: Mapping[str, Any], fd: int, timeout: float = 10.0
    ) -> Any:
        request = _request(cmd, arguments)
        text, _files = self.call(
            cmd,
            lambda domain: _deps.libvirt_qemu.qemuMonitorCommandWithFiles(
                domain, request, [fd], 0
            ),
            timeout,
        )
        return _reply(cmd, text)

    def stop(self, timeout: float = 10.0) -> None:
        self.call("suspend", lambda domain: domain.suspend(), timeout)

    def cont(self, timeout: float = 10.0) -> None:
        self.call("resume", lambda domain: domain.resume(), timeout)

    def events(self, wait: float = 0.0) -> list[dict[str, Any]]:
        found = []
        with contextlib.suppress(queue.Empty):
            if wait > 0:
                found.append(self._events.get(timeout=wait))
            while True:
                found.append(self._events.get_nowait())
        return found

    def settle(self, timeout: float) -> bool:
        end = time.monotonic() + timeout
        waited = bool(_given_up)
        for thread in _given_up:
            thread.join(max(0.0, end - time.monotonic()))
        _given_up[:] = [thread for thread in _given_up if thread.is_alive()]
        return waited

    @property
    def dead(self) -> bool:
        return bool(self._dead)

    def close(self) -> None:
        self._dead = self._dead or "it was closed"
        connection, self._connection = self._connection, None
        callback, self._callback = self._callback, None
        if connection is None:
            return

        def end() -> None:
            if callback is not None:
                _deps.libvirt_qemu.qemuMonitorEventDeregister(connection, callback)
            connection.close()

        with contextlib.suppress(TimeoutError, _deps.libvirt.libvirtError):
            bounded(end, _CLOSE_LIMIT)


def as_domain(connection: Connection) -> Domain:
    """The connection of a guest that is libvirt's."""
    if not isinstance(connection, Domain):
        raise AssertionError
    return connection


def check_uri(uri: str) -> None:
    """Refuse what is not this machine's libvirt; nothing is connected."""
    if _deps.libvirt is None:
        raise LivesnapError(
            "Python package 'libvirt' is missing, and the guest has no qmp_socket",
            _deps.LIBVIRT_HINT,
        )
    scheme, _sep, rest = uri.partition("://")
    if scheme not in ("qemu", "qemu+unix") or not rest.startswith("/"):
        raise LivesnapError(
            f"uri '{uri}' is not of this machine's libvirt and QEMU",
            "modules run on the hypervisor: give qemu:///system",
        )


def open_libvirt(uri: str, timeout: float = 10.0) -> Any:
    """A connection to this machine's libvirt. QmpConnectError `denied`: none that would do."""
    check_uri(uri)
    if _start_loop() != os.getpid():
        raise AssertionError("libvirt was used before the fork, and its loop is the parent's")
    connection = ask(uri, lambda: _deps.libvirt.open(uri), timeout)
    try:
        version = dotted(ask(uri, connection.getLibVersion, timeout))
        if version < _OLDEST:
            raise QmpConnectError(
                "denied",
                f"libvirt {'.'.join(map(str, version))} cannot pass descriptors to QEMU",
                f"livesnap needs libvirt {'.'.join(map(str, _OLDEST))}",
            )
    except BaseException:
        connection.close()
        raise
    return connection


def ask(uri: str, call: Callable[[], T], timeout: float) -> T:
    """What a call to libvirt, which is of no domain yet, returns; else QmpConnectError `denied`."""
    try:
        return bounded(call, timeout)
    except TimeoutError:
        raise QmpConnectError(
            "denied", f"libvirt at '{uri}' did not answer within {timeout:g} s"
        ) from None
    except _deps.libvirt.libvirtError as err:
        raise QmpConnectError(
            "denied",
            f"libvirt at '{uri}' cannot be reached: {err.get_error_message()}",
            "is libvirtd (or virtqemud) running?",
        ) from None


def dotted(number: int) -> tuple[int, ...]:
    """The parts of a version as libvirt counts it: 9000000 is 9.0.0. Pure."""
    return (number // 1000000, number // 1000 % 1000, number % 1000)


def lookup(connection: Any, uri: str, name: str) -> Any:
    """The virDomain of a name or, failing that, a UUID; QmpConnectError `missing`."""
    libvirt = _deps.libvirt
    for find in (connection.lookupByName, connection.lookupByUUIDString):
        try:
            return find(name)
        except libvirt.libvirtError as err:
            # What is no UUID at all is another error than one that nobody has.
            if err.get_error_code() not in (
                libvirt.VIR_ERR_NO_DOMAIN,
                libvirt.VIR_ERR_INVALID_ARG,
            ):
                raise
    raise QmpConnectError(
        "missing",
        f"libvirt at '{uri}' has no domain '{name}'",
        "see 'virsh list --all'; a guest of its own QMP socket needs qmp_socket",
    )


def qemu_of(name: str, uuid: str) -> int:
    """The process of a domain: the only one with that name and UUID."""
    found = _peer.domain_processes(name, uuid)
    if len(found) != 1:
        pids = ", ".join(str(pid) for pid in found) or "none"
        raise QmpConnectError(
            "not_qemu",
            f"the QEMU of libvirt domain '{name}' cannot be told: processes with its name and UUID"
            f" {uuid}: {pids}",
            "is it a container's, or are there two of them?",
        )
    return found[0]


def _request(cmd: str, arguments: Optional[Mapping[str, Any]]) -> str:
    request: dict[str, Any] = {"execute": cmd}
    if arguments:
        request["arguments"] = dict(arguments)
    return json.dumps(request)


def _reply(cmd: str, text: str) -> Any:
    reply = json.loads(text)
    error = reply.get("error")
    if error is not None:
        raise QmpCommandError(cmd, str(error.get("class", "")), str(error.get("desc", "")))
    return reply["return"]
