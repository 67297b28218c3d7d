# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbook host.yml, and how the helper gets to a hypervisor."""

from __future__ import annotations

import contextlib
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import footprint
import pytest
from runs import LOCAL, Controller, local, play

HELPER = "livesnap.qemu.livesnap_helper"
TARGET = Path("/usr/local/libexec/livesnap")
ASK = {"name": "Helper", HELPER: {}}


@pytest.fixture
def no_helper() -> None:
    """The target has none."""
    shutil.rmtree(TARGET, ignore_errors=True)
    with contextlib.suppress(OSError):
        TARGET.parent.rmdir()


def test_prepare_again_and_remove(bare: Controller, tmp_path: Path) -> None:
    before = footprint.take()
    store = tmp_path / "store"
    given = ("-e", f"livesnap_store={store}")
    predicted = bare.playbook(LOCAL, "livesnap.qemu.host", *given, "--check")
    assert predicted.good().recap("hv1")["changed"] > 0
    assert footprint.difference(before, footprint.take()) == []
    assert not store.exists()
    first = bare.playbook(LOCAL, "livesnap.qemu.host", *given).good()
    assert first.recap("hv1")["changed"] > 0
    assert first.one(HELPER)["changed"] is True
    assert store.stat().st_mode & 0o7777 == 0o711
    for options in ((), ("--check",)):
        again = bare.playbook(LOCAL, "livesnap.qemu.host", *given, *options).good()
        assert again.recap("hv1")["changed"] == 0
    (store / "keep").touch()
    gone = bare.playbook(
        LOCAL, "livesnap.qemu.host", *given, "-e", "host_state=absent"
    ).good()
    assert gone.recap("hv1")["changed"] > 0
    again = bare.playbook(
        LOCAL, "livesnap.qemu.host", *given, "-e", "host_state=absent"
    ).good()
    assert again.recap("hv1")["changed"] == 0
    assert (store / "keep").exists()
    assert footprint.difference(before, footprint.take()) == []


def test_helper_describes_the_hypervisor(prepared: Controller) -> None:
    found = prepared.playbook(LOCAL, play(ASK)).good().one(HELPER)
    assert found["changed"] is False
    assert found["helper"].startswith(str(TARGET))
    assert found["version"].startswith("livesnap-helper ")
    assert found["features"]["arch"] == platform.machine()
    library = Path(found["helper"]).with_name("liblivesnap-image.so")
    assert library.stat().st_mode & 0o7777 == 0o644


def test_removing_the_helper_is_predicted_and_done(prepared: Controller) -> None:
    prepared.playbook(LOCAL, play(ASK)).good()
    task = {"name": "Remove", HELPER: {"state": "absent"}}
    assert prepared.playbook(LOCAL, play(task), "--check").good().one(HELPER)["changed"] is True
    assert TARGET.exists()
    gone = prepared.playbook(LOCAL, play(task)).good().one(HELPER)
    assert gone["changed"] is True
    assert gone["helper"] is None
    assert not TARGET.exists()


def test_many_hosts_and_an_empty_cache_make_one_build(
    prepared: Controller,
    no_helper: None,
    tmp_path: Path,
    rounds: Callable[[int, int], int],
) -> None:
    count = rounds(6, 20)
    counted = tmp_path / "bin"
    counted.mkdir()
    log = tmp_path / "builds"
    (counted / "make").write_text(f'#!/bin/sh\nfor last; do :; done\n'
                                  f'basename "$last" >>{log}\nexec /usr/bin/make "$@"\n')
    (counted / "make").chmod(0o755)
    hosts = {f"hv{number}": {"ansible_connection": "local"} for number in range(count)}
    run = prepared.playbook(
        {"hosts": hosts},
        play(ASK),
        f"--forks={count}",
        PATH=f"{counted}:{prepared.environment['PATH']}",
        XDG_CACHE_HOME=str(tmp_path / "cache"),
    ).good()
    assert len(run.of(HELPER)) == count
    assert log.read_text().splitlines() == ["livesnap-helper", "liblivesnap-image.so"]
    assert {found["version"] for found in run.of(HELPER)} != {None}


def test_a_prepared_target_needs_no_compiler(prepared: Controller, tmp_path: Path) -> None:
    prepared.playbook(LOCAL, play(ASK)).good()
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "python3", "uname", "sleep", "cat", "echo", "id", "env"):
        (tools / name).symlink_to(str(shutil.which(name, path="/usr/bin:/bin")))
    run = prepared.playbook(
        LOCAL, play(ASK), PATH=str(tools), XDG_CACHE_HOME=str(tmp_path / "cache")
    ).good()
    assert run.one(HELPER)["changed"] is False
    assert not (tmp_path / "cache").exists()


def test_nothing_to_send_names_all_four_sources(
    prepared: Controller, no_helper: None, tmp_path: Path
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "python3", "uname", "sleep"):
        (tools / name).symlink_to(str(shutil.which(name, path="/usr/bin:/bin")))
    run = prepared.playbook(
        local(livesnap_helper_dir="/nowhere"),
        play(ASK),
        PATH=str(tools),
        XDG_CACHE_HOME=str(tmp_path / "cache"),
    )
    assert run.code != 0
    message = run.one(HELPER)["msg"]
    for word in ("/nowhere", "/usr/share/livesnap/", "the cache has no", "make is not installed"):
        assert word in message


def test_a_helper_of_a_directory_is_used_before_a_build(
    prepared: Controller, no_helper: None, tmp_path: Path
) -> None:
    built = next(
        (Path(prepared.environment["XDG_CACHE_HOME"]) / "livesnap").rglob("livesnap-helper")
    )
    folder = tmp_path / "given" / platform.machine()
    folder.mkdir(parents=True)
    shutil.copy2(built, folder)
    run = prepared.playbook(
        local(livesnap_helper_dir=str(tmp_path / "given")),
        play(ASK),
        XDG_CACHE_HOME=str(tmp_path / "cache"),
    ).good()
    assert run.one(HELPER)["changed"] is True
    assert not (tmp_path / "cache").exists()


def test_a_helper_of_other_sources_is_refused(
    prepared: Controller, no_helper: None, tmp_path: Path
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "livesnap-helper").write_text(
        "#!/bin/sh\necho livesnap-helper 0.0.9 '(protocol 0, x86_64)'\n"
    )
    run = prepared.playbook(local(livesnap_helper_dir=str(folder)), play(ASK))
    assert run.code != 0
    assert "0.0.9" in run.one(HELPER)["msg"]
    prepared.playbook(LOCAL, play(ASK)).good()


def test_check_mode_where_nothing_was_prepared_says_what_to_do(
    controller: Controller, no_helper: None, tmp_path: Path
) -> None:
    before = footprint.take()
    task = {
        "name": "Snapshot",
        "livesnap.qemu.livesnap": {"guest": "g", "name": "n", "qmp_socket": "/nowhere"},
    }
    hidden = Path("/usr/local/lib/livesnap")
    aside = hidden.with_name("livesnap.aside")
    if hidden.exists():
        hidden.rename(aside)
    try:
        bare = local(ansible_python_interpreter="/usr/bin/python3")
        run = controller.playbook(bare, play(task), "--check")
    finally:
        if aside.exists():
            aside.rename(hidden)
    assert run.code != 0
    assert "host.yml" in run.one("livesnap.qemu.livesnap")["msg"]
    # The helper went to Ansible's temporary folder, and away with it.
    assert footprint.difference(before, footprint.take()) == []
