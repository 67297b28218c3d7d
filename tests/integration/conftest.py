# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A controller with the collection installed as the README says, and hypervisors to use it on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
for entry in (HERE, HERE.parent, HERE.parent / "guests"):
    if str(entry) not in sys.path:
        sys.path.insert(0, str(entry))

import footprint  # noqa: E402
from guests import SMALL  # noqa: E402
from lab import Guest  # noqa: E402
from runs import LOCAL, REPO, VENV, Controller  # noqa: E402


def clone_of_checkout(folder: Path) -> Path:
    """A clone at that path, with what is not committed yet."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, names.split("\0")):
        if (REPO / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, folder / name)
    return folder


@pytest.fixture(scope="session", autouse=True)
def same_machine() -> Iterator[None]:
    """Everything that these tests put on the machine is gone at their end."""
    before = footprint.take()
    yield
    left = footprint.difference(before, footprint.take())
    if left:
        pytest.fail("left behind:\n" + "\n".join(left))


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone at a random path."""
    return clone_of_checkout(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="session")
def controller(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Controller:
    """A controller on which collections/requirements.yml was installed."""
    folder = tmp_path_factory.mktemp("controller")
    made = Controller(folder, folder / "collections")
    done = made.command(
        str(VENV / "ansible-galaxy"),
        "collection",
        "install",
        "--force",
        "-r",
        "collections/requirements.yml",
        "-p",
        str(made.collections),
        cwd=checkout,
    )
    if done.returncode:
        raise AssertionError(done.stdout)
    return made


@pytest.fixture(scope="session")
def prepared(controller: Controller, same_machine: None) -> Iterator[Controller]:
    """This machine as a prepared hypervisor; what host.yml put there goes away at the end."""
    store = ("-e", f"livesnap_store={controller.folder}/store")
    controller.playbook(LOCAL, "livesnap.qemu.host", *store).good()
    yield controller
    controller.playbook(LOCAL, "livesnap.qemu.host", *store, "-e", "host_state=absent").good()


@pytest.fixture
def bare(prepared: Controller) -> Iterator[Controller]:
    """This machine as it was before; prepared again for the tests that follow."""
    store = ("-e", f"livesnap_store={prepared.folder}/store")
    prepared.playbook(LOCAL, "livesnap.qemu.host", *store, "-e", "host_state=absent").good()
    yield prepared
    prepared.playbook(LOCAL, "livesnap.qemu.host", *store).good()


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """One guest for all tests of a file, by whatever names its inventories know it."""
    with Guest(**SMALL) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """An empty one; one that only its owner may enter would keep the guest's user out."""
    folder = tmp_path / "store"
    folder.mkdir(mode=0o711)
    return folder
