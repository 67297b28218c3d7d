# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that tests share, and the check that a session leaves the machine as it was."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# lab is imported by this name from every tier; footprint is what the runner compares with as well.
for entry in (Path(__file__).parent, Path(__file__).parents[1]):
    if str(entry) not in sys.path:
        sys.path.insert(0, str(entry))

import footprint  # noqa: E402
import layout  # noqa: E402
from ksm import Ksm, borrowed  # noqa: E402
from lab import Domain, Guest, Libvirtd  # noqa: E402
from taking import TestStore  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def same_machine() -> Iterator[None]:
    """Processes, mounts, loop devices, namespaces, /run/livesnap, /usr/local are as before."""
    mark = os.environ.setdefault(footprint.MARK, str(uuid.uuid4()))
    before = footprint.take()
    running = footprint.marked_processes(mark)
    yield
    left = footprint.difference(before, footprint.take())
    left += [f"process: {line}" for line in footprint.marked_processes(mark) - running]
    assert not left, "the tests left behind:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def helper() -> Path:
    """livesnap-helper, built of these sources."""
    layout.make_native("all")
    return layout.NATIVE / "build" / "livesnap-helper"


@pytest.fixture
def make_guest() -> Iterator[Callable[..., Guest]]:
    """make_guest(**options): a running guest that is stopped after the test."""
    guests: list[Guest] = []

    def make(**options: Any) -> Guest:
        guest = Guest(**options)
        guests.append(guest)
        return guest.start()

    yield make
    for guest in guests:
        guest.stop()


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """A guest for a whole module; its tests leave it running, thawed, with its agent.

    It does little: most of its time is spent on somebody who dies, and on deadlines.
    """
    with Guest() as running:
        yield running


@pytest.fixture(scope="session")
def libvirtd() -> Iterator[Libvirtd]:
    """A libvirtd of the tests' own, for the whole session."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with Libvirtd() as running:
        yield running


@pytest.fixture
def make_domain(libvirtd: Libvirtd) -> Iterator[Callable[..., Domain]]:
    """make_domain(**options): a running domain that is undefined after the test."""
    domains: list[Domain] = []

    def make(**options: Any) -> Domain:
        domain = Domain(libvirtd, **options)
        domains.append(domain)
        return domain.start()

    yield make
    # A test may end libvirtd, and fail before it is back.
    if not libvirtd.alive:
        libvirtd.start()
    for domain in domains:
        domain.stop()


@pytest.fixture(scope="module")
def shelf() -> Iterator[TestStore]:
    """A store for a whole module."""
    made = TestStore()
    yield made
    made.remove()


@pytest.fixture
def store() -> Iterator[TestStore]:
    """An empty store."""
    made = TestStore()
    yield made
    made.remove()


@pytest.fixture
def ksm() -> Iterator[Ksm]:
    """KSM of this machine, for one test."""
    with borrowed() as machines:
        yield machines
