# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a test guest is to be, and the QEMU command line of that. No I/O here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

# What libvirt gives its guests, and the order of options in which QEMU wants them.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

# The kernel patches itself less for it than for one that can do all that TCG can: it boots sooner.
TCG_CPU = "qemu64"


@dataclass(frozen=True)
class DiskSpec:
    """A virtio-blk disk with an ext4. Serials and node names are `disk0`, `disk1`, ... in order."""

    mib: int = 64
    format: str = "raw"  # raw or qcow2
    folder: str = ""  # where its image is; "" is the guest's own folder

    def path(self, folder: Path, index: int) -> Path:
        """The image of a guest's disk with that number."""
        return Path(self.folder or folder) / f"disk{index}.{self.format}"


@dataclass(frozen=True)
class Options:
    """What a test guest has."""

    name: str = "witness"
    program: str = "qemu-system-x86_64"
    base: str = "/tmp"  # where the guest's folder is made
    memory: int = 256  # MiB
    buffer: int = 8  # MiB of the witness' buffer; 0: half of the RAM that Linux has
    mixed: bool = False  # half of the buffer's pages cannot be compressed
    calm: int = 0  # MiB that the witness fills besides its buffer, and leaves alone
    # ms, below 1000, that the witness rests after each MiB; an eighth of it for two seconds after
    # it was asked. At 200 it writes 5 MB/s, or 40 MB/s when asked, and takes a hundredth of a core
    # under TCG, or a twentieth; at 0 it writes forty times as much and takes all of one.
    rest: int = 200
    cpus: int = 1
    machine: str = "pc"
    machine_options: str = ""  # such as "max-ram-below-4g=512M"
    disks: tuple[DiskSpec, ...] = (DiskSpec(),)
    legacy_drives: bool = False  # -drive if=none, not -blockdev: QEMU makes up node names
    vga: bool = False
    net: bool = False
    agent: str = "run"  # run, none (a port, nobody behind it), hung, or "no port"
    hook: str = "ok"  # what the freeze hook in the guest does: ok or fail
    churn: bool = False  # make and remove files on the disks all the time
    user: str = ""  # run QEMU as this user; "" is the caller
    sandbox: bool = False
    accel: str = "auto"  # auto, kvm or tcg
    paused: bool = False  # start with -S
    fresh: bool = False  # boot even where a boot of this kind is kept
    thp: bool = True  # False: RAM in 4 KiB pages whatever QEMU asks for
    # Boot the kernel by its boot protocol, not by PVH, with which the guest has no TPM.
    packed: bool = False
    kernel_arguments: str = ""
    args: tuple[str, ...] = field(default=())  # more QEMU arguments

    def resolved_accel(self, kvm: bool) -> str:
        """kvm or tcg."""
        return ("kvm" if kvm else "tcg") if self.accel == "auto" else self.accel

    def command_line(self) -> str:
        """The guest's kernel command line."""
        # The kernel's tests of its own ciphers are a fifth of a boot under TCG.
        words = ["console=ttyS0", "quiet", "panic=-1", "mitigations=off", "cryptomgr.notests",
                 f"lab.agent={self.agent}", f"lab.hook={self.hook}"]
        if self.agent == "no port":
            words.remove(f"lab.agent={self.agent}")
        if self.buffer:
            words.append(f"lab.mib={self.buffer}")
        if self.churn:
            words.append("lab.churn=1")
        witness = ["--mixed"] * self.mixed
        for option, value in (("--calm", self.calm), ("--rest", self.rest)):
            witness += [option, str(value)] * bool(value)
        if witness:
            words.append(f"lab.witness={','.join(witness)}")
        return " ".join([*words, *self.kernel_arguments.split()])

    def argv(self, folder: Path, uuid: str, accel: str) -> list[str]:
        """QEMU's arguments; all files, sockets and logs are in folder."""
        machine = f"{self.machine},accel={accel}"
        if self.machine_options:
            machine += f",{self.machine_options}"
        argv = [self.program, "-name", self.name, "-uuid", uuid, "-nodefaults",
                "-no-user-config", "-machine", machine,
                "-cpu", "host" if accel == "kvm" else TCG_CPU, "-m", str(self.memory),
                "-smp", str(self.cpus), "-display", "none", "-rtc", "base=utc",
                "-kernel", str(folder / "kernel.img"),
                "-initrd", str(folder / "initrd.img"), "-append", self.command_line()]
        if self.sandbox:
            argv += ["-sandbox", SANDBOX]
        argv += ["-chardev", f"socket,id=qmp,path={folder}/qmp,server=on,wait=off",
                 "-mon", "chardev=qmp,mode=control",
                 # A second monitor: tests look on while something else holds the first.
                 "-chardev", f"socket,id=look,path={folder}/look,server=on,wait=off",
                 "-mon", "chardev=look,mode=control",
                 "-chardev", f"socket,id=serial,path={folder}/serial,server=on,wait=off,"
                             f"logfile={folder}/serial.log,logappend=on",
                 "-serial", "chardev:serial"]
        for index, disk in enumerate(self.disks):
            name, file = f"disk{index}", disk.path(folder, index)
            if self.legacy_drives:
                argv += ["-drive", f"if=none,id={name},file={file},format={disk.format}"]
            else:
                argv += ["-blockdev", f"driver={disk.format},node-name={name},"
                                      f"file.driver=file,file.filename={file}"]
            argv += ["-device", f"virtio-blk-pci,id=dev-{name},drive={name},serial={name}"]
        if self.agent != "no port":
            argv += ["-device", "virtio-serial-pci",
                     "-chardev", f"socket,id=qga,path={folder}/agent,server=on,wait=off",
                     "-device", "virtserialport,chardev=qga,name=org.qemu.guest_agent.0"]
        if self.net:
            argv += ["-netdev", "user,id=net0", "-device",
                     "virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:12:34:56"]
        if self.vga:
            argv += ["-device", "VGA,id=video0"]
        if self.paused:
            argv += ["-S"]
        return [*argv, *self.args]
