# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest restored by stock QEMU alone, from a migration stream and copies of its disks."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from .agent import AgentError
from .disks import image_format
from .errors import LabError
from .guest import DiskSpec, Guest
from .images import put_images


class Incoming(Guest):
    """The original's command line in a folder of its own, with overlays on images and `-incoming`.

    start() returns when it runs, thawed, its agent answering. of_paused: the stream is of a guest
    that its operator had stopped, and is continued here.
    """

    def __init__(self, original: Guest, stream: Path, images: Sequence[Path],
                 of_paused: bool = False) -> None:
        self._images = images
        self._of_paused = of_paused
        options = dataclasses.replace(
            original.options, user="", sandbox=False, paused=False, accel=original.accel,
            disks=tuple(DiskSpec(format="qcow2") for _unused in images),
            args=(*original.options.args, "-incoming", f"exec:cat {shlex.quote(str(stream))}"))
        super().__init__(options)

    def _make_files(self) -> None:
        self.folder.chmod(0o755)
        put_images(self.folder, self.options.packed)
        for overlay, image in zip(self.disk_paths, self._images):
            subprocess.run(
                ["qemu-img", "create", "-q", "-f", "qcow2", "-F", image_format(image), "-b",
                 str(image), str(overlay)], check=True, capture_output=True, timeout=60)

    def start(self, wait: bool = True, limit: float = 60.0) -> Incoming:
        """Starts QEMU and, unless wait=False, waits until the guest runs and thaws it."""
        super().start(wait=False)
        if not wait:
            return self
        try:
            self._wait_running(time.monotonic() + limit)
            if self.agent_path is not None:
                self.thaw(limit)
        except BaseException:
            self.stop()
            raise
        return self

    def _wait_running(self, deadline: float) -> None:
        while True:
            with self.look() as qmp:
                status = qmp.status()
                if status == "paused" and self._of_paused:
                    qmp.execute("cont")
            if status == "running":
                return
            self.check_alive()
            if time.monotonic() > deadline:
                raise LabError(f"the restored guest is '{status}'")
            time.sleep(0.05)

    def thaw(self, limit: float = 30.0) -> None:
        """Thaws the guest if it was frozen at the instant."""
        self.wait_agent(limit)
        with self.agent() as agent:
            if agent.freeze_status() != "thawed":
                agent.execute("guest-fsfreeze-thaw", timeout=limit)
            if agent.freeze_status() != "thawed":
                raise AgentError("the restored guest could not be thawed")
