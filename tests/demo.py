# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tour: a guest under load, its snapshot, a clone, and what was measured, on one screen."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
for entry in (HERE, HERE / "guests", HERE / "integration"):
    sys.path.insert(0, str(entry))

import footprint  # noqa: E402
import layout  # noqa: E402
from guests import CLONE, MODULE  # noqa: E402
from guests import entry as inventory_entry  # noqa: E402
from lab import Guest, disk_state, judge, ram_state  # noqa: E402
from lab.reach import Reach  # noqa: E402
from runs import LOCAL, REPO, VENV, Controller, local, play  # noqa: E402

GUEST = "demo"


def say(text: str) -> None:
    print(text, flush=True)


def size(count: int) -> str:
    return f"{count / 1048576:.1f} MiB"


def install(controller: Controller) -> None:
    done = controller.command(
        str(VENV / "ansible-galaxy"), "collection", "install", "--force",
        "-r", "collections/requirements.yml", "-p", str(controller.collections), cwd=REPO,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stdout)


def original_instant(
    controller: Controller, helper: str, snapshot: dict[str, Any]
) -> dict[str, Any]:
    """What RAM and disk of the snapshot itself hold, read without QEMU."""
    with tempfile.TemporaryDirectory(dir=controller.folder) as folder:
        raw = Path(folder) / "ram"
        done = controller.command(
            helper, "export", "--format", "raw", f"{snapshot['path']}/ram.lsnap", str(raw)
        )
        if done.returncode:
            raise SystemExit(done.stdout)
        disks = [disk_state(Path(snapshot["path"]) / disk["file"]) for disk in snapshot["disks"]]
        ram = ram_state(raw, disks[0].boot)
        counters = [counter for counter, _tail in ram.pages.values()]
        return {
            "ram": max(counters),
            "behind": sum(counter != max(counters) for counter in counters),
            "pages": len(counters),
            "disk": disks[0].counter,
            "wrong": judge(ram, disks),
        }


def restore_lines(helper: str, snapshot: dict[str, Any]) -> list[str]:
    """The commands that bring it back with stock QEMU, made from its manifest alone."""
    from ansible_collections.livesnap.qemu.plugins.module_utils._clone.plain import plain_restore

    store = str(Path(snapshot["path"]).parent.parent)
    name = snapshot["name"]
    lines = plain_restore(store, GUEST, name, "/tmp/demo-restored", helper)
    return [line for text in lines for line in text.splitlines()]


def tour(controller: Controller, guest: Guest, store: Path) -> None:
    say("2. The hypervisor is prepared: playbooks/host.yml")
    variables = {"livesnap_guests": [inventory_entry(guest, GUEST)], "livesnap_store": str(store)}
    inventory = local(**variables)
    controller.playbook(inventory, "playbooks/host.yml").good()
    guest.ask("reset")
    say("3. The snapshot, while the guest writes to RAM and disk: playbooks/snapshot.yml")
    began = time.monotonic()
    run = controller.playbook(inventory, "playbooks/snapshot.yml").good()
    took = time.monotonic() - began
    result = run.one(MODULE)
    snapshot = result["snapshot"]
    live = guest.counts()
    say("4. The same again")
    again = controller.playbook(inventory, "playbooks/snapshot.yml").good()
    say("5. A clone of it: playbooks/restore.yml")
    clone = (
        controller.playbook(inventory, "playbooks/restore.yml", "-e", f"restore_guest={GUEST}")
        .good()
        .one(CLONE)
    )
    copied = Reach(Path(clone["qmp_socket"]), Path(clone["agent_socket"]), clone["pid"])
    copied.wait_agent()
    counted = copied.counts()
    devices = copied.devices()
    helper = controller.playbook(
        LOCAL, play({"name": "Helper", "livesnap.qemu.livesnap_helper": {}})
    )
    path = helper.good().one("livesnap.qemu.livesnap_helper")["helper"]
    instant = original_instant(controller, path, snapshot)
    timings, memory = snapshot["timings"], snapshot["memory"]
    right = "of one instant" if not instant["wrong"] else f"NOT of one instant: {instant['wrong']}"
    changed = [each.recap("hv1")["changed"] for each in (run, again)]
    frozen = f"{timings['freeze_ms']:.1f} ms" if timings["freeze_ms"] is not None else "none"
    say("")
    say(f"snapshot         {snapshot['name']} of guest {GUEST}, {snapshot['consistency']['level']}")
    say(f"where            {snapshot['path']}")
    say(f"freeze           {frozen}   pause {timings['pause_ms']:.1f} ms")
    say(
        f"engine           {snapshot['engine']}, RAM protected for {timings['protected_s']:.2f} s, "
        f"{memory['faults']} faults"
    )
    say(f"RAM              {size(memory['bytes'])}, stored {size(memory['stored_bytes'])}")
    say(
        f"playbook         {took:.1f} s, changed={changed[0]}; the second time changed={changed[1]}"
    )
    say(
        f"guest            counts on: {live['counter']}, intact, "
        f"longest pause of its writer {live['longest_pause_ms']} ms"
    )
    say(
        f"proof            RAM counter {instant['ram']} ({instant['behind']} of {instant['pages']} "
        f"pages one behind), disk counter {instant['disk']}: {right}"
    )
    say(
        f"clone            counts on from there: {counted['counter']}, intact; "
        f"devices {', '.join(f'{key} {value}' for key, value in sorted(devices.items()))}"
    )
    say("without livesnap")
    for line in restore_lines(path, snapshot):
        say(f"  {line}")
    if instant["wrong"] or changed != [changed[0], 0]:
        raise SystemExit(1)


def clean(controller: Controller, store: Path, prepared: bool) -> None:
    """A hypervisor that was prepared before stays so."""
    gone = ("-e", f"livesnap_store={store}")
    controller.playbook(
        LOCAL, "playbooks/restore.yml", *gone, "-e", f"restore_guest={GUEST}", "-e",
        "restore_state=absent",
    )  # fmt: skip
    if not prepared:
        controller.playbook(LOCAL, "playbooks/host.yml", *gone, "-e", "host_state=absent")


def main() -> int:
    layout.link_collection()
    sys.path.insert(0, str(layout.COLLECTIONS))
    if os.geteuid() != 0:
        say("make demo attaches to a QEMU and installs the helper: run it as root")
        return 1
    mark = os.environ.setdefault(footprint.MARK, str(uuid.uuid4()))
    before = footprint.take()
    prepared = Path("/usr/local/lib/livesnap/venv").exists()
    with tempfile.TemporaryDirectory(prefix="livesnap-demo-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        controller = Controller(folder, folder / "collections")
        say(
            "1. A guest boots: real kernel, real agent, ext4; its witness counts in RAM and on disk"
        )
        install(controller)
        try:
            with Guest(memory=256, buffer=64, rest=4, fresh=True) as guest:
                while not (rate := guest.witness()["rate"]):
                    time.sleep(0.2)
                say(f"   {guest.accel}, {rate} rounds a second")
                tour(controller, guest, folder / "store")
        finally:
            clean(controller, folder / "store", prepared)
    left = footprint.difference(before, footprint.take())
    if prepared:
        # Of a hypervisor that is in use, what was there is none of the tour's business.
        left = [line for line in left if not line.startswith(("/usr/local: new", "/run/livesnap"))]
    left += sorted(footprint.marked_processes(mark))
    say("\ncleaned up: the machine is as it was" if not left else "\nleft behind:")
    for line in left:
        say(f"  {line}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
