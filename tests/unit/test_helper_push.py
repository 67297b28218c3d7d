# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the helper comes from, and what is asked of a target about it."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
from ansible_collections.livesnap.qemu.plugins.plugin_utils import _helper

HERE = platform.machine()


@pytest.fixture
def sources(tmp_path: Path) -> _helper.Sources:
    """Sources of a helper that is a shell script: what is tested is everything around the build."""
    root = tmp_path / "native"
    (root / "src").mkdir(parents=True)
    (root / "src" / "version.h").write_text('#define LS_VERSION "9.8.7"\n#define LS_PROTOCOL 6\n')
    (root / "src" / "main.c").write_text("int main(void) {}\n")
    (root / "Makefile").write_text(
        "$(BUILD)/plain/livesnap-helper:\n\tmkdir -p $(BUILD)/plain\n"
        "\techo built >>builds\n\techo it >$@\n"
    )
    return _helper.Sources(root)


def find(
    sources: _helper.Sources, tmp_path: Path, arch: str = HERE, given: str | None = None
) -> Path:
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    return _helper.find(arch, sources, given, environment, tmp_path / "shared")


def put(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / _helper.NAME).write_text("#!/bin/sh\n")
    return folder / _helper.NAME


def test_the_digest_follows_contents_and_names(sources: _helper.Sources) -> None:
    first = sources.digest()
    assert len(first) == 16
    (sources.root / "tests").mkdir()
    (sources.root / "tests" / "test_x.c").write_text("x")
    assert sources.digest() == first
    (sources.root / "src" / "main.c").rename(sources.root / "src" / "other.c")
    second = sources.digest()
    assert second != first
    (sources.root / "src" / "other.c").write_text("int main(void) { return 1; }\n")
    assert sources.digest() not in (first, second)


def test_the_library_is_built_along_and_not_missed(
    sources: _helper.Sources, tmp_path: Path
) -> None:
    first = sources.digest()
    assert not find(sources, tmp_path).with_name(_helper.LIBRARY).exists()
    (sources.root / "lib").mkdir()
    (sources.root / "lib" / "library.c").write_text("int library;\n")
    assert sources.digest() != first
    with (sources.root / "Makefile").open("a") as file:
        file.write(f"$(BUILD)/{_helper.LIBRARY}:\n\techo library >$@\n")
    built = find(sources, tmp_path)
    assert built.with_name(_helper.LIBRARY).read_text() == "library\n"


def test_the_four_sources_are_tried_in_order(sources: _helper.Sources, tmp_path: Path) -> None:
    built = find(sources, tmp_path)
    assert built == tmp_path / "cache" / "livesnap" / sources.digest() / HERE / _helper.NAME
    assert find(sources, tmp_path) == built
    assert (sources.root / "builds").read_text() == "built\n"
    shared = put(tmp_path / "shared" / HERE)
    assert find(sources, tmp_path) == shared
    plain = put(tmp_path / "given")
    assert find(sources, tmp_path, given=str(tmp_path / "given")) == plain
    own = put(tmp_path / "given" / HERE)
    assert find(sources, tmp_path, given=str(tmp_path / "given")) == own


def test_a_build_that_fails_leaves_nothing_and_is_named(
    sources: _helper.Sources, tmp_path: Path
) -> None:
    (sources.root / "Makefile").write_text(
        "$(BUILD)/plain/livesnap-helper:\n\t@echo no such header >&2; exit 1\n"
    )
    with pytest.raises(_helper.HelperMissing, match="no such header") as raised:
        find(sources, tmp_path, given="/nowhere")
    for word in ("/nowhere", "shared", "the cache has no", "the build failed"):
        assert word in str(raised.value)
    assert not [
        path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "lock"
    ]


def test_another_architecture_is_never_built_here(sources: _helper.Sources, tmp_path: Path) -> None:
    with pytest.raises(_helper.HelperMissing, match="a build here would be for"):
        find(sources, tmp_path, arch="sparc64")
    assert not (sources.root / "builds").exists()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("x86_64\n", ("x86_64", "")),
        (
            "Welcome!\nx86_64\nlivesnap-helper 0.1.0 (protocol 1, x86_64)\n",
            ("x86_64", "livesnap-helper 0.1.0 (protocol 1, x86_64)"),
        ),
        ("aarch64\ngarbage\n", ("aarch64", "")),
    ],
)
def test_answers_of_targets(said: str, expected: tuple[str, str]) -> None:
    assert _helper.read_answer(said) == expected


def test_a_target_that_says_nothing_is_an_error() -> None:
    with pytest.raises(_helper.HelperMissing, match="architecture"):
        _helper.read_answer("\n")


def test_asking_works_in_a_plain_shell(tmp_path: Path) -> None:
    path = tmp_path / "with space" / _helper.NAME
    path.parent.mkdir()
    ask = ["/bin/sh", "-c", _helper.ask_line(str(path))]
    absent = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    assert _helper.read_answer(absent) == (HERE, "")
    path.write_text("#!/bin/sh\necho livesnap-helper 1\n")
    path.chmod(0o755)
    there = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    assert _helper.read_answer(there) == (HERE, "livesnap-helper 1")


@pytest.mark.skipif("os.geteuid() != 0", reason="gives a file to root")
def test_the_library_is_put_beside_the_helper(tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    sent.write_text("a library")
    path = tmp_path / "with space" / _helper.NAME
    line = _helper.library_line(str(sent), str(path))
    subprocess.run(["/bin/sh", "-c", line], check=True)
    (put_there,) = path.parent.iterdir()
    assert (put_there.name, put_there.read_text()) == (_helper.LIBRARY, "a library")
    assert put_there.stat().st_mode & 0o7777 == 0o644


@pytest.mark.skipif("os.geteuid() != 0", reason="gives a file to root")
@pytest.mark.parametrize("body", ["#!/bin/sh\necho livesnap-helper 1\n", "#!/bin/sh\nexit 3\n"])
def test_installing_puts_it_whole_or_not_at_all(tmp_path: Path, body: str) -> None:
    sent = tmp_path / "sent"
    sent.write_text(body)
    path = tmp_path / "libexec" / "0123" / _helper.NAME
    done = subprocess.run(
        ["/bin/sh", "-c", _helper.install_line(str(sent), str(path))],
        capture_output=True,
        text=True,
        check=False,
    )
    if "exit" in body:
        assert done.returncode != 0
        assert list(path.parent.iterdir()) == []
    else:
        assert done.stdout == "livesnap-helper 1\n"
        assert list(path.parent.iterdir()) == [path]
        assert path.stat().st_mode & 0o7777 == 0o755
