# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU's command line as words: options, and the key=value,... syntax of their values. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Iterable, Optional


def words(text: str) -> frozenset[str]:
    """A set of words that is written as prose."""
    return frozenset(text.split())


#: Options without an argument, of 6.0 to 10.0 (qemu-options.hx). All others take one.
FLAGS = words("""
    h help version snapshot no-fd-bootchk no-acpi no-hpet no-reboot no-shutdown S s daemonize
    nographic full-screen fullscreen win2k-hack enable-kvm nodefaults no-user-config
    nouserconfig only-migratable singlestep semihosting xen-attach xen-domid-restrict
    mem-prealloc portrait usb preconfig show-cursor curses sdl no-frame no-quit alt-grab ctrl-grab
    enable-fips enable-sync-profile perfmap jitdump async-teardown one-insn-per-tb old-param
    localtime rtc-td-hack tdf no-kvm no-kvm-irqchip no-kvm-pit qtest-serial
""")

#: Key that the first word of a value has when it has none of its own.
IMPLIED = {
    "device": "driver",
    "blockdev": "driver",
    "object": "qom-type",
    "chardev": "backend",
    "netdev": "type",
    "nic": "type",
    "net": "type",
    "machine": "type",
    "name": "guest",
    "m": "size",
    "smp": "cpus",
    "fw_cfg": "name",
    "audiodev": "driver",
    "audio": "driver",
    "tpmdev": "type",
    "fsdev": "fsdriver",
    "virtfs": "fsdriver",
    "mon": "chardev",
    "accel": "accel",
    "numa": "type",
    "sandbox": "enable",
    "boot": "order",
}
_ALIASES = {"M": "machine"}


@dataclass(frozen=True)
class Option:
    """One option: its name without dashes, and its argument. A bare word is a 'hda' (vl.c)."""

    name: str
    value: Optional[str] = None

    def words(self) -> list[str]:
        """As on the command line."""
        return [f"-{self.name}"] if self.value is None else [f"-{self.name}", self.value]


def parse_options(argv: Iterable[str]) -> list[Option]:
    """The options behind argv[0], in their order; -M is called machine."""
    words = list(argv)[1:]
    found: list[Option] = []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not word.startswith("-") or word == "-":
            found.append(Option("hda", word))
            continue
        name = word[2:] if word.startswith("--") else word[1:]
        name = _ALIASES.get(name, name)
        if name in FLAGS or at >= len(words):
            found.append(Option(name))
            continue
        found.append(Option(name, words[at]))
        at += 1
    return found


Pairs = list[tuple[str, Optional[str]]]


def split_pairs(value: str, implied: str = "") -> Pairs:
    """[(key, value)] of 'a,b=c,d'; a comma in a value is doubled. A key alone has the value None.

    The first word, when it has no '=', is the value of the `implied` key.
    """
    words = [""]
    at = 0
    while at < len(value):
        if value[at] == ",":
            if value[at + 1 : at + 2] == ",":
                words[-1] += ","
                at += 2
                continue
            words.append("")
        else:
            words[-1] += value[at]
        at += 1
    pairs: Pairs = []
    for index, word in enumerate(words):
        key, equals, rest = word.partition("=")
        if equals:
            pairs.append((key, rest))
        elif index == 0 and implied:
            pairs.append((implied, word))
        elif word:
            pairs.append((word, None))
    return pairs


def join_pairs(pairs: Pairs, implied: str = "") -> str:
    """The inverse; the implied key is left out in first place."""
    words = []
    for index, (key, value) in enumerate(pairs):
        text = "" if value is None else value.replace(",", ",,")
        if value is None:
            words.append(key)
        elif index == 0 and key == implied and "=" not in text:
            words.append(text)
        else:
            words.append(f"{key}={text}")
    return ",".join(words)


class Props:
    """The properties of one option, from key=value,... or JSON, and back in the same syntax."""

    def __init__(self, name: str, value: Optional[str]) -> None:
        """Of the argument of option `name`. Broken JSON counts as no properties at all."""
        self.name = name
        self.implied = IMPLIED.get(name, "")
        self.json: Optional[dict[str, Any]] = None
        self.pairs: Pairs = []
        text = value or ""
        if text.lstrip().startswith("{"):
            try:
                loaded = json.loads(text)
            except ValueError:
                loaded = {}
            self.json = loaded if isinstance(loaded, dict) else {}
        else:
            self.pairs = split_pairs(text, self.implied)

    def get(self, key: str, default: str = "") -> str:
        """The last value of a key as text; JSON's booleans are 'on', 'off'; dotted keys nest."""
        if self.json is not None:
            value: Any = self.json
            for part in key.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is None or isinstance(value, (dict, list)):
                return default
            return ("on" if value else "off") if isinstance(value, bool) else str(value)
        for name, text in reversed(self.pairs):
            if name == key:
                return "on" if text is None else text
            if name == "no" + key and text is None:
                return "off"
        return default

    def number(self, key: str) -> int:
        """A whole number; 0 for anything else."""
        text = self.get(key)
        return int(text) if text.isdecimal() else 0

    def is_on(self, key: str, default: bool = False) -> bool:
        """A boolean property."""
        text = self.get(key, "on" if default else "off")
        return text in ("on", "yes", "true", "y")

    def set(self, key: str, value: str) -> None:
        """Replace a key, in its place, or add it at the end."""
        if self.json is not None:
            self.json[key] = value
            return
        for index, (name, _unused) in enumerate(self.pairs):
            if name == key:
                self.pairs[index] = (key, value)
                self.pairs[index + 1 :] = [
                    pair for pair in self.pairs[index + 1 :] if pair[0] != key
                ]
                return
        self.pairs.append((key, value))

    def drop(self, *keys: str) -> None:
        """Remove keys, what is nested in them ('file.driver' in 'file'), and 'no' forms."""

        def goes(name: str) -> bool:
            return any(
                name == key or name == "no" + key or name.startswith(key + ".") for key in keys
            )

        if self.json is not None:
            self.json = {name: value for name, value in self.json.items() if not goes(name)}
        self.pairs = [pair for pair in self.pairs if not goes(pair[0])]

    def items(self) -> list[tuple[str, str]]:
        """(dotted key, text) of all that is set, nested ones included."""
        if self.json is not None:
            return list(flatten(self.json))
        return [(key, "on" if text is None else text) for key, text in self.pairs]

    def option(self) -> Option:
        """The option with these properties."""
        if self.json is not None:
            return Option(self.name, json.dumps(self.json))
        return Option(self.name, join_pairs(self.pairs, self.implied))


def flatten(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """(dotted key, text) of the leaves of JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from flatten(inner, f"{prefix}.{index}")
    elif isinstance(value, bool):
        yield prefix, "on" if value else "off"
    elif value is not None:
        yield prefix, str(value)


def nest(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """JSON of dotted keys, as -blockdev reads them: flatten's inverse, less types and lists."""
    tree: dict[str, Any] = {}
    for key, value in pairs:
        node = tree
        parts = key.split(".")
        for part in parts[:-1]:
            inner = node.setdefault(part, {})
            if not isinstance(inner, dict):
                inner = node[part] = {}
            node = inner
        node[parts[-1]] = value
    return tree
