# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Character devices and networks of a command line: where the machine touches the world. Pure.

Each keeps its id and its device; what is behind it becomes a socket of the clone's own folder, or
nothing. A socket without a client swallows what is written to it.
"""

from __future__ import annotations

from ansible_collections.livesnap.qemu.plugins.module_utils._clone.argv import Option, Props
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.plan import (
    Findings,
    Plan,
    TapNeed,
)

AGENT_PORT = "org.qemu.guest_agent.0"
#: Chardevs with nothing of the host behind them.
_INNER = ("null", "vc", "ringbuf", "memory", "testdev", "mux", "hub", "msmouse", "wctablet")
_INNER_ALSO = ("qemu-vdagent",)
#: Chardevs of a display server that the clone has not.
_DISPLAY = ("spicevmc", "spiceport", "dbus", "braille")
#: Backends that write guest memory from outside, or are other programs with state of their own.
_FOREIGN_NETS = ("vhost-user", "vhost-vdpa")
_USER_DROPPED = ("hostfwd", "guestfwd", "smb", "smbserver", "tftp", "tftp-server-name", "bootfile")


class Ports:
    """Rewrites -chardev, -serial and their like, -netdev, -nic, -net."""

    def __init__(self, plan: Plan, findings: Findings) -> None:
        """The findings collect sockets, taps and blockers."""
        self.plan = plan
        self.findings = findings
        self.hubs = 0
        self.lines: dict[str, int] = {}

    def chardev(self, option: Option, agent: str) -> list[Option]:
        """What a -chardev becomes; `agent` is the id of the one at the agent's port."""
        props = Props("chardev", option.value)
        name, kind = props.get("id"), props.get("backend")
        if kind in _INNER or kind in _INNER_ALSO:
            props.drop("logfile", "logappend")
            return [props.option()]
        if kind in _DISPLAY:
            return [Option("chardev", f"null,id={name}")]
        path = self.console("agent" if name == agent else name, name == agent)
        mux = ",mux=on" if props.is_on("mux") else ""
        value = f"socket,id={name},path={path.replace(',', ',,')},server=on,wait=off{mux}"
        return [Option("chardev", value)]

    def console(self, name: str, agent: bool = False) -> str:
        """The path of a socket of that name, noted in the findings."""
        path = f"{name}.sock"
        if agent:
            self.findings.agent_socket = path
        else:
            self.findings.consoles.append(path)
        return path

    def line(self, option: Option) -> list[Option]:
        """What -serial, -parallel and -debugcon become, in the old syntax of chardevs."""
        value = option.value or ""
        if value.startswith("mon:"):
            value = value[4:]
        kind = value.split(":")[0].split(",")[0]
        if kind in ("none", "null", "vc", "chardev", "msmouse", "testdev"):
            return [Option(option.name, value)]
        number = self.lines.get(option.name, 0)
        self.lines[option.name] = number + 1
        path = self.console(f"{option.name}{number}").replace(",", ",,")
        return [Option(option.name, f"unix:{path},server=on,wait=off")]

    def _hub(self) -> str:
        # Each in a hub of its own, far from those that a command line may use itself.
        self.hubs += 1
        return str(4096 + self.hubs)

    def netdev(self, option: Option) -> list[Option]:
        """What a -netdev, or a -nic with its backend, becomes."""
        props = Props(option.name, option.value)
        kind = props.get("type")
        name = props.get("id")
        if kind in ("none", "hubport", "nic"):
            return [option]
        if kind in _FOREIGN_NETS:
            self.findings.block(
                f"network '{name or kind}' is '{kind}': it belongs to another program or device"
            )
            return [option]
        if kind == "user":
            return [self.user(props)]
        if kind in ("tap", "bridge") and self.plan.keep_taps:
            return [option]
        if self.plan.network:
            self.findings.block(
                f"network '{name or kind}' ('{kind}') cannot be shared by a clone: only user-mode"
                " networks can"
            )
        keep = [] if option.name == "netdev" else self._card(props)
        if kind in ("tap", "bridge") and props.get("vnet_hdr", "on") != "off":
            queues = props.number("queues") or len(props.get("fds").split(":"))
            marker = f"@tap{len(self.findings.taps)}@"
            self.findings.taps.append(TapNeed(name, queues, marker))
            key = "fds" if queues > 1 else "fd"
            words = ["tap", *([f"id={name}"] if name else []), f"{key}={marker}", "vhost=off"]
        else:
            words = ["hubport", *([f"id={name}"] if name else []), f"hubid={self._hub()}"]
        return [Option(option.name, ",".join([*words, *keep]))]

    def _card(self, props: Props) -> list[str]:
        """The half of a -nic that describes the card."""
        keys = ("model", "mac", "macaddr", "addr", "vectors", "netdev", "name")
        return [f"{key}={value}" for key, value in props.items() if key in keys]

    def net(self, option: Option) -> list[Option]:
        """-net: cards stay, what connects their hub with the world goes."""
        props = Props("net", option.value)
        if props.get("type") in ("nic", "none"):
            return [option]
        return [self.user(props)] if props.get("type") == "user" else []

    def user(self, props: Props) -> Option:
        """User-mode networks have state in the stream ('slirp'): they stay, cut off."""
        props.drop(*_USER_DROPPED)
        if not self.plan.network:
            props.set("restrict", "on")
        return props.option()
