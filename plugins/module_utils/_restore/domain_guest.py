# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A libvirt domain: ended by libvirt, and restored by libvirt from an export of the snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._connection import saved
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import (
    Domain,
    as_domain,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    RefusedError,
    RestoreError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.address import DomainAddress
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.domain_xml import agent_state
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.process import (
    QemuProcess,
    start_time,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.command import incoming
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.guest import (
    END_LIMIT,
    Guest,
    Noted,
    State,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.xml import (
    chained,
    disk_files,
    with_images,
    without_chains,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files, names

KIND = "domain"
#: libvirt's save file, and the XML that goes into it; in the journal's folder.
SAVE, XML = "save", "domain.xml"
#: The slowest that RAM is written and read back and not counted as stuck, bytes a second.
_SLOWEST, _LIMIT = 20 << 20, 60.0


class DomainGuest(Guest):
    """By its name: libvirt keeps it over its end."""

    def __init__(
        self,
        address: DomainAddress,
        name: str,
        helper: str,
        private: Path,
        moved: Mapping[str, Sequence[str]],
    ) -> None:
        """The domain is persistent: see check(). moved: libvirt's name of a disk -> (file, format)
        of the layer that the domain has it in now."""
        super().__init__(address, name, helper, private)
        self.at = address
        self.moved = dict(moved)

    @classmethod
    def from_noted(cls, about: Mapping[str, Any], name: str, helper: str, private: Path) -> Guest:
        """From noted()."""
        address = DomainAddress(about["uri"], about["domain"])
        return cls(address, name, helper, private, about.get("moved", {}))

    def noted(self) -> dict[str, Any]:
        return {"kind": KIND, **self.at.noted(), "moved": self.moved}

    @classmethod
    def definition(cls, address: DomainAddress) -> str:
        """What libvirt starts a domain with."""
        with Domain.find(address.uri, address.domain) as domain:
            return domain.definition()

    def check(self, snapshot_xml: str) -> None:
        """Refuse what libvirt would not bring back as it was."""
        with self._find() as domain:
            if not domain.call("isPersistent", lambda each: each.isPersistent()):
                raise RefusedError(
                    f"domain '{self.name}' is transient: libvirt forgets it when it ends",
                    "define it first (virsh define)",
                    "transient",
                )
            if domain.call("hasManagedSaveImage", lambda each: each.hasManagedSaveImage()):
                raise RefusedError(
                    f"domain '{self.name}' has a managed save, whose RAM would not fit its disks",
                    f"start the domain, or virsh managedsave-remove {self.name}",
                    "managed_save",
                )
            definition = domain.definition()
        defined = disk_files(definition)
        for target in chained(definition):
            if names.is_layer(defined.get(target)):
                # libvirt wrote that down itself, and end() takes it out.
                continue
            raise RefusedError(
                f"the definition of domain '{self.name}' names the backing file of disk '{target}';"
                " an image that is put back has none",
                "define the domain without <backingStore>: libvirt then looks into the image",
                "backing",
            )
        for target, file in disk_files(snapshot_xml).items():
            if target in defined and not names.same_disk(defined[target], file):
                raise RefusedError(
                    f"disk '{target}' was '{file}' at the snapshot, and the definition of domain"
                    f" '{self.name}' has '{defined[target]}'",
                    "define the domain with its disks where they were, or make a clone",
                    "disk_moved",
                )

    def _find(self) -> Domain:
        return Domain.find(self.at.uri, self.at.domain)

    def prepare(self, state: State) -> None:
        """The save file: libvirt reads nothing else, and writing it takes its time."""
        xml = files.read_regular(state.folder / XML, 16 << 20).decode()
        text = with_images(without_chains(xml), self.moved)
        files.write_whole(self.private / XML, text.encode())
        save = self.private / SAVE
        argv = [self.helper, "export", "--format", "libvirt", "--paused"]
        argv += ["--xml", str(self.private / XML), str(state.folder), str(save)]
        done = run_bounded(argv, _LIMIT + state.bytes / _SLOWEST)
        if done.problem or done.code != 0:
            raise RestoreError(
                f"'{save}' cannot be written: livesnap-helper {done.problem or done.words}",
                "is there room in the store?",
            )

    def end(self) -> None:
        with self._find() as domain:
            domain.call("destroy", lambda each: each.destroy(), END_LIMIT)
            definition = domain.definition()
            if chained(definition):
                # The images that are put in place stand on nothing; libvirt looks into them.
                domain.define(without_chains(definition))

    def bring(self, state: State, noted: Noted) -> list[str]:
        saved.restore(self.at.uri, str(self.private / SAVE), _LIMIT + state.bytes / _SLOWEST)
        with self.address.connect() as connection:
            noted(connection.peer_pid, start_time(connection.peer_pid) or 0)
            return self.woken(connection, state)

    def bring_back(self, state: Optional[State], noted: Noted) -> list[str]:
        if state is not None:
            self.prepare(state)
            return self.bring(state, noted)
        with self._find() as domain:
            domain.call("create", lambda each: each.create(), _LIMIT)
        return []

    def kill(self, brought: list[int]) -> None:
        with self._find() as domain:
            if not domain.call("isActive", lambda each: each.isActive()):
                return
            process = QemuProcess.of(domain.qemu())
            if [process.pid, process.start_time] != brought and not incoming(process.argv):
                raise RestoreError(
                    f"domain '{self.name}' runs (pid {process.pid}), and was not started by the"
                    " restore",
                    "end it first: what it writes is on images that go when the old ones are put"
                    " back",
                )
            domain.call("destroy", lambda each: each.destroy(), END_LIMIT)

    def has_no_agent(self, connection: Connection) -> bool:
        return agent_state(as_domain(connection).xml()) == "absent"
