# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A test guest of libvirt: Guest's kernel, disks and witness, in a QEMU that libvirt started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from . import disks, kept
from .console import BOOT_LIMIT, Console
from .errors import LabError
from .images import put_images
from .libvirtd import Libvirtd
from .options import TCG_CPU, Options
from .reach import Witnessed
from .virsh import VirshAgent, VirshMonitor

# What of Guest's options a domain has; for anything else there is XML.
_KNOWN = {"name", "memory", "buffer", "mixed", "calm", "cpus", "machine", "disks", "agent", "hook",
          "churn", "packed", "rest", "kernel_arguments"}


def _checked(given: dict[str, Any]) -> Options:
    if given.keys() - _KNOWN:
        raise LabError(f"a domain has no options {sorted(given.keys() - _KNOWN)}")
    return Options(**given)


class DomainReach(Witnessed):
    """A domain by its name, that something else made, such as a clone."""

    def __init__(self, libvirtd: Libvirtd, name: str, pid: int | None = None) -> None:
        self.libvirtd = libvirtd
        self.name = name
        self.pid = pid

    def virsh(self, command: str, *argv: str, limit: float = 60.0) -> str:
        """What a command of virsh about this domain prints; LabError if it fails or hangs."""
        return self.libvirtd.virsh(command, self.name, *argv, limit=limit)

    def qmp(self, timeout: float = 10.0) -> VirshMonitor:
        return VirshMonitor(self.libvirtd, self.name, timeout)

    def agent(self, timeout: float = 10.0) -> VirshAgent:
        return VirshAgent(self.libvirtd, self.name, timeout)


class Domain(Console, DomainReach):
    """A persistent domain of a libvirtd; keyword arguments are those of Options, as far as known.

    `devices` is XML for <devices>; `cpu` a model, where another machine has to have the same one.
    Use it as a context manager, or stop() it.
    """

    def __init__(
            self, libvirtd: Libvirtd, devices: str = "", cpu: str = "", **given: Any) -> None:
        self.cpu = cpu
        self.options = _checked(given)
        DomainReach.__init__(self, libvirtd, self.options.name)
        self.uuid = str(uuid.uuid4())
        # Short, as a socket's path has 107 characters, and reachable for QEMU's user.
        self.folder = Path(tempfile.mkdtemp(prefix="livesnap-lab-", dir="/tmp"))
        Console.__init__(self, self.folder, len(self.options.disks))
        self.disk_paths = [self.folder / f"disk{index}.{spec.format}"
                           for index, spec in enumerate(self.options.disks)]
        try:
            self.folder.chmod(0o755)
            put_images(self.folder, self.options.packed)
            for path, spec in zip(self.disk_paths, self.options.disks):
                disks.make(path, spec.mib, spec.format)
            self._as_made = disks.versions(self.disk_paths)
            (self.folder / "domain.xml").write_text(self._xml(devices))
            libvirtd.virsh("define", str(self.folder / "domain.xml"))
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _xml(self, devices: str) -> str:
        options = self.options
        kind, cpu = ("kvm", "<cpu mode='host-passthrough'/>") if self.libvirtd.kvm else ("qemu", "")
        if self.cpu or not cpu:
            cpu = ("<cpu mode='custom' match='exact' check='none'>"
                   f"<model>{self.cpu or TCG_CPU}</model></cpu>")
        for index, (path, disk) in enumerate(zip(self.disk_paths, options.disks)):
            devices += f"""
    <disk type='file' device='disk'>
      <driver name='qemu' type={quoteattr(disk.format)}/>
      <source file={quoteattr(str(path))}/>
      <target dev='vd{chr(ord("a") + index)}' bus='virtio'/>
      <serial>disk{index}</serial>
    </disk>"""
        if options.agent != "no port":
            devices += """
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>"""
        return f"""\
<domain type='{kind}'>
  <name>{escape(self.name)}</name>
  <uuid>{self.uuid}</uuid>
  <memory unit='MiB'>{options.memory}</memory>
  <vcpu>{options.cpus}</vcpu>
  <os>
    <type arch='x86_64' machine={quoteattr(options.machine)}>hvm</type>
    <kernel>{self.folder}/kernel.img</kernel>
    <initrd>{self.folder}/initrd.img</initrd>
    <cmdline>{escape(options.command_line())}</cmdline>
  </os>
  <features><acpi/></features>
  {cpu}
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <serial type='unix'>
      <source mode='bind' path='{self.serial_path}'/>
      <log file='{self.serial_log}' append='on'/>
    </serial>
    <memballoon model='none'/>{devices}
  </devices>
</domain>
"""

    def start(self, wait: bool = True, limit: float = BOOT_LIMIT) -> Domain:
        """Starts it; returns when the witness counts (wait=False: when libvirt has its QEMU)."""
        if self.alive:
            raise LabError("the guest runs already")
        boot = self._boot() if wait else None
        if boot and boot.there:
            boot.lend(self.folder, self.disk_paths, self.serial_log)
        mark = self._log_size()
        try:
            self.virsh("start", limit=limit)
            # libvirt writes it for itself, and removes it when the domain ends.
            pid_file = self.libvirtd.folder / "run" / "qemu" / f"{self.name}.pid"
            self.pid = int(pid_file.read_text())
            if boot and boot.there:
                boot.load(self.folder, self.look())
            if wait:
                self.wait_counting(mark, limit)
            if boot and boot.wanted:
                boot.keep(self.look(), self.disk_paths, self.serial_log)
        except BaseException:
            self.stop()
            raise
        return self

    def _boot(self) -> kept.Boot | None:
        """The boots of domains like this one, if it has never run."""
        if self.libvirtd.kvm or self._as_made != disks.versions(self.disk_paths):
            return None
        text = (self.folder / "domain.xml").read_text()
        for own in (str(self.folder), self.uuid, f"<name>{escape(self.name)}</name>"):
            text = text.replace(own, "")
        return kept.boot(text, self.options.memory)

    @property
    def alive(self) -> bool:
        """True while QEMU runs."""
        return self.pid is not None and os.path.exists(f"/proc/{self.pid}")

    def check_alive(self) -> None:
        if not self.alive:
            log = self.libvirtd.folder / "log" / "qemu" / f"{self.name}.log"
            said = log.read_text(errors="replace") if log.exists() else ""
            raise LabError(f"QEMU ended:\n{said[-2000:]}{self.serial_text()[-2000:]}")

    def look(self, timeout: float = 10.0) -> VirshMonitor:
        """The same: nobody holds a domain's monitor but libvirt."""
        return self.qmp(timeout)

    def shut_down(self) -> None:
        """Ends QEMU as `virsh destroy` does; the domain stays, and start() runs it again."""
        if self.pid is not None:
            self.virsh("destroy")
            self.pid = None

    def stop(self) -> None:
        """Ends QEMU, undefines the domain and removes its files. May be called twice."""
        try:
            with contextlib.suppress(LabError):
                # It may have ended of itself.
                self.virsh("destroy")
            with contextlib.suppress(LabError):
                self.virsh("undefine", "--managed-save", "--snapshots-metadata",
                           "--checkpoints-metadata", "--nvram")
        finally:
            # A test may have left it without its libvirtd.
            if self.alive and self.pid is not None:
                os.kill(self.pid, signal.SIGKILL)
            self.pid = None
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Domain:
        if self.pid is None:
            self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop()
