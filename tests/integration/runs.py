# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs Ansible as a user would, in an environment of its own, and hands back what came of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parents[2]
VENV = REPO / "build" / "venv" / "bin"


@dataclass
class Run:
    """One ansible-playbook: its exit code, what it printed, and the results of its tasks."""

    code: int
    text: str
    results: list[dict[str, Any]] = field(default_factory=list)

    def of(self, action: str, host: str | None = None) -> list[dict[str, Any]]:
        """Results of one module, in order."""
        return [
            {**line["result"], "_outcome": line["outcome"]}
            for line in self.results
            if line["action"] == action and (host is None or line["host"] == host)
        ]

    def one(self, action: str = "livesnap.qemu.livesnap") -> dict[str, Any]:
        """The only result of a module."""
        found = self.of(action)
        if len(found) != 1:
            raise AssertionError(f"{len(found)} results of {action}:\n{self.text}")
        return found[0]

    def recap(self, host: str) -> dict[str, int]:
        """The counters of a host at the end of the play."""
        line = re.search(rf"^{re.escape(host)}\s+: (.*)$", self.text, re.M)
        if not line:
            raise AssertionError(f"no recap of {host}:\n{self.text}")
        return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", line.group(1))}

    def good(self) -> Run:
        """This run, if it succeeded."""
        if self.code != 0:
            raise AssertionError(f"ansible ended with {self.code}:\n{self.text}")
        return self


class Controller:
    """A controller: collections, cache and home of its own; the machine's interpreters."""

    def __init__(self, folder: Path, collections: Path) -> None:
        self.folder = folder
        self.collections = collections
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")},
            # No pyenv shims: a host that is this machine is asked for its Python by name.
            "PATH": f"{VENV}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(folder / "home"),
            # Of all controllers of a test run, so that the helper is built once for them.
            "XDG_CACHE_HOME": os.environ.get("LIVESNAP_TEST_CACHE", str(folder / "cache")),
            "ANSIBLE_HOME": str(folder / "home" / ".ansible"),
            "ANSIBLE_COLLECTIONS_PATH": str(collections),
            "ANSIBLE_CALLBACK_PLUGINS": str(REPO / "tests" / "integration" / "callback"),
            "ANSIBLE_CALLBACKS_ENABLED": "collect",
            # As root, ~ is not the home of this controller.
            "ANSIBLE_ASYNC_DIR": str(folder / "async"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "1",
        }
        (folder / "home").mkdir(parents=True, exist_ok=True)

    def command(
        self, *argv: str, cwd: Path = REPO, limit: int = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Any command, its output and errors together."""
        return subprocess.run(
            argv,
            cwd=cwd,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
            check=False,
        )

    def playbook(
        self, inventory: dict[str, Any], playbook: str | list[Any], *options: str, **given: Any
    ) -> Run:
        """A playbook by name, or one given as data; `inventory` is that of group hypervisors."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            folder = Path(name)
            (folder / "inventory.yml").write_text(yaml.safe_dump({"hypervisors": inventory}))
            if isinstance(playbook, list):
                (folder / "play.yml").write_text(yaml.safe_dump(playbook))
                playbook = str(folder / "play.yml")
            results = folder / "results"
            done = self.command(
                str(VENV / "ansible-playbook"),
                "-i",
                str(folder / "inventory.yml"),
                playbook,
                *options,
                LIVESNAP_RESULTS=str(results),
                **given,
            )
            lines = results.read_text().splitlines() if results.exists() else []
            return Run(done.returncode, done.stdout, [json.loads(line) for line in lines])


LOCAL = {"hosts": {"hv1": {"ansible_connection": "local"}}}


def local(**variables: Any) -> dict[str, Any]:
    """This machine as the one hypervisor, with variables."""
    return {"hosts": {"hv1": {"ansible_connection": "local", **variables}}}


def play(*tasks: dict[str, Any], **keywords: Any) -> list[dict[str, Any]]:
    """A play of these tasks."""
    return [
        {
            "name": "Test",
            "hosts": "hypervisors",
            "become": True,
            "gather_facts": False,
            "tasks": list(tasks),
            **keywords,
        }
    ]
