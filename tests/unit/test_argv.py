# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU's syntax of options, and the same through JSON."""

from __future__ import annotations

import json

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.argv import (
    Option,
    Props,
    flatten,
    join_pairs,
    nest,
    parse_options,
    split_pairs,
)
from hypothesis import given, settings
from hypothesis import strategies as st

KEYS = st.text("abcdefghij-._0123456789", min_size=1)
VALUES = st.text(st.characters(blacklist_categories=("Cs",)))


def test_options() -> None:
    argv = ["qemu", "-M", "pc", "--nodefaults", "-enable-kvm", "disk.img", "-m", "1G", "-daemonize"]
    assert parse_options(argv) == [
        Option("machine", "pc"),
        Option("nodefaults"),
        Option("enable-kvm"),
        Option("hda", "disk.img"),
        Option("m", "1G"),
        Option("daemonize"),
    ]
    assert parse_options([]) == [] and parse_options(["qemu"]) == []


def test_an_argument_may_begin_with_a_dash() -> None:
    assert parse_options(["qemu", "-append", "-x", "-S"]) == [Option("append", "-x"), Option("S")]


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("virtio-blk-pci,drive=d", [("driver", "virtio-blk-pci"), ("drive", "d")]),
        ("driver=x", [("driver", "x")]),
        ("x,a=b,,c,d=e", [("driver", "x"), ("a", "b,c"), ("d", "e")]),
        ("x,server,nowait", [("driver", "x"), ("server", None), ("nowait", None)]),
        ("x,file=a=b", [("driver", "x"), ("file", "a=b")]),
        ("x,,y", [("driver", "x,y")]),
        ("x,a=", [("driver", "x"), ("a", "")]),
    ],
)
def test_pairs(text: str, pairs: list[tuple[str, str | None]]) -> None:
    assert split_pairs(text, "driver") == pairs
    assert split_pairs(join_pairs(pairs, "driver"), "driver") == pairs


@settings(deadline=None)
@given(st.lists(st.tuples(KEYS, VALUES), min_size=1))
def test_any_pairs_survive(pairs: list[tuple[str, str | None]]) -> None:
    assert split_pairs(join_pairs(pairs)) == pairs
    assert split_pairs(join_pairs(pairs, "a"), "a") == pairs


def test_props() -> None:
    props = Props("chardev", "socket,id=x,server,nodelay,path=/a,,b,file.driver=y,id=z")
    assert (props.get("backend"), props.get("id"), props.get("path")) == ("socket", "z", "/a,b")
    assert props.is_on("server") and not props.is_on("delay") and props.is_on("nothing", True)
    props.set("id", "q")
    props.drop("file", "server")
    assert props.option() == Option("chardev", "socket,id=q,nodelay,path=/a,,b")


def test_props_of_json() -> None:
    text = json.dumps({"driver": "tap", "vhost": True, "n": 3, "file": {"filename": "/a"}})
    props = Props("netdev", text)
    assert (props.get("vhost"), props.get("n"), props.get("file.filename")) == ("on", "3", "/a")
    assert props.get("file") == ""
    props.set("n", "4")
    props.drop("file")
    assert json.loads(props.option().value or "") == {"driver": "tap", "vhost": True, "n": "4"}
    assert Props("device", "{broken").items() == []


def test_nesting() -> None:
    tree = {"driver": "qcow2", "file": {"driver": "file", "filename": "/a"}, "x": [1, {"y": True}]}
    flat = dict(flatten(tree))
    assert flat["file.filename"] == "/a" and flat["x.1.y"] == "on"
    assert nest([("file.driver", "f"), ("a", "b")]) == {"file": {"driver": "f"}, "a": "b"}
    assert nest([("file", "node"), ("file.x", "b")]) == {"file": {"x": "b"}}
