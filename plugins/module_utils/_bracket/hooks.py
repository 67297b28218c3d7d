# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The operator's commands as steps of a run: 'before' has 'after' as its undo."""

from __future__ import annotations

from ansible_collections.livesnap.qemu.plugins.module_utils import _hooks
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.run import Run
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError


def before(run: Run) -> None:
    """All of them, or LivesnapError of the first that fails."""
    for hook in run.spec.before or []:
        run.check()
        _hooks.run_one(hook, run.address, _hooks.about_run(run.spec.guest, run.spec.name))


def after(run: Run) -> None:
    """The instant is fixed: what goes wrong is a warning."""
    run.hooked = True
    run.warnings += [f"after the instant: {each}" for each in _run_after(run)]


def undo(run: Run) -> None:
    """What 'before' has begun comes to nothing."""
    if run.hooked:
        return
    run.hooked = True
    problems = _run_after(run)
    if problems:
        raise LivesnapError("; ".join(problems))


def _run_after(run: Run) -> list[str]:
    about = _hooks.about_run(run.spec.guest, run.spec.name)
    return _hooks.run_all(run.spec.after, run.address if run.process.alive() else None, about)
