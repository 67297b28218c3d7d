# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules for the devices of a domain's XML: each stays where it is in the machine. Pure.

What is behind a device becomes the clone's own, or nothing: the stream that the clone is restored
from has the state of each, and QEMU refuses one that is not there. A device that is in none of the
rules is a blocker, never dropped in silence.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Callable, Container

from ansible_collections.livesnap.qemu.plugins.module_utils._clone.argv import words
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.domain_plan import (
    DomainFindings,
    DomainPlan,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.domain_xml import is_own_tpm

#: Nothing of the host is behind them, or only what any number of guests may use.
_KEPT = words("""
    emulator controller sound video hub redirfilter memballoon watchdog panic iommu
""")
_FOREIGN = {
    "hostdev": "a device of the host is given to the guest",
    "filesystem": "a folder of the host is shared with the guest",
    "shmem": "memory is shared with other programs",
    "pstore": "a file of the host keeps the guest's records",
    "nvram": "the machine's NVRAM is kept in a file",
}
#: Character devices that may stay as they are.
_CHARS = ("null", "vc", "spicevmc", "spiceport", "qemu-vdagent")
#: Where a card is in the machine and how it behaves, not what it is connected with.
_CARD = words("model driver alias rom mtu address acpi boot teaming")
#: A disk that libvirt opens by itself; others are of another program or of the host.
_DISK_TYPES = ("file", "block", "network", "volume", "dir")
_BLOCKED_NETS = {
    "hostdev": "a card of the host",
    "vdpa": "a card of the host",
    "vhostuser": "of another program",
    "vds": "of another hypervisor",
}

Rule = Callable[[ET.Element], bool]


def drop(element: ET.Element, *tags: str) -> None:
    """Remove the children of these names."""
    for child in [each for each in element if each.tag in tags]:
        element.remove(child)


def keep(element: ET.Element, tags: Container[str]) -> None:
    """Remove all other children."""
    for child in [each for each in element if each.tag not in tags]:
        element.remove(child)


def alias_of(element: ET.Element) -> str:
    """libvirt's name for a device, which is its id in QEMU."""
    alias = element.find("alias")
    return "" if alias is None else alias.get("name", "")


class Devices:
    """Rewrites the children of <devices>, in place."""

    def __init__(self, plan: DomainPlan, findings: DomainFindings) -> None:
        """The findings collect what came up."""
        self.plan = plan
        self.findings = findings
        #: By name; each rewrites its element and says whether it stays.
        self.rules: dict[str, Rule] = {
            "disk": self._disk,
            "interface": self._interface,
            **dict.fromkeys(["serial", "parallel"], self._char),
            "console": self._console,
            "channel": self._channel,
            "smartcard": self._smartcard,
            "redirdev": self._redirected,
            "graphics": self._graphics,
            "audio": self._audio,
            "input": self._input,
            "rng": self._rng,
            "vsock": self._vsock,
            "memory": self._memory,
            "crypto": self._crypto,
            "tpm": self._tpm,
            # Leases are of the disks' locks: the overlays have none yet.
            "lease": lambda _lease: False,
        }

    def rewrite(self, devices: ET.Element) -> None:
        """All of them."""
        for element in list(devices):
            if element.tag in _KEPT:
                continue
            rule = self.rules.get(element.tag)
            if rule is None:
                self._block(element, _FOREIGN.get(element.tag, "it is unknown here"))
            elif not rule(element):
                devices.remove(element)

    def _block(self, element: ET.Element, why: str) -> bool:
        name = alias_of(element)
        self.findings.blockers.append(
            f"device <{element.tag}>{f' {name!r}' if name else ''}: {why}"
        )
        return True

    def _disk(self, disk: ET.Element) -> bool:
        alias, target = alias_of(disk), disk.find("target")
        name = alias if target is None else target.get("dev", alias)
        if disk.get("device") == "lun" or disk.get("type", "file") not in _DISK_TYPES:
            return self._block(disk, f"disk '{name}' is a device of the host, or another program's")
        overlay = self.plan.overlays.get(alias, "")
        if overlay:
            self.findings.matched.add(alias)
            _become(disk, overlay)
            return True
        source = disk.find("source")
        fixed = disk.get("device") == "cdrom" or disk.find("readonly") is not None
        if source is None or fixed:
            return True
        original = source.get("file") or source.get("dev") or ""
        if not original:
            return self._block(disk, f"disk '{name}' is not in the snapshot, nor a file or device")
        blank = f"{self.plan.folder}/blank{len(self.findings.blanks)}.qcow2"
        self.findings.blanks.append((original, blank))
        self.findings.warnings.append(f"disk '{name}' is not in the snapshot: it is empty")
        _become(disk, blank)
        return True

    def _interface(self, card: ET.Element) -> bool:
        kind = card.get("type", "")
        if kind in _BLOCKED_NETS:
            return self._block(card, f"its network is {_BLOCKED_NETS[kind]}")
        drop(card, "target", "mac", "portForward")
        ET.SubElement(card, "mac", address=self.plan.mac())
        if self.plan.network:
            return self._connected(card, kind)
        if kind != "user":
            # A tap: a card that had one has negotiated its header, and takes nothing else.
            card.attrib.clear()
            card.set("type", "ethernet")
            keep(card, {*_CARD, "mac"})
        # How the link was at the instant comes with the stream; it is cut before the clone runs.
        drop(card, "link", "backend")
        return True

    def _connected(self, card: ET.Element, kind: str) -> bool:
        if kind in ("ethernet", "server", "udp"):
            return self._block(card, f"a network of type '{kind}' cannot be shared by a clone")
        source, port = card.find("source"), card.find("virtualport/parameters")
        # These name the original's port on the network.
        for element, names in ((source, ("portid",)), (port, ("interfaceid", "instanceid"))):
            for name in names:
                if element is not None:
                    element.attrib.pop(name, None)
        return True

    def _char(self, device: ET.Element) -> bool:
        drop(device, "log")
        device.attrib.pop("tty", None)
        if device.get("type") not in _CHARS:
            # 'virsh console' finds it, it belongs to nobody else, and what nobody reads is lost.
            device.set("type", "pty")
            drop(device, "source", "protocol")
        return True

    def _console(self, console: ET.Element) -> bool:
        target = console.find("target")
        if target is None or target.get("type", "serial") == "serial":
            # The first serial port's other name, which libvirt gives it again.
            return False
        return self._char(console)

    def _channel(self, channel: ET.Element) -> bool:
        target = channel.find("target")
        if target is None or target.get("type") != "virtio" or channel.get("type") in _CHARS:
            return self._char(channel)
        drop(channel, "log", "source", "protocol")
        # libvirt makes a path for it, of the domain's own folder.
        channel.set("type", "unix")
        return True

    def _smartcard(self, card: ET.Element) -> bool:
        if card.get("mode") != "passthrough":
            return self._block(card, "it needs the certificates of the host")
        return self._char(card)

    def _redirected(self, device: ET.Element) -> bool:
        if device.get("type") not in _CHARS:
            device.set("type", "null")
            drop(device, "source", "protocol")
        drop(device, "log")
        return True

    def _graphics(self, graphics: ET.Element) -> bool:
        kind = graphics.get("type", "")
        if kind == "egl-headless":
            return True
        if kind not in ("vnc", "spice"):
            # Of the desk of whoever started the original.
            return False
        keymap = graphics.get("keymap")
        graphics.attrib.clear()
        graphics.set("type", kind)
        if keymap:
            graphics.set("keymap", keymap)
        drop(graphics, "listen", "channel")
        # It listens nowhere: 'virt-viewer --attach' and the like get to it through libvirt.
        ET.SubElement(graphics, "listen", type="none")
        return True

    def _audio(self, audio: ET.Element) -> bool:
        if audio.get("type") != "spice":
            number = audio.get("id", "1")
            audio.attrib.clear()
            audio.attrib.update(id=number, type="none")
            keep(audio, ())
        return True

    def _input(self, device: ET.Element) -> bool:
        if device.get("type") == "passthrough":
            return self._block(device, "a device of the host is given to the guest")
        return device.get("type") != "evdev"

    def _rng(self, rng: ET.Element) -> bool:
        backend = rng.find("backend")
        if backend is not None and backend.get("model") == "egd":
            backend.attrib.clear()
            keep(backend, ())
            backend.set("model", "random")
            backend.text = "/dev/urandom"
        return True

    def _vsock(self, vsock: ET.Element) -> bool:
        drop(vsock, "cid")
        ET.SubElement(vsock, "cid", auto="yes")
        return True

    def _tpm(self, tpm: ET.Element) -> bool:
        if not is_own_tpm(tpm) or tpm.find("backend/source") is not None:
            return self._block(tpm, "the TPM's state is kept outside of QEMU")
        # libvirt starts another one, which gets its state from the stream.
        return True

    def _memory(self, memory: ET.Element) -> bool:
        if memory.find("source/path") is not None:
            return self._block(memory, "a file of the host is memory of the guest")
        return True

    def _crypto(self, crypto: ET.Element) -> bool:
        backend = crypto.find("backend")
        if backend is None or backend.get("model") != "builtin":
            return self._block(crypto, "its backend is another program")
        return True


def _become(disk: ET.Element, path: str) -> None:
    """The same disk to the guest, in another image."""
    for name in ("sgio", "rawio", "snapshot"):
        disk.attrib.pop(name, None)
    disk.set("type", "file")
    drop(
        disk,
        "source",
        "auth",
        "backingStore",
        "mirror",
        "encryption",
        "shareable",
        "transient",
    )
    ET.SubElement(disk, "source", file=path)
    driver = disk.find("driver")
    if driver is None:
        driver = ET.SubElement(disk, "driver", name="qemu")
    driver.set("type", "qcow2")
