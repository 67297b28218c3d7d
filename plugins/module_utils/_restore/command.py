# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest's own command line, to start its QEMU again. Pure.

Other than a clone's it is not rewritten: the old QEMU is gone, and the new one takes its place.
"""

from __future__ import annotations

from typing import Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._clone.argv import (
    Option,
    Props,
    parse_options,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.launch import INCOMING

#: Of one start only: how the machine got its state, and that QEMU went to the background by itself.
_ONCE = ("S", "incoming", "loadvm", "daemonize")
_DESCRIPTORS = {"fd", "fds", "vhostfd", "vhostfds"}


def again(argv: Sequence[str], incoming: bool) -> list[str]:
    """The words that start it again, with a stream to come or from power-on."""
    out = list(argv[:1])
    for option in parse_options(argv):
        if option.name not in _ONCE:
            out += _renewed(option).words()
    return [*out, "-S", "-incoming", f"fd:{INCOMING}"] if incoming else out


def _renewed(option: Option) -> Option:
    """A machine that goes back in time has to learn of it: QEMU then makes a new id."""
    props = Props("device", option.value)
    if option.name != "device" or props.get("driver") != "vmgenid":
        return option
    props.set("guid", "auto")
    return props.option()


def problems(argv: Sequence[str]) -> list[str]:
    """Why a second start with other images would not be the same guest.

    Descriptors that somebody opened for the first one are gone with it, and a backing file that is
    named for an image would be put below one that has none.
    """
    found = []
    for option in parse_options(argv):
        if option.name not in _ONCE and _takes_descriptor(option):
            said = "takes a descriptor that its starter had opened"
        elif option.name == "blockdev" and _has_backing(option):
            said = "names the backing file of an image"
        else:
            continue
        found.append(f"option '{' '.join(option.words())}' {said}")
    return found


def _has_backing(option: Option) -> bool:
    return any(
        key.split(".")[0] == "backing" for key, _text in Props("blockdev", option.value).items()
    )


def _takes_descriptor(option: Option) -> bool:
    value = option.value or ""
    if option.name in ("add-fd", "append"):
        return option.name == "add-fd"
    keys = {key.rpartition(".")[2] for key, _text in Props(option.name, value).items()}
    return bool(keys & _DESCRIPTORS) or "/dev/fdset/" in value


def incoming(argv: Sequence[str]) -> bool:
    """Whether it was started with a state to come."""
    return any(option.name == "incoming" for option in parse_options(argv))


def drops_privileges(argv: Sequence[str]) -> bool:
    """Whether it was started as root, and took its user's identity by itself."""
    return any(
        option.name == "runas"
        or (option.name == "run-with" and Props("run-with", option.value).get("user") != "")
        for option in parse_options(argv)
    )
