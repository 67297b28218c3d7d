# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A QMP server whose event comes before its first reply, as a busy QEMU's may."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from pathlib import Path

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.qmp import Qmp
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import QmpConnectError

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""},
                    "capabilities": []}}
EVENT = {"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 2}}


def line(message: object) -> bytes:
    return json.dumps(message).encode() + b"\n"


def serve(listener: socket.socket, events: list[bool]) -> None:
    for event in events:
        connection, _unused = listener.accept()
        with connection:
            # The client goes away when it sees the event; what is sent then is lost.
            with contextlib.suppress(OSError):
                connection.sendall(line(GREETING))
                connection.recv(4096)
                connection.sendall((line(EVENT) if event else b"") + line({"return": {}}))
                connection.recv(4096)


@pytest.mark.parametrize(("events", "right"), [([True, False], True), ([True, True], False)])
def test_event_before_the_first_reply(tmp_path: Path, events: list[bool], right: bool) -> None:
    path = tmp_path / "qmp"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener, events), daemon=True)
        thread.start()
        if right:
            with Qmp.connect(str(path), timeout=10.0, require_qemu=False) as qmp:
                assert qmp.version == (7, 2, 0)
        else:
            with pytest.raises(QmpConnectError, match="does not speak QMP"):
                Qmp.connect(str(path), timeout=10.0, require_qemu=False)
        thread.join(10.0)
        assert not thread.is_alive()
