# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest goes back to a snapshot through Ansible, when it is asked for in so many words."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from guests import entry, files, snapshot
from lab import Guest
from runs import Controller, local, play
from test_each_option import own, returned, undocumented

RESTORE = "livesnap.qemu.livesnap_restore"


def test_in_place(prepared: Controller, guest: Guest, tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    there = local(livesnap_guests=[entry(guest, "web1")], livesnap_store=str(tmp_path))
    prepared.playbook(there, play(snapshot(guest, "web1", "one", tmp_path))).good()
    before, state = files(tmp_path), guest.counts()
    asked = ("-e", "restore_guest=web1", "-e", "restore_in_place=true")
    playbook = "livesnap.qemu.restore"
    vague = prepared.playbook(there, playbook, *asked)
    assert vague.code != 0 and "say which snapshot" in vague.text
    named = (*asked, "-e", "restore_snapshot=one")
    planned = prepared.playbook(there, playbook, *named, "--check", "--diff").good().one(RESTORE)
    assert planned["changed"] is True and planned["pid"] == guest.pid
    assert files(tmp_path) == before and guest.ask()["counter"] > state["counter"]
    done = prepared.playbook(there, playbook, *named).good().one(RESTORE)
    try:
        assert undocumented(returned("livesnap_restore"), own(done)) == []
        assert (done["changed"], done["running"], done["recovered"]) == (True, True, [])
        assert done["actions"] == [
            f"took snapshot '{done['kept']}' of guest 'web1'",
            "took guest 'web1' back to snapshot 'one'"]  # fmt: skip
        assert done["diff"]["before"] == {"state": f"of now, kept as '{done['kept']}'"}
        now = guest.counts()
        assert now["boot"] == state["boot"] and done["pid"] != guest.pid
    finally:
        os.kill(done["pid"], signal.SIGKILL)
