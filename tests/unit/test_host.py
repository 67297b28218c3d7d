# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pure parts of what is told of a host, and of expressions that choose its guests."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _query
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.domain_xml import (
    memory_bytes,
    words,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._host import facts, guests

XML = """<domain type='kvm'><name>a</name><memory unit='KiB'>131072</memory>{more}</domain>"""
GUESTS: list[dict[str, Any]] = [
    {"name": "a", "state": "running", "memory_bytes": 1 << 30, "title": ""},
    {"name": "b", "state": "off", "memory_bytes": 2 << 30, "title": "Shop"},
]


def test_what_a_domain_says_of_itself() -> None:
    bare = XML.format(more="")
    assert memory_bytes(bare) == 128 << 20
    assert words(bare) == {"title": "", "description": "", "metadata": []}
    told = XML.format(more="""<title>Shop</title><description>a &amp; b</description><metadata>
        <b:backup xmlns:b='https://example.com/b' when='night'> <b:x>daily</b:x> </b:backup>
        <plain/></metadata>""")
    assert words(told) == {
        "title": "Shop", "description": "a & b",
        "metadata": [
            {"name": "backup", "namespace": "https://example.com/b",
             "attributes": {"when": "night"}, "text": "daily"},
            {"name": "plain", "namespace": "", "attributes": {}, "text": ""},
        ],
    }


@pytest.mark.parametrize(("expression", "names"), [
    ("@", "ab"), ("[?state=='running']", "a"), ("[?contains(title, 'Shop')]", "b"),
    ("reverse(sort_by(@, &memory_bytes))", "ba"), ("[?stat=='running']", ""),
])
def test_guests_that_are_chosen_come_in_the_expressions_order(
        expression: str, names: str) -> None:
    found = _query.choose("select", expression, GUESTS, "guests")
    assert "".join(each["name"] for each in found) == names


@pytest.mark.parametrize("expression", ["[?", "", "sort_by(@, &nosuch)", "nosuch(@)"])
def test_an_expression_that_makes_no_sense_is_named(expression: str) -> None:
    with pytest.raises(LivesnapError) as caught:
        _query.choose("select", expression, GUESTS, "guests")
    assert caught.value.msg.startswith(
        f"select '{expression}' is not a JMESPath expression that fits guests: ")


@pytest.mark.parametrize("expression", ["[].name", "[0]", "length(@)", "nosuch", "[].{name: name}"])
def test_what_comes_to_no_list_of_guests_is_named_with_what_it_came_to(expression: str) -> None:
    with pytest.raises(LivesnapError) as caught:
        _query.choose("select", expression, GUESTS, "guests")
    assert f"select '{expression}' does not come to a list of guests, but to " in caught.value.msg
    assert len(caught.value.msg) < 400


def test_a_long_value_is_not_quoted_whole() -> None:
    many = [{"name": "x" * 50} for _number in range(20)]
    with pytest.raises(LivesnapError, match=r"\.\.\.; filter") as caught:
        _query.choose("select", "[].name", many, "guests")
    assert json.dumps([each["name"] for each in many])[:100] in caught.value.msg
    assert len(caught.value.msg) < 300


@pytest.mark.parametrize(("text", "version"), [
    ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", "7.2.22"),
    ("qemu-img version 10.0.2 (v10.0.2)", "10.0.2"), ("", None), ("version unknown", None),
])
def test_version_in_what_a_program_prints(text: str, version: str | None) -> None:
    assert facts.version_in(text) == version


def test_memory_of_the_host() -> None:
    text = "MemTotal:       16384 kB\nMemAvailable:    1024 kB\nHugePages_Total:   5\n"
    assert facts.parse_meminfo(text) == {"MemTotal": 16 << 20, "MemAvailable": 1 << 20}


def test_of_a_guest_that_cannot_be_asked_nothing_is_possible() -> None:
    found = guests.nothing_possible("it is gone")
    assert found["problem"] == found["freeze"]["reason"] == "it is gone"
    for kind in ("engines", "schemes"):
        assert found[kind]
        assert all(each == {"possible": False, "reasons": ["it is gone"]}
                   for each in found[kind].values())
