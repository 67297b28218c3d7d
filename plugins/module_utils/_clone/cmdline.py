# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rewrites a QEMU command line into that of a second QEMU beside the first. Pure.

The machine that the guest sees stays the same, device by device; what is behind it does not: disks
are overlays, sockets the clone's own, networks isolated, displays gone. Each option is handled by
the tables below. What is in none, and has a path or a descriptor in it, is a blocker: said at
snapshot time, never dropped in silence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Callable, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._clone import machine as machine_rules
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.argv import (
    Option,
    Props,
    parse_options,
    words,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.blocks import SHORT, Blocks
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.plan import Findings, Plan
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.ports import AGENT_PORT, Ports
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.paths import absolute

#: Relative to the plan's folder, as all sockets of a clone.
QMP_SOCKET = "qmp.sock"

#: Of the process or the operator's view, not of the machine.
_DROPPED = words("""
    qmp qmp-pretty mon monitor vnc spice sdl curses full-screen fullscreen display pidfile
    daemonize D d dfilter trace gdb s S incoming loadvm snapshot runas chroot add-fd
    writeconfig qtest qtest-log qtest-serial plugin mem-path mem-prealloc async-teardown
    enable-sync-profile preconfig jitdump perfmap portrait rotate show-cursor no-frame alt-grab
    ctrl-grab no-quit win2k-hack audio-help dump-vmstate
""")
#: Taken as they are: nothing of the host is in them.
_KEPT = words("""
    cpu smp uuid enable-kvm accel nodefaults no-user-config nouserconfig only-migratable usb
    usbdevice vga g rtc no-reboot no-shutdown action no-acpi no-hpet no-fd-bootchk boot numa
    global set sandbox msg watchdog watchdog-action append k seed compat singlestep
    one-insn-per-tb semihosting semihosting-config prom-env balloon m no-kvm-irqchip no-kvm-pit
    tb-size
    nographic iscsi echr enable-fips realtime
""")
#: Their argument is a file of the machine; True: QEMU seeks bare names in its own folders.
_FILES = {"bios": True, "kernel": False, "initrd": False, "dtb": False, "option-rom": True}
_UNKNOWN_PATH = re.compile(r"(^|[=,:])(/|\.\.?/)|(^|,)\w*fds?=")


@dataclass
class Rewritten:
    """A command line: argv, and what came up while it was made."""

    argv: list[str]
    findings: Findings


@dataclass(frozen=True)
class CommandLine:
    """The original's command line and working directory."""

    argv: tuple[str, ...]
    cwd: str

    def options(self) -> list[Option]:
        """All options in their order."""
        return parse_options(self.argv)

    def restore_blockers(self) -> list[str]:
        """What of this command line a second QEMU cannot be given."""
        return Rewriter(self, Plan(folder="/")).run().findings.blockers

    def machine_files(self) -> list[str]:
        """Absolute names of firmware, kernels and other files that the machine is built from."""
        found = []
        for option in self.options():
            if option.name in _FILES and option.value:
                found.append(absolute(option.value, self.cwd))
            elif option.name in ("fw_cfg", "smbios", "acpitable", "device"):
                props = Props(option.name, option.value)
                names = [props.get(key) for key in ("file", "data", "path", "romfile")]
                found += [absolute(name, self.cwd) for name in names if "/" in name]
            elif option.name in ("pflash", "drive"):
                props = Props("drive", option.value if option.name == "drive" else "if=pflash")
                if props.get("if") == "pflash":
                    name = props.get("file") if option.name == "drive" else option.value or ""
                    found.append(absolute(name, self.cwd))
        return list(dict.fromkeys(found))

    def device_ids(self) -> list[str]:
        """The ids of its -device options."""
        every = [Props("device", opt.value) for opt in self.options() if opt.name == "device"]
        return [props.get("id") for props in every if props.get("id")]

    def has(self, name: str) -> bool:
        """Whether an option is there."""
        return any(option.name == name for option in self.options())


def parse(argv: tuple[str, ...] | list[str], cwd: str) -> CommandLine:
    """Of the words and the working directory of a process."""
    return CommandLine(tuple(argv), cwd)


class Rewriter:
    """One rewriting; run() once."""

    def __init__(self, command: CommandLine, plan: Plan) -> None:
        """The plan is what the new command line is for."""
        self.command = command
        self.plan = plan
        self.findings = Findings()
        self.blocks = Blocks(plan, command.cwd, self.findings)
        self.ports = Ports(plan, self.findings)
        self.options = command.options()
        self.used = self._references()
        self.agent = self._agent_chardev()
        self.graph_done = False
        #: Handlers of single options; each returns what takes the option's place.
        self.table: dict[str, Callable[[Option], list[Option]]] = {
            **dict.fromkeys([*SHORT, "drive"], self.blocks.drive),
            "blockdev": self._blockdev,
            "chardev": self._chardev,
            **dict.fromkeys(["serial", "parallel", "debugcon"], self.ports.line),
            **dict.fromkeys(["netdev", "nic"], self.ports.netdev),
            "net": self.ports.net,
            "device": self._device,
            "object": self._object,
            "machine": self._machine,
            "name": self._name,
            **dict.fromkeys(_FILES, self._file),
            **dict.fromkeys(["fw_cfg", "smbios", "acpitable"], self._file_inside),
            **dict.fromkeys(["audiodev", "audio"], machine_rules.silent),
            "icount": self._icount,
            # Locked memory is for the original; a clone is read in as it needs it.
            "overcommit": lambda option: machine_rules.without(option, "mem-lock"),
            "L": lambda option: [Option("L", absolute(option.value or "", command.cwd))],
            "run-with": lambda option: machine_rules.without(
                option, "user", "chroot", "exit-with-parent"
            ),
            **dict.fromkeys(
                ["tpmdev", "fsdev", "virtfs", "readconfig", "xen-domid", "xen-attach", "spice-app"],
                self._foreign,
            ),
        }

    def run(self) -> Rewritten:
        """The new command line, in the order of the old one."""
        out: list[Option] = []
        for option in self.options:
            out += self._one(option)
        out += self._additions()
        for disk in self.plan.disks:
            if disk.overlay not in self.findings.matched:
                self.findings.block(
                    f"disk '{disk.device or disk.qdev or disk.node}' of the snapshot is not on the"
                    " command line: it was added after QEMU was started"
                )
        words = [self.command.argv[0]] if self.command.argv else []
        for option in out:
            words += option.words()
        return Rewritten(words, self.findings)

    def _one(self, option: Option) -> list[Option]:
        if option.name in _DROPPED:
            return []
        if option.name in self.table:
            return self.table[option.name](option)
        if option.name in _KEPT or not _UNKNOWN_PATH.search(option.value or ""):
            return [option]
        self.findings.block(
            f"option '-{option.name} {option.value}' is unknown here, and has a path or descriptor"
        )
        return [option]

    def _additions(self) -> list[Option]:
        out = machine_rules.additions(self.plan, self.options)
        if not self.command.has("nographic"):
            out.append(Option("display", "none"))
        elif not self.command.has("nodefaults") and not self.command.has("serial"):
            # Otherwise its console would be our standard input and output.
            out += self.ports.line(Option("serial", "stdio"))
        networks = ("net", "netdev", "nic")
        if not self.command.has("nodefaults") and not any(map(self.command.has, networks)):
            # QEMU's default is this card on a user-mode network.
            out += [Option("net", "nic"), *self.ports.net(Option("net", "user"))]
        out.append(Option("qmp", f"unix:{QMP_SOCKET},server=on,wait=off"))
        if self.plan.stopped:
            out.append(Option("S"))
        if self.plan.incoming:
            out.append(Option("incoming", self.plan.incoming))
        return out

    def _references(self) -> set[str]:
        """Names that options other than -blockdev and -chardev may refer to."""
        found: set[str] = set()
        for option in self.options:
            if option.name in ("blockdev", "chardev") or option.name in _DROPPED:
                continue
            for key, text in Props(option.name, option.value).items():
                if key != "id":
                    # A key alone is a value in the old syntax: '-serial chardev:c'.
                    found |= {text, key.rpartition(":")[2]}
        return found

    def _agent_chardev(self) -> str:
        for option in self.options:
            props = Props("device", option.value)
            if option.name == "device" and props.get("name") == AGENT_PORT:
                return props.get("chardev")
        return ""

    def _blockdev(self, _option: Option) -> list[Option]:
        if self.graph_done:
            return []
        self.graph_done = True
        every = [option for option in self.options if option.name == "blockdev"]
        return self.blocks.graph(every, self.used)

    def _chardev(self, option: Option) -> list[Option]:
        if Props("chardev", option.value).get("id") not in self.used:
            return []
        return self.ports.chardev(option, self.agent)

    def _device(self, option: Option) -> list[Option]:
        return machine_rules.device(option, self.plan, self.command.cwd, self.findings)

    def _object(self, option: Option) -> list[Option]:
        return machine_rules.object_(option, self.plan, self.used, self.findings)

    def _machine(self, option: Option) -> list[Option]:
        return machine_rules.machine(option, self.plan, self.options, self.findings)

    def _name(self, option: Option) -> list[Option]:
        props = Props("name", option.value)
        props.drop("process")
        if self.plan.name:
            props.set("guest", self.plan.name)
        return [props.option()]

    def _file(self, option: Option) -> list[Option]:
        value = option.value or ""
        searched = _FILES[option.name] and "/" not in value
        if not searched:
            value = absolute(value, self.command.cwd)
            self.findings.files.append(value)
        return [Option(option.name, value)]

    def _file_inside(self, option: Option) -> list[Option]:
        props = Props(option.name, option.value)
        for key in ("file", "data", "path"):
            text = props.get(key)
            if text:
                # -acpitable takes several, with colons between.
                names = [absolute(name, self.command.cwd) for name in text.split(":")]
                props.set(key, ":".join(names))
                self.findings.files += names
        return [props.option()]

    def _icount(self, option: Option) -> list[Option]:
        if Props("icount", option.value).get("rrfile"):
            self.findings.block("-icount records or replays ('rrfile')")
        return [option]

    def _foreign(self, option: Option) -> list[Option]:
        meaning = {
            "tpmdev": "the TPM is another program, and a second QEMU needs one of its own",
            "fsdev": "a folder of the host is shared with the guest",
            "virtfs": "a folder of the host is shared with the guest",
            "readconfig": "a file describes part of the machine",
        }
        why: Optional[str] = meaning.get(option.name, "it ties the guest to this host")
        self.findings.block(f"option '-{option.name} {option.value or ''}': {why}")
        return [option]


def rewrite(command: CommandLine, plan: Plan) -> Rewritten:
    """The command line of a second QEMU as the plan says."""
    return Rewriter(command, plan).run()
