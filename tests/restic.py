# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The real restic, as an oracle of what a policy keeps: the program, and repositories for it.

A repository is made by restic itself. Its snapshots are written here, in restic's own format
(https://restic.readthedocs.io/en/v0.18.0/100_references.html): `restic backup` would take half a
second for each. restic refuses what is not encrypted and authenticated as it should be.
"""

from __future__ import annotations

import base64
import collections
import copy
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305
from debs import Program

# Debian 13's. The versions before 0.17 keep other sets: they lack the oldest one.
RESTIC = Program(
    "restic",
    "0.18.0",
    "pool/main/r/restic/restic_0.18.0-1+b4_amd64.deb",
    "4888fb20b272a28b84ac39171b7d7f0d9a58c2aeae51ec28e54684648d66e12c",
)
REFUSES_TO_EMPTY = "refusing to delete last snapshot"


def program() -> Path:
    """restic 0.18.0; debs.Unavailable says why it cannot be had."""
    return RESTIC.path()


class _Key:
    """AES-256-CTR and Poly1305-AES, as restic uses them."""

    def __init__(self, encrypt: bytes, mac_k: bytes, mac_r: bytes) -> None:
        self.encrypt, self.mac_k, self.mac_r = encrypt, mac_k, mac_r

    @classmethod
    def of_password(cls, salt: bytes, n: int, r: int, p: int) -> _Key:
        """Of the empty password."""
        found = hashlib.scrypt(b"", salt=salt, n=n, r=r, p=p, dklen=64, maxmem=1 << 30)
        return cls(found[:32], found[32:48], found[48:])

    def _ctr(self, nonce: bytes, data: bytes) -> bytes:
        cipher = Cipher(algorithms.AES(self.encrypt), modes.CTR(nonce)).encryptor()
        return cipher.update(data) + cipher.finalize()

    def seal(self, data: bytes) -> bytes:
        nonce = os.urandom(16)
        block = Cipher(algorithms.AES(self.mac_k), modes.ECB()).encryptor()
        one_time = self.mac_r + block.update(nonce) + block.finalize()
        hidden = self._ctr(nonce, data)
        return nonce + hidden + Poly1305.generate_tag(one_time, hidden)

    def open(self, sealed: bytes) -> bytes:
        """Without the check of who wrote it: the repository is our own."""
        return self._ctr(sealed[:16], sealed[16:-16])


class Repository:
    """A repository whose snapshots have the clocks of one zone. Times are in whole seconds."""

    def __init__(self, restic: Path, folder: Path, zone: str) -> None:
        self.restic, self.folder, self.zone = restic, folder, zone
        self._run("init").check_returncode()
        self._key = self._cheap_key()

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.restic), "--insecure-no-password", "--no-cache", "--json"]
        return subprocess.run(
            [*command, "--repo", str(self.folder), *arguments],
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "TZ": self.zone},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def _cheap_key(self) -> _Key:
        """The repository's own key, from now on behind a password that costs no time to check."""
        (path,) = (self.folder / "keys").iterdir()
        about = json.loads(path.read_bytes())
        salt, sealed = (base64.b64decode(about[name]) for name in ("salt", "data"))
        master = _Key.of_password(salt, about["N"], about["r"], about["p"]).open(sealed)
        about.update(N=2, r=1, p=1)
        cheap = _Key.of_password(salt, 2, 1, 1).seal(master)
        about["data"] = base64.b64encode(cheap).decode()
        self._write("keys", json.dumps(about).encode())
        path.unlink()
        keys = json.loads(master)
        parts = (keys["encrypt"], keys["mac"]["k"], keys["mac"]["r"])
        return _Key(*(base64.b64decode(part) for part in parts))

    def _write(self, kind: str, data: bytes) -> None:
        (self.folder / kind / hashlib.sha256(data).hexdigest()).write_bytes(data)

    def copy(self, folder: Path, zone: str) -> Repository:
        """Another one with the same key, in another zone perhaps, to be filled in another way."""
        made = copy.copy(self)
        made.folder, made.zone = folder, zone
        shutil.copytree(self.folder, folder)
        return made

    def fill(self, hosts: dict[str, list[tuple[datetime, tuple[str, ...]]]]) -> None:
        """Add snapshots: by host, when and with which tags."""
        for host, snapshots in hosts.items():
            for number, (time, tags) in enumerate(snapshots):
                about: dict[str, Any] = {
                    # In the offset of its zone: that makes it a local time to restic.
                    "time": time.astimezone(ZoneInfo(self.zone)).isoformat(),
                    "tree": "0" * 64,
                    "paths": ["/"],
                    "hostname": host,
                    "username": str(number),
                }
                if tags:
                    about["tags"] = list(tags)
                self._write("snapshots", self._key.seal(json.dumps(about).encode()))

    def forget(self, *options: str) -> dict[str, collections.Counter[Any]] | str:
        """What it would keep: by host, how often (time, reasons). Or the words of its refusal."""
        done = self._run("forget", "--dry-run", "--no-lock", "--group-by", "host", *options)
        if done.returncode:
            return done.stderr
        groups = json.loads(done.stdout) if done.stdout.strip() else []
        return {
            group["host"]: collections.Counter(
                (_utc(each["snapshot"]["time"]), _reasons(each["matches"]))
                for each in group["reasons"] or []
            )
            for group in groups
        }


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc)


def _reasons(matches: Iterable[str]) -> frozenset[str]:
    """restic's words for why it keeps one, in ours."""
    found = set()
    for text in matches:
        oldest = " (the oldest)" if text.startswith("oldest ") else ""
        words = text.removeprefix("oldest ")
        if tags := re.fullmatch(r"has tags \[(.*)\]", words):
            found.add("keep_labels " + (tags[1].replace(", ", ",") or "none"))
        elif within := re.fullmatch(r"(\w+) within (\w+)", words):
            found.add(f"keep_within_{within[1]} {within[2]}{oldest}")
        elif within := re.fullmatch(r"within (\w+)", words):
            found.add(f"keep_within {within[1]}")
        else:
            found.add(f"keep_{words.removesuffix(' snapshot')}{oldest}")
    return frozenset(found)
