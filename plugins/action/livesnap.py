# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one action plugin: sends the helper, runs the module, shows how far a snapshot is."""

from __future__ import annotations

import os
import random
import shlex
import time
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils._options import WITHOUT_HELPER
from ..plugin_utils import _helper, _progress

display = Display()

# Takes long enough to be worth a line now and then: how its option calls the snapshot, what is told
# of it, and what becomes of it when its process was killed.
WITH_PROGRESS = {
    "livesnap": (
        "name",
        "snapshot {snapshot} of {guest}",
        "The process that made snapshot '{snapshot}' of guest '{guest}' was killed on the target. "
        "If the instant had passed, the snapshot completes on its own; if not, the guest was set "
        "free. livesnap_info shows which, and the next run recovers what was left",
    ),
    "livesnap_verify": (
        "snapshot",
        "check of snapshot {snapshot} of {guest}",
        "The process that checked snapshot '{snapshot}' of guest '{guest}' was killed on the "
        "target. There is no verdict; the next check goes on from where it was",
    ),
}
# Seconds after which Ansible's own wrapper would end a module that has no time limit of its own: a
# week.
NO_LIMIT = 604800
# How often in a row the target may fail to answer a poll before that is the task's failure.
LOST_POLLS = 5


class ActionModule(ActionBase):
    """See the modules' documentation."""

    _supports_async = True
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Runs the module that the task names."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        del tmp
        short = self._task.action.rpartition(".")[2]
        name = f"livesnap.qemu.{short}"
        arguments = dict(self._task.args)
        absent = arguments.get("state") == "absent"
        pushed = False
        try:
            if short not in WITHOUT_HELPER and not (short == "livesnap_helper" and absent):
                arguments["_livesnap_helper"], pushed = self._push(task_vars, short)
            if (
                short in WITH_PROGRESS
                and not absent
                and not self._task.async_val
                and not self._task.check_mode
            ):
                result.update(self._run_with_progress(name, arguments, task_vars))
            else:
                result.update(
                    self._execute_module(
                        module_name=name,
                        module_args=arguments,
                        task_vars=task_vars,
                        wrap_async=self._task.async_val,
                    )
                )
        finally:
            if not self._task.async_val:
                self._remove_tmp_path(self._connection._shell.tmpdir)
        if short == "livesnap_helper" and not result.get("failed"):
            result["changed"] = bool(result.get("changed")) or pushed
        return result

    def _push(self, task_vars: dict[str, Any], short: str) -> tuple[str, bool]:
        """(path of the helper on the target, whether it had to be sent)."""
        sources = _helper.Sources.of_collection()
        path = _helper.target_path(sources.digest())
        arch, version = self._ask(path)
        if version.startswith(sources.version()):
            return path, False
        if self._task.check_mode and short == "livesnap_helper":
            return path, True
        helper_dir = task_vars.get("livesnap_helper_dir")
        try:
            local = _helper.find(
                arch,
                sources,
                self._templar.template(helper_dir) if helper_dir else None,
                os.environ,
            )
        except _helper.HelperMissing as error:
            raise AnsibleActionFail(str(error)) from error
        sent, library = self._send(local), local.with_name(_helper.LIBRARY)
        if self._task.check_mode:
            path, line = sent, f"{sent} --version"
        else:
            line = _helper.install_line(sent, path)
            if library.is_file():
                # The helper comes last: where it is nothing is sent any more.
                line = f"({_helper.library_line(self._send(library), path)}) && {line}"
        done = self._low_level_execute_command(line, sudoable=True)
        said = done.get("stdout", "").strip()
        if done.get("rc"):
            raise AnsibleActionFail(
                f"'{local}' could not be put on the target as '{path}' and run there: "
                f"{done.get('stderr', '').strip() or said or 'no reason given'}"
            )
        if sources.version() not in said:
            raise AnsibleActionFail(
                f"'{local}' calls itself '{said}', but '{sources.version()}...)' is needed; "
                "it was built from other sources"
            )
        return path, True

    def _send(self, local: Path) -> str:
        """The path of a copy in the task's temporary folder on the target."""
        if self._connection._shell.tmpdir is None:
            self._make_tmp_path()
        sent: str = self._connection._shell.join_path(self._connection._shell.tmpdir, local.name)
        self._transfer_file(str(local), sent)
        self._fixup_perms2([self._connection._shell.tmpdir, sent], execute=True)
        return sent

    def _ask(self, path: str) -> tuple[str, str]:
        done = self._low_level_execute_command(_helper.ask_line(path), sudoable=True)
        try:
            return _helper.read_answer(done.get("stdout", ""))
        except _helper.HelperMissing as error:
            raise AnsibleActionFail(f"{error}; {done.get('stderr', '').strip()}") from error

    def _run_with_progress(
        self, name: str, arguments: dict[str, Any], task_vars: dict[str, Any]
    ) -> dict[str, Any]:
        """Starts the module detached, tells how far it is, and brings its result."""
        # A task that Ansible ends here at its time-out is ended on the target as well.
        self._task.async_val = self._task.timeout or NO_LIMIT
        try:
            started: dict[str, Any] = self._execute_module(
                module_name=name, module_args=arguments, task_vars=task_vars, wrap_async=True
            )
        finally:
            self._task.async_val = 0
        job = started.get("ansible_job_id")
        if started.get("failed") or not job:
            return started
        self._watch(str(job), started["results_file"], arguments, task_vars)
        return self._collect(str(job), started["results_file"], task_vars)

    def _watch(
        self, job: str, results_file: str, arguments: dict[str, Any], task_vars: dict[str, Any]
    ) -> None:
        steps, pace = _progress.Steps(), _progress.Pace()
        host = task_vars.get("inventory_hostname", "")
        option, what, killed = WITH_PROGRESS[self._task.action.rpartition(".")[2]]
        guest, snapshot = arguments.get("guest"), arguments.get(option)
        lost = 0
        for wait in _progress.waits():
            # Forks that began together need not all ask at the same moment.
            line = _progress.poll_line(results_file, job, wait * random.uniform(0.9, 1.1))
            try:
                done = self._low_level_execute_command(line, sudoable=True)
                lost = 0
            except AnsibleConnectionFailure:
                lost += 1
                if lost >= LOST_POLLS:
                    raise
                continue
            state, found = _progress.read_poll(done.get("stdout", ""))
            for one in found:
                if (one.get("guest"), one.get("name")) != (guest, snapshot):
                    continue
                if one.get("percent") is None:
                    continue
                percent = float(one["percent"])
                left = pace.left(percent, time.monotonic())
                if steps.due(percent):
                    said = _progress.describe(one, left)
                    about = what.format(guest=guest, snapshot=snapshot)
                    display.display(f"{host}: {about}: {said}", color="cyan")
            if state == "gone":
                raise AnsibleActionFail(killed.format(guest=guest, snapshot=snapshot))
            if state != "running":
                return

    def _collect(self, job: str, results_file: str, task_vars: dict[str, Any]) -> dict[str, Any]:
        """The module's result, as if it had run in the foreground."""
        result: dict[str, Any] = self._execute_module(
            module_name="ansible.legacy.async_status",
            module_args={
                "jid": job,
                "_async_dir": os.path.dirname(results_file),
                "mode": "status",
            },
            task_vars=task_vars,
        )
        # A second run of that module would start an interpreter to remove one file.
        self._low_level_execute_command(f"rm -f {shlex.quote(results_file)}", sudoable=True)
        for key in ("ansible_job_id", "started", "finished", "results_file"):
            result.pop(key, None)
        return result
