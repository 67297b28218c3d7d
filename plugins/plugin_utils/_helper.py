# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where livesnap-helper comes from on the controller, and what is asked of a hypervisor about it.

Nothing here talks to a target: the action plugin does, with the shell lines made here. Private to
this collection.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NAME = "livesnap-helper"
# Goes along where it is beside the helper: checks read RAM images faster with it.
LIBRARY = "liblivesnap-image.so"
# Not below /tmp or /var: these are often mounted noexec.
TARGET_ROOT = "/usr/local/libexec/livesnap"
SHARED_ROOT = Path("/usr/share/livesnap")
BUILD_SECONDS = 600


class HelperMissing(Exception):
    """No helper could be had; the message names every source that was tried."""


@dataclass(frozen=True)
class Sources:
    """The helper's sources as they lie in the collection."""

    root: Path

    @classmethod
    def of_collection(cls) -> Sources:
        """native/ of the collection that this file is part of."""
        return cls(Path(__file__).resolve().parents[2] / "native")

    def files(self) -> list[Path]:
        """What binary and library are made of, in a fixed order."""
        every = [path for folder in ("src", "lib") for path in (self.root / folder).rglob("*.[ch]")]
        return [self.root / "Makefile", *sorted(every)]

    def digest(self) -> str:
        """First 16 hexadecimal digits of SHA-256 over names and contents."""
        total = hashlib.sha256()
        for path in self.files():
            content = path.read_bytes()
            total.update(f"{path.relative_to(self.root).as_posix()}\0{len(content)}\0".encode())
            total.update(content)
        return total.hexdigest()[:16]

    def version(self) -> str:
        """How `livesnap-helper --version` of these sources begins."""
        text = (self.root / "src" / "version.h").read_text(encoding="utf-8")
        version = re.search(r'LS_VERSION "([^"]+)"', text)
        protocol = re.search(r"LS_PROTOCOL (\d+)", text)
        if not version or not protocol:
            raise HelperMissing(f"{self.root}/src/version.h does not name a version and a protocol")
        return f"{NAME} {version.group(1)} (protocol {protocol.group(1)}"


def target_path(digest: str) -> str:
    """Where the helper of these sources lies on a hypervisor."""
    return f"{TARGET_ROOT}/{digest}/{NAME}"


def ask_line(path: str) -> str:
    """A shell line that prints the architecture, and the version if the helper runs."""
    return f"uname -m && {{ {shlex.quote(path)} --version 2>/dev/null || :; }}"


def read_answer(text: str) -> tuple[str, str]:
    """(architecture, version or empty) of what that line printed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        # Banners of a login may come first; the architecture is the line before the version, or
        # the last.
        if re.fullmatch(r"[a-z0-9_]{3,16}", line):
            version = next(
                (later for later in lines[number + 1 :] if later.startswith(f"{NAME} ")), ""
            )
            return line, version
    raise HelperMissing(f"the target did not say its architecture; it said: {text.strip()!r}")


def install_line(sent: str, path: str) -> str:
    """A shell line that puts the helper in its place, whole or not at all, and runs it."""
    return _install_line(sent, path, 'chmod 0755 "$beside" && "$beside" --version')


def library_line(sent: str, path: str) -> str:
    """The same of the library, beside the helper of that path."""
    return _install_line(sent, f"{os.path.dirname(path)}/{LIBRARY}", 'chmod 0644 "$beside"')


def _install_line(sent: str, path: str, prepare: str) -> str:
    folder, name = os.path.split(path)
    return (
        f"umask 022 && mkdir -p {shlex.quote(folder)} && beside={shlex.quote(folder)}/.{name}.$$ &&"
        f' cp {shlex.quote(sent)} "$beside" && chown 0:0 "$beside" && {prepare} &&'
        f' mv -f "$beside" {shlex.quote(path)} || {{ rm -f "$beside"; exit 1; }}'
    )


def cache_root(environment: Mapping[str, str]) -> Path:
    """$XDG_CACHE_HOME/livesnap, with the standard's default."""
    base = environment.get("XDG_CACHE_HOME") or os.path.join(
        environment.get("HOME") or os.path.expanduser("~"), ".cache"
    )
    return Path(base) / "livesnap"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One fork at a time: the kernel drops the lock when its holder ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _build(sources: Sources, cached: Path) -> str:
    """Builds into the cache; the reason why not, or nothing. The library is not missed."""
    with tempfile.TemporaryDirectory(prefix="build-", dir=cached.parent) as folder:
        reason = _make(sources, folder, f"plain/{NAME}")
        if reason:
            return reason
        if not _make(sources, folder, LIBRARY):
            os.replace(f"{folder}/{LIBRARY}", cached.with_name(LIBRARY))
        os.chmod(f"{folder}/plain/{NAME}", 0o755)
        os.replace(f"{folder}/plain/{NAME}", cached)
    return ""


def _make(sources: Sources, folder: str, target: str) -> str:
    """Makes one of the files in a folder; the reason why not, or nothing."""
    argv = ["make", "-s", f"-j{min(4, os.cpu_count() or 1)}", "-C", str(sources.root)]
    try:
        done = subprocess.run(
            [*argv, f"BUILD={folder}", f"{folder}/{target}"],
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        return "make is not installed"
    except subprocess.TimeoutExpired:
        return f"the build took more than {BUILD_SECONDS} s"
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.strip()]
        return "; ".join(errors[:3]) or f"make ended with {done.returncode}"
    return ""


def find(
    arch: str,
    sources: Sources,
    helper_dir: str | None,
    environment: Mapping[str, str],
    shared_root: Path = SHARED_ROOT,
) -> Path:
    """The helper for an architecture, on the controller: the first of the four sources that has it.

    HelperMissing names what was wrong with each.
    """
    tried = []
    if helper_dir:
        for candidate in (Path(helper_dir) / arch / NAME, Path(helper_dir) / NAME):
            if candidate.is_file():
                return candidate
        tried.append(f"livesnap_helper_dir '{helper_dir}' has neither {arch}/{NAME} nor {NAME}")
    else:
        tried.append("livesnap_helper_dir is not set")
    shared = shared_root / arch / NAME
    if shared.is_file():
        return shared
    tried.append(f"'{shared}' is not there")
    cached = cache_root(environment) / sources.digest() / arch / NAME
    if cached.is_file():
        return cached
    tried.append(f"the cache has no '{cached}'")
    if arch != platform.machine():
        tried.append(f"a build here would be for {platform.machine()}")
    else:
        with _locked(cached.parent):
            if cached.is_file():
                return cached
            reason = _build(sources, cached)
        if not reason:
            return cached
        tried.append(f"the build failed: {reason}")
    raise HelperMissing(
        f"There is no {NAME} for {arch} to send: {'; '.join(tried)}. Install gcc, make and "
        "the development files of jansson, zstd, lz4 and xxhash on the controller, or put a built "
        "helper into one of the other three places"
    )
