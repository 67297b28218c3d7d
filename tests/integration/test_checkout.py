# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A clone at any path is the collection, and a project for AWX; the README's commands work."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from guests import entry
from lab import Guest
from runs import REPO, VENV, Controller, local

#: Commands of the README that other tests or the runner itself stand for.
ELSEWHERE = {
    "apt-get install -y git make": "the machine has them, or nothing here would run",
    "git clone https://github.com/livesnap/livesnap.qemu livesnap": "fixture checkout",
    "cd livesnap": "fixture checkout",
    "ansible-playbook -i inventory/example.yml playbooks/restore.yml -e restore_guest=web1"
    " -e restore_snapshot=NAME -e restore_in_place=true": "test_restore: it ends the guest's QEMU",
    "make bench": "test_bench",
    "make demo": "test_demo",
    "make test": "what runs this",
}


def readme_commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (REPO / "README.md").read_text(), re.S)
    return [line for block in blocks for line in block.splitlines() if line]


def test_requirements_hold_this_repository_and_nothing_else() -> None:
    found = yaml.safe_load((REPO / "collections" / "requirements.yml").read_text())
    assert found == {"collections": [{"source": ".", "type": "dir"}]}


def test_the_commands_of_the_readme(
    prepared: Controller, checkout: Path, guest: Guest, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    store = tmp_path / "store"
    tmp_path.chmod(0o711)
    shutil.copytree(prepared.environment["XDG_CACHE_HOME"], home / ".cache")
    own = {"livesnap_guests": [entry(guest, "web1")], "livesnap_store": str(store)}
    (checkout / "inventory" / "example.yml").write_text(
        yaml.safe_dump({"hypervisors": local(**own)})
    )
    environment = {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "ANSIBLE_HOME": str(home / ".ansible"),
        # As a user has it, who sets nothing.
        "ANSIBLE_COLLECTIONS_PATH": f"{home}/.ansible/collections",
    }
    ran = 0
    for line in readme_commands():
        if line in ELSEWHERE:
            continue
        words = shlex.split(line)
        done = prepared.command(
            str(VENV / words[0]), *words[1:], cwd=checkout, limit=300, **environment
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}"
        ran += 1
    assert ran == 7
    # The last command of the README removes all but the store; other tests need a prepared host.
    prepared.playbook(local(), "livesnap.qemu.host", "-e", f"livesnap_store={store}").good()
    assert [
        path.name.startswith("hourly-")
        for path in (store / "web1").iterdir()
        if not path.name.startswith(".")
    ] == [True]


@pytest.mark.parametrize(
    ("playbook", "folder"),
    [
        ("playbooks/snapshot.yml", "."),
        ("snapshot.yml", "playbooks"),
        ("livesnap.qemu.snapshot", "/"),
    ],
)
def test_playbooks_run_from_anywhere(
    prepared: Controller, checkout: Path, guest: Guest, tmp_path: Path, playbook: str, folder: str
) -> None:
    own = {"livesnap_guests": [entry(guest, "web1")], "livesnap_store": str(tmp_path)}
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(yaml.safe_dump({"hypervisors": local(**own)}))
    done = prepared.command(
        str(VENV / "ansible-playbook"), "-i", str(inventory), playbook, "--check",
        cwd=checkout / folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "changed=1" in done.stdout


def test_ansible_runner_takes_the_checkout_as_its_project(
    prepared: Controller, checkout: Path, guest: Guest, tmp_path: Path
) -> None:
    own = {"livesnap_guests": [entry(guest, "web1")], "livesnap_store": str(tmp_path / "store")}
    (tmp_path / "inventory").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "inventory" / "hosts.yml").write_text(yaml.safe_dump({"hypervisors": local(**own)}))
    (tmp_path / "project").symlink_to(checkout)
    done = prepared.command(
        str(VENV / "ansible-runner"), "run", str(tmp_path), "-p", "playbooks/snapshot.yml",
        "--cmdline=--check",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "changed=1" in done.stdout
