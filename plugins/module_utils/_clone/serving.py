# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Main RAM for a clone that runs already: livesnap-helper brings what its guest asks for.

It is what mapping an image is where that cannot be mapped: compressed, or of a QEMU that is not
root's. The clone does not outlive its server: a guest never sees zeros where it had memory.
"""

from __future__ import annotations

from ansible_collections.livesnap.qemu.plugins.module_utils import _scope
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.launch import Running
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.source import Source
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.qmp import Qmp
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import HelperError
from ansible_collections.livesnap.qemu.plugins.module_utils._helper import HelperProcess

#: Seconds until the first page can be brought: RAM is looked for in QEMU, which is attached to.
_LIMIT = 20.0


def serve(
    running: Running, qmp: Qmp, helper: str, source: Source, asked_only: bool, log: str
) -> str:
    """Before its QEMU gets the stream, which then has to be without those pages.

    asked_only: nothing is brought that the guest does not ask for, and the server stays until it
    ends; otherwise until all is there. log: for its last words. '' or why this QEMU cannot be
    served; HelperError for all else, with which QEMU may have ended.
    """
    arguments = ["serve", "--pid", str(running.pid), "--start-time", str(running.start_time)]
    arguments += ["--block", source.main_block, "--ramblock", qmp.hmp("info ramblock")]
    arguments += ["--asked-only"] if asked_only else []
    server = running.server = HelperProcess(helper, [*arguments, source.folder], log)
    server.close_input()
    try:
        sentinel = int(server.wait_for("serving", _LIMIT)["sentinel"])
    except HelperError as err:
        if err.word != "refused":
            raise
        running.server = None
        server.end(_LIMIT)
        return err.msg
    name, about = f"livesnap-serve-{server.pid}", f"RAM of livesnap clone {running.pid}"
    _scope.move(server.pid, name, about, others=[sentinel])
    return ""
