# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest of a run, and the folder's name: from here on the snapshot exists."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._bracket import capture
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.run import Run
from ansible_collections.livesnap.qemu.plugins.module_utils._capture.capture import IMAGE, gpa_list
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files, listing, status

DOMAIN = "domain.xml"
#: Version of the collection, as in galaxy.yml (a test compares).
LIVESNAP = "0.1.0"


def publish(run: Run) -> dict[str, Any]:
    """Make durable, write the manifest, give the folder its name; `snapshot` as it is returned."""
    folder = run.place()
    memory = _memory(run, folder)
    devices = _devices(folder) if run.plan.engine is not None else None
    run.timings["total_s"] = round(time.monotonic() - run.started_at, 3)
    fields = {
        "livesnap": LIVESNAP,
        "id": run.id,
        "guest": run.spec.guest,
        "name": run.spec.name,
        "uuid": run.plan.uuid,
        "created": run.created,
        "started": run.started,
        "complete": True,
        "was_running": run.plan.facts.running or run.spec.held,
        "was_off": False,
        "engine": run.plan.engine,
        "consistency": consistency(run),
        "timings": run.timings,
        "memory": memory,
        "devices": devices,
        "disks": run.disk_entries,
        "excluded_disks": [
            {"match": disk.label, "node": disk.node} for disk in run.plan.selection.excluded
        ],
        "guest_facts": guest_facts(run),
        "restore_blockers": list(run.plan.facts.restore_blockers),
        "schedule": run.spec.schedule,
        "slot": run.spec.slot,
        "bracket": {
            "attempts": run.attempts,
            "deadline_s": run.spec.deadline,
            "warnings": list(run.warnings),
        },
        "domain": None
        if run.plan.facts.domain_xml is None
        else write_domain(folder, run.plan.facts.domain_xml, run.spec.uri),
        "parent": None,
        "encryption": None,
    }
    first = status.changed(status.default(), run.spec.labels, run.spec.pinned)
    final = run.store.publish(folder, fields, first)
    run.folder = None
    return listing.describe(fields, first, str(final))


def consistency(run: Run) -> dict[str, Any]:
    """What is known of the disks' state, and why."""
    if run.freeze_achieved:
        took = run.timings["freeze_ms"]
        said = f"fsfreeze: {run.froze} file systems were frozen for {took:.0f} ms"
    else:
        said = f"fsfreeze: not done: {run.freeze_reason}"
    return {
        "level": "filesystem" if run.freeze_achieved else "crash",
        "indications": [said, *run.plan.passed_over],
        "freeze": {
            "asked": run.spec.freeze,
            "achieved": run.freeze_achieved,
            "reason": None if run.freeze_achieved else run.freeze_reason,
            "filesystems": run.froze,
        },
    }


def _memory(run: Run, folder: Path) -> Optional[dict[str, Any]]:
    if run.capture is None or run.capture.done is None:
        return None
    done = run.capture.done
    released = run.capture.released or {}
    if "protected_s" in released and not run.capture.holds:
        run.timings["protected_s"] = round(float(released["protected_s"]), 6)
    if "sweep_s" in done:
        run.timings["sweep_s"] = round(float(done["sweep_s"]), 6)
    run.warnings += [str(each) for each in done.get("warnings", [])]
    fault_us = done.get("fault_us") or {}
    faults = int(done.get("faults", 0))
    return {
        "file": IMAGE,
        "bytes": int(done["bytes"]),
        "zero_bytes": int(done["zero_bytes"]),
        "stored_bytes": int(done["stored_bytes"]),
        "file_bytes": (folder / IMAGE).stat().st_size,
        "checksum": str(done["checksum"]),
        "compression": run.spec.compression,
        "staging_bytes": int(done["staging_bytes"]),
        "faults": faults,
        "fault_us": {
            key: round(float(fault_us[key]), 3) if faults and key in fault_us else None
            for key in ("p50", "p99", "max")
        },
        "proof": {
            "scans": int(done.get("proof", {}).get("scans", 0)),
            "chunks": int(done.get("proof", {}).get("chunks", 0)),
        },
        "gpa": gpa_list(run.plan.facts),
        "ramblock": run.ramblock,
    }


def write_domain(folder: Path, xml: str, uri: str) -> dict[str, Any]:
    """libvirt's XML into the folder, because a restore needs it; `domain` of the manifest."""
    data = xml.encode()
    with files.as_store_error(f"'{folder / DOMAIN}' cannot be written"):
        files.write_whole(folder / DOMAIN, data)
    return {
        "file": DOMAIN,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "uri": uri,
    }


def _devices(folder: Path) -> dict[str, Any]:
    data = files.read_regular(folder / capture.DEVICES, 1 << 30)
    return {
        "file": capture.DEVICES,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def guest_facts(run: Run) -> dict[str, Any]:
    """What a restore needs to know of the guest."""
    facts, process = run.plan.facts, run.process
    return {
        "name": facts.name or None,
        "qemu_version": facts.qemu_version,
        "qemu_package": run.qmp.package,
        "machine": facts.machine,
        "arch": facts.arch,
        "accelerator": facts.accel,
        "cpu": facts.cpu,
        "vcpus": facts.cpus,
        "memory_bytes": facts.memory_bytes,
        "argv": [_text(word) for word in process.argv],
        "cwd": process.cwd,
        "exe": process.exe,
        "user": process.user,
        "uid": process.uid,
        "gid": process.gid,
        "cgroup": process.cgroup,
        "firmware": [
            {"path": each.path, "sha256": each.sha256, "bytes": each.bytes}
            for each in facts.firmware
        ],
        "device_tree": {each.path: each.type for each in facts.devices},
        "block_nodes": run.plan.block_nodes,
    }


def _text(word: str) -> str:
    """A word of a command line; bytes that are no text are kept visible."""
    return word.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
