# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ansible-builder makes of the collection, and the helper that an environment has built in."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from runs import VENV, Controller

# Runs a command in a copy of this machine's tree, of which nothing is left.
CHROOT = """
set -eu
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cp -a "$2" "$1/root/livesnap"
chroot "$1/root" /livesnap/ee-helper /livesnap/native
"""


def builder(controller: Controller, *words: str | Path) -> str:
    done = controller.command(str(VENV / "ansible-builder"), *map(str, words))
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_introspect_finds_what_a_controller_needs(controller: Controller) -> None:
    found = yaml.safe_load(builder(controller, "introspect", controller.collections))
    assert [line.split()[0] for line in found["python"]] == ["tzdata"]
    system = [line.split(" ")[0] for line in found["system"]]
    assert {"openssh-client", "gcc", "make", "libjansson-dev"} <= set(system)
    assert not [
        line for line in found["system"] if line.startswith("lib") and "compile" not in line
    ]


def test_create_has_the_helper_built_and_kept(
    controller: Controller, checkout: Path, tmp_path: Path
) -> None:
    context = tmp_path / "context"
    shutil.rmtree(checkout / "native" / "build", ignore_errors=True)
    builder(
        controller, "create", "-f", checkout / "execution-environment.yml", "-c", context,
        "--output-filename", "Containerfile",
    )  # fmt: skip
    text = (context / "Containerfile").read_text()
    parts = re.split(r"^FROM .* AS (\w+)$", text, flags=re.M)[1:]
    stages = dict(zip(parts[::2], parts[1::2], strict=True))
    assert "RUN /livesnap/ee-helper /livesnap/native" in stages["builder"]
    assert "COPY --from=builder /usr/share/livesnap /usr/share/livesnap" in stages["final"]
    given = context / "_build" / "livesnap"
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    room = tmp_path / "room"
    room.mkdir()
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", CHROOT, "chroot", str(room), str(given)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    version = done.stdout.splitlines()[-1]
    assert version.startswith("livesnap-helper")
    assert not Path("/usr/share/livesnap").exists()
