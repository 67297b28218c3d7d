# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""File systems on the disk images of a snapshot, checked by their own programs.

qemu-storage-daemon shows each partition as a file, over FUSE, with an overlay in memory below it:
what a check of an ext4 writes (its journal, played back as a boot of the guest would) goes there,
and the image stays as it is. Mounts and processes are in namespaces that end with this process,
whatever ends it. The checkers run as nobody: what they read is the guest's work.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from dataclasses import dataclass
from typing import Any, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._run import Ended, run_bounded
from ansible_collections.livesnap.qemu.plugins.module_utils._store.chain import Link
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.request import (
    BadSnapshot,
    Check,
)

_LOOK_LIMIT = 60.0
#: How long a check may take, and so many bytes of a disk a second at least.
_LIMIT, _SLOWEST = 120.0, 20 << 20
#: The overlay of a journal's playback, at most.
_OVERLAY_BYTES = 512 << 20
_PROGRAMS = {
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "partx": "util-linux",
    "blkid": "util-linux",
    "qemu-storage-daemon": "qemu-utils",
}
_SECTOR = 512
#: How many partitions of a disk are looked at.
_PARTITIONS = 64

#: Kind, as blkid calls it -> (program, its arguments, what it belongs to).
CHECKERS = {
    **dict.fromkeys(("ext2", "ext3", "ext4"), ("e2fsck", ("-f", "-p"), "e2fsprogs")),
    "xfs": ("xfs_repair", ("-n", "-f"), "xfsprogs"),
}
#: What holds no files, or only others' parts of them.
_NO_FILES = ("swap", "")


@dataclass(frozen=True)
class Part:
    """A partition, or all of a disk without partitions (number 0). Bytes."""

    number: int
    offset: int
    length: int

    def named(self, disk: Mapping[str, Any]) -> str:
        """For messages."""
        return f"disk '{disk['match']}'" + (f", partition {self.number}" if self.number else "")


def check(about: Check, disk: Mapping[str, Any], qemu_img: str) -> list[dict[str, Any]]:
    """{disk, partition, type, repaired} of each that was checked; BadSnapshot names a bad one."""
    lacking = _lacking()
    if lacking:
        about.not_done.append(f"file systems of disk '{disk['match']}': {lacking}")
        return []
    whole = Part(0, 0, disk["bytes"])
    looked = _run(about, disk, qemu_img, whole, _LOOK, _LOOK_LIMIT)
    if looked.problem or looked.code != 0:
        why = looked.problem or looked.words
        about.not_done.append(f"file systems of disk '{disk['match']}': {why}")
        return []
    found = []
    for part in parts(looked.text, disk["bytes"]):
        entry = _check_part(about, disk, qemu_img, part)
        if entry is not None:
            found.append(entry)
    return found


def _lacking() -> str:
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    missing = [(name, package) for name, package in _PROGRAMS.items() if not shutil.which(name)]
    return "; ".join(f"'{name}' is not installed ({package})" for name, package in missing)


def _check_part(
    about: Check, disk: Mapping[str, Any], qemu_img: str, part: Part
) -> Optional[dict[str, Any]]:
    limit = _LIMIT + part.length / _SLOWEST
    done = _run(about, disk, qemu_img, part, _CHECK, limit)
    what = part.named(disk)
    if done.problem or done.code != 0:
        about.not_done.append(f"file system of {what}: {done.problem or done.words}")
        return None
    kind, code, said = parse(done.text)
    if kind in _NO_FILES:
        return None
    if code is None:
        name, _arguments, package = CHECKERS.get(kind, ("", (), ""))
        why = f"'{name}' is not installed ({package})" if name else "no checker for it is known"
        about.not_done.append(f"file system of {what}, {kind}: {why}")
        return None
    verdict = judge(kind, code, said)
    if verdict == "bad":
        raise BadSnapshot(f"file system of {what}, {kind}, has errors: {said[:300]}")
    if verdict not in ("good", "repaired"):
        about.not_done.append(f"file system of {what}, {kind}: {verdict}")
        return None
    return {
        "disk": disk["match"],
        "partition": part.number,
        "type": kind,
        "repaired": verdict == "repaired",
    }


def judge(kind: str, code: int, said: str) -> str:
    """'good', 'repaired' (as a boot does), 'bad', or why nothing can be said. Pure."""
    if kind == "xfs":
        if code == 0:
            return "good"
        # Its log can be played back by a mount only, and without that nothing fits.
        return "its log would have to be played back first" if "in a log" in said else "bad"
    if code == 0:
        return "good"
    if code & ~3 == 0:
        return "repaired"
    # 8: the program failed, as with an overlay that is full.
    return "bad" if code & 4 and not code & 8 else f"e2fsck failed: {said[:200]}"


def parts(text: str, size: int) -> list[Part]:
    """What the look printed: a table's partitions, else the disk as a whole. Pure."""
    if "@@ table" not in text:
        return [Part(0, 0, size)]
    found = []
    for line in text.splitlines():
        match = re.fullmatch(r"\s*(\d+)\s+(\d+)\s+(\d+)\s*", line)
        if match:
            number, start, sectors = (int(each) for each in match.groups())
            part = Part(number, start * _SECTOR, sectors * _SECTOR)
            # An extended partition is a table of its own, of two sectors.
            if part.length > 2 * _SECTOR and part.offset + part.length <= size:
                found.append(part)
    return found[:_PARTITIONS]


def parse(text: str) -> tuple[str, Optional[int], str]:
    """(kind, exit code of the checker or None, its words) of what a check printed. Pure.

    Lines of the checker begin with a space: what a guest calls its files is never one of ours.
    """
    kind, code = "", None
    for line in text.splitlines():
        if line.startswith("@@ type "):
            kind = line[8:].strip()
        elif line.startswith("@@ code "):
            code = int(line[8:])
    said = [line[1:].strip() for line in text.splitlines() if line.startswith(" ")]
    return kind, code, "; ".join(each for each in said if each)


_LOOK = """
table=$(blkid -p -o value -s PTTYPE p0 || :)
if [ -n "$table" ]; then
    echo "@@ table"
    partx --raw --noheadings --output NR,START,SECTORS p0
fi
"""

_CHECK = """
kind=$(blkid -p -o value -s TYPE p0) || { [ $? -ne 8 ] || kind="more than one signature"; }
echo "@@ type $kind"
case $kind in
@CASES@
*) exit 0 ;;
esac
command -v "$1" >/dev/null || exit 0
set -- setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs "$@"
said=$("$@" p0 2>&1) && code=0 || code=$?
printf '%s\\n' "$said" | head -n 200 | sed 's/^/ /'
echo "@@ code $code"
"""

# The images below ("$@"), never opened to write; above them an overlay in memory; above that a
# window on it.
_SHOW = """
set -eu
PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH LC_ALL=C
work=$1 image=$2 format=$3 offset=$4 length=$5 overlay=$6 qemu_img=$7
shift 7
mount -t tmpfs -o "size=$overlay,mode=0711,nosuid,nodev" livesnap "$work"
cd "$work"
: >p0
"$qemu_img" create -q -f qcow2 -F "$format" -b "$image" overlay
qemu-storage-daemon --daemonize --pidfile pid "$@" \\
    --blockdev driver=file,node-name=of,filename=overlay \\
    --blockdev driver=qcow2,node-name=o,file=of,backing=b0 \\
    --blockdev "driver=raw,node-name=w,file=o,offset=$offset,size=$length" \\
    --export "type=fuse,id=e,node-name=w,mountpoint=$work/p0,writable=on"
chown 65534 p0
"""


def _cases() -> str:
    by_program: dict[str, list[str]] = {}
    for kind, (program, arguments, _package) in CHECKERS.items():
        by_program.setdefault(shlex.join([program, *arguments]), []).append(kind)
    return "\n".join(f"{'|'.join(kinds)}) set -- {words} ;;" for words, kinds in by_program.items())


def _run(
    about: Check,
    disk: Mapping[str, Any],
    qemu_img: str,
    part: Part,
    script: str,
    limit: float,
) -> Ended:
    """A script with a window on the disk, p0, in namespaces of its own."""
    links = about.links(disk)
    return run_bounded(
        [
            *("setpriv", "--pdeathsig", "KILL"),
            *("unshare", "--mount", "--propagation", "private", "--pid", "--fork"),
            *("--kill-child", "--mount-proc", "--ipc", "--net"),
            *("sh", "-c", _SHOW + script.replace("@CASES@", _cases()), "livesnap-verify"),
            *(str(about.run.path), str(links[0].path), disk["format"]),
            *(str(part.offset), str(part.length), str(_OVERLAY_BYTES), qemu_img),
            *_nodes(links),
        ],
        limit,
    )


def _nodes(links: Sequence[Link]) -> list[str]:
    """Options of qemu-storage-daemon for the images of a chain; the uppermost is node b0. Pure."""
    words = []
    for number, link in reversed(list(enumerate(links))):
        file = {
            "driver": "file",
            "node-name": f"f{number}",
            "filename": str(link.path),
            "read-only": True,
        }
        image: dict[str, Any] = {
            "driver": link.disk["format"],
            "node-name": f"b{number}",
            "file": f"f{number}",
            "read-only": True,
        }
        if link.disk["format"] == "qcow2":
            image["backing"] = f"b{number + 1}" if number + 1 < len(links) else None
        for node in (file, image):
            words += ["--blockdev", json.dumps(node)]
    return words
