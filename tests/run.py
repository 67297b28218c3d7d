# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs tiers of tests, one after the other, and ends with one line that counts them all.

usage: run.py TIER... [-- arguments for pytest]
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "guests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import footprint
import lanes
import layout
import lint
from lab import kept

REPO = Path(__file__).resolve().parent.parent
BUILD = REPO / "build"
LOGS = BUILD / "logs"
# Seconds after which a linter, a program or a piece of pytest is ended and counted as failed, at
# short size.
LIMITS = {"lint": 1500, "unit": 600, "native": 900, "guests": 1200, "integration": 2100}
# Name -> (folder of the build, variables of make). Sanitized builds have the fault points too.
VARIANTS = {
    "plain": ("plain", []),
    "faults": ("faults", ["FAULTS=1"]),
    "asan": ("san-address-undefined-faults", ["SAN=address,undefined", "FAULTS=1"]),
    "tsan": ("san-thread-faults", ["SAN=thread", "FAULTS=1"]),
}
# Of the others these builds say nothing that the rest do not say: what passes fault points of the
# program itself (attaching and the hunt for a lost page do so under ASan), and what has threads.
ONLY = {
    "faults": {"test_attach_qemu", "test_fault"},
    "tsan": {
        *("test_capture_command", "test_capture_engine", "test_capture_held", "test_capture_kinds"),
        *("test_capture_still", "test_image", "test_kernel_writes", "test_ksm_command"),
        *("test_ksm_hunt", "test_lost_page", "test_stage"),
    },
}


# Leaders of the sessions that commands run in, and whether the user wants all of it to end.
running: set[int] = set()
interrupted = threading.Event()


@dataclass
class Result:
    name: str
    outcome: str  # passed, failed or skipped
    seconds: float = 0.0
    reason: str = ""


def interrupt(*_signal: object) -> None:
    """Begins nothing more; what runs gets the interrupt, and so puts things back."""
    interrupted.set()
    for leader in list(running):
        try:
            os.killpg(leader, signal.SIGINT)
        except ProcessLookupError:
            pass


def limit(tier: str) -> int:
    return LIMITS[tier] * (1 if os.environ.get("ROUNDS", "short") == "short" else 20)


def run(argv: list[str], log: Path, seconds: int, env: dict[str, str] | None = None) -> int:
    """The exit code of a command whose output goes to a log; 124 when it took too long."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        if interrupted.is_set():
            file.write(b"interrupted before it began\n")
            return 130
        process = subprocess.Popen(
            argv,
            cwd=REPO,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        running.add(process.pid)
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            file.write(f"\nended after {seconds} s\n".encode())
            return 124
        finally:
            running.discard(process.pid)
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def tail(log: Path, lines: int = 40) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def show(result: Result) -> None:
    print(
        f"{result.outcome:8}{result.seconds:7.1f} s  {result.name}"
        + (f"  ({result.reason})" if result.reason and result.outcome == "skipped" else ""),
        flush=True,
    )


def lint_tier() -> list[Result]:
    def one(item: tuple[str, list[str] | str]) -> Result:
        name, argv = item
        if isinstance(argv, str):
            return Result(f"lint::{name}", "skipped", 0.0, argv)
        started = time.monotonic()
        log = LOGS / f"lint-{name}.log"
        # The linters of the virtual environment call one another by name.
        code = run(
            argv,
            log,
            limit("lint"),
            env={
                "PATH": f"{lint.BIN}:{os.environ['PATH']}",
                "ANSIBLE_COLLECTIONS_PATH": str(layout.COLLECTIONS),
            },
        )
        result = Result(f"lint::{name}", "failed" if code else "passed", time.monotonic() - started)
        show(result)
        if code:
            print(tail(log), flush=True)
        return result

    layout.link_collection()
    checks = lint.commands()
    # The long ones first: two at a time fill two cores.
    order = sorted(checks.items(), key=lambda item: not item[0].startswith("sanity"))
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(one, order))


def native_results(name: str, log: Path, code: int, seconds: float) -> list[Result]:
    """What one cmocka program printed, one result a test."""
    text = log.read_text(errors="replace")
    reasons = dict(re.findall(r"^SKIP (\S+): (.*)$", text, re.M))
    results = []
    for word, test in re.findall(r"^\[\s*(OK|FAILED|SKIPPED)\s*\] (\w+)\s*$", text, re.M):
        outcome = {"OK": "passed", "FAILED": "failed", "SKIPPED": "skipped"}[word]
        results.append(Result(f"{name}::{test}", outcome, 0.0, reasons.get(test, "")))
    # cmocka names the failed ones twice: where they fail, and in its summary.
    unique = {result.name: result for result in results}
    results = list(unique.values())
    if code and not any(result.outcome == "failed" for result in results):
        results.append(Result(name, "failed", 0.0, f"exit code {code}"))
    if not results:
        # It left before its first test, perhaps for a reason that it names.
        results = [Result(f"{name}::{test}", "skipped", 0.0, why) for test, why in reasons.items()]
    if not results:
        results.append(Result(name, "passed"))
    results[0].seconds = seconds
    return results


def build_variant(variant: str) -> Result:
    folder, variables = VARIANTS[variant]
    targets = [f"build/{folder}/tests/{name}" for name in sorted(ONLY.get(variant, ()))]
    log = LOGS / f"native-build-{variant}.log"
    started = time.monotonic()
    argv = ["make", "-C", "native", "-j2", *variables, "all", *(targets or ["tests"])]
    code = run(argv, log, limit("native"))
    if code:
        print(tail(log), flush=True)
    return Result(
        f"native::build-{variant}", "failed" if code else "passed", time.monotonic() - started
    )


def programs(variant: str, merging: bool) -> list[Path]:
    """Those of a build that switch the machine's KSM, or all others."""
    folder = REPO / "native" / "build" / VARIANTS[variant][0] / "tests"
    return sorted(
        path
        for path in folder.glob("test_*")
        if path.suffix == ""
        and os.access(path, os.X_OK)
        and path.name in ONLY.get(variant, {path.name})
        and path.name.startswith(lanes.MERGING_PREFIX) == merging
    )


def run_program(variant: str, program: Path) -> list[Result]:
    log = LOGS / f"native-{variant}-{program.name}.log"
    started = time.monotonic()
    code = run([str(program)], log, limit("native"))
    name = f"native/{variant}/{program.name}"
    return shown(native_results(name, log, code, time.monotonic() - started), name, log, code)


def shown(found: list[Result], name: str, log: Path, code: int) -> list[Result]:
    """The results of a program of several tests, printed: what failed whole, the rest in a line."""
    for result in found:
        if result.outcome != "passed":
            show(result)
    print(f"{len(found):4} tests {found[0].seconds:7.1f} s  {name}", flush=True)
    if code:
        print(tail(log), flush=True)
    return found


def build_all() -> list[Result]:
    """All builds of the helper and its tests, before anything runs that would build it itself."""
    results = []
    for variant in VARIANTS:
        results.append(build_variant(variant))
        show(results[-1])
    return results


def native_programs(builds: list[Result], merging: bool) -> list[Result]:
    """The test programs of each variant that could be built, one after the other."""
    return [
        result
        for variant, built in zip(VARIANTS, builds, strict=True)
        if built.outcome == "passed"
        for program in programs(variant, merging)
        for result in run_program(variant, program)
    ]


def other_kernel() -> list[Result]:
    """What depends on the kernel, as init of the test guest's kernel (Debian 12: 6.1) under TCG."""
    log = LOGS / "native-kernel.log"
    started = time.monotonic()
    code = run(["make", "-s", "-C", "native", "check-kernel"], log, limit("native"))
    name = "native/kernel"
    return shown(native_results(name, log, code, time.monotonic() - started), name, log, code)


def trixie() -> list[Result]:
    run([str(REPO / "scripts" / "trixie")], LOGS / "trixie.log", 600)
    return []


def fuzz() -> list[Result]:
    """Every parser of others' input, fuzzed; corpora stay in native/build for the next time."""
    if not shutil.which("clang"):
        return [Result("native::fuzz", "skipped", 0.0, "no clang")]
    seconds = 6 if os.environ.get("ROUNDS", "short") == "short" else 200
    log = LOGS / "native-fuzz.log"
    started = time.monotonic()
    code = run(["make", "-C", "native", "fuzz", f"FUZZ_SECONDS={seconds}"], log, limit("native"))
    if code:
        print(tail(log), flush=True)
    result = Result("native::fuzz", "failed" if code else "passed", time.monotonic() - started)
    show(result)
    return [result]


def pytest_argv(paths: Sequence[Path], report: Path, extra: list[str]) -> list[str]:
    python = str(BUILD / "venv/bin/python")
    return [
        *(python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"),
        *(f"--junitxml={report}", "-o", "junit_family=xunit2", *map(str, paths)),
        *extra,
    ]


def pytest_results(tier: str, report: Path, code: int) -> list[Result]:
    """What one pytest wrote down, and one more failure if it did not run to its end."""
    results = []
    if report.exists():
        for case in ET.parse(report).getroot().iter("testcase"):
            name = f"{tier}/{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
            result = Result(name, "passed", float(case.get("time", 0)))
            for child in case:
                if child.tag in ("failure", "error"):
                    result.outcome = "failed"
                elif child.tag == "skipped":
                    result.outcome, result.reason = "skipped", child.get("message", "")
            results.append(result)
    # 5: no test was collected. Anything but 0, 1 and 5 means that the tier did not run to its end.
    if code not in (0, 5) and not any(result.outcome == "failed" for result in results):
        results.append(Result(f"{tier}::all", "failed", 0.0, f"pytest ended with exit code {code}"))
    return results


def run_pytest(piece: lanes.Piece, extra: list[str], lane: bool) -> list[Result]:
    """One pytest and its results, printed in a line; all that it said, where something failed."""
    name, tier = piece.name, piece.tier
    report = BUILD / "results" / f"{name.replace('/', '-')}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    log = LOGS / f"{name.replace('/', '-')}.log"
    argv, env = pytest_argv(piece.paths, report, extra), {}
    if lane:
        argv = [str(lanes.LANE), *argv]
        # Ends as no longer name goes on.
        mark = f"{os.environ[footprint.MARK]}.{name}."
        env = {footprint.OTHERS: lanes.OF_OTHERS, footprint.MARK: mark}
    started = time.monotonic()
    code = run(argv, log, limit(tier), env=env)
    found = pytest_results(tier, report, code)
    outcomes = [result.outcome for result in found]
    words = ", ".join(
        f"{outcomes.count(word)} {word}"
        for word in ("passed", "failed", "skipped")
        if word in outcomes
    )
    print(f"{time.monotonic() - started:7.1f} s  {name}: {words or 'no tests'}", flush=True)
    if "failed" in outcomes:
        print(tail(log, 200), flush=True)
    return found


def real_tiers(tiers: list[str], extra: list[str]) -> list[Result]:
    """Native programs and the tests on real guests: as much side by side as there are lanes."""
    order = lanes.order(tiers)
    merged = threading.Event()

    def one(piece: lanes.Piece) -> list[Result]:
        merged.wait()
        return run_pytest(piece, extra, lane=True)

    def merging() -> list[Result]:
        try:
            found = native_programs(builds, merging=True) if builds else []
            for piece in order.merging:
                found += run_pytest(piece, extra, lane=True)
            return found
        finally:
            merged.set()

    def rest_of_native() -> list[Result]:
        merged.wait()
        return native_programs(builds, merging=False)

    builds = build_all() if "native" in tiers else []
    jobs: list[Callable[[], list[Result]]] = [merging]
    # What captures nothing on this kernel runs beside it.
    jobs += [other_kernel, fuzz] if builds else []
    if order.alone:
        # The tests of Debian 13 say what is wrong with it; they only wait for it no longer.
        jobs.append(trixie)
    jobs += [rest_of_native] if builds else []
    jobs += [functools.partial(one, piece) for piece in order.beside]
    with ThreadPoolExecutor(max_workers=lanes.WIDTH) as pool:
        found = [*pool.map(lambda job: job(), jobs)]
    found += map(one, order.alone)
    return builds + [result for results in found for result in results]


def never_here() -> list[str]:
    """Rows of CANNOT_RUN.md: what no machine of these tests has run so far, and why."""
    rows = []
    for line in (REPO / "tests" / "CANNOT_RUN.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if (
            line.startswith("|")
            and len(cells) == 2
            and cells[0] != "what"
            and set(cells[0]) != {"-"}
        ):
            rows.append(f"{cells[0]}: {cells[1]}")
    return rows


def run_tiers(tiers: list[str], extra: list[str]) -> tuple[list[Result], str]:
    """The results of tiers that share a pool, and how long they took in words."""
    since = time.monotonic()
    if tiers == ["lint"]:
        found = lint_tier()
    elif tiers == ["unit"]:
        piece = lanes.Piece("unit", "unit", (REPO / "tests" / "unit",))
        found = run_pytest(piece, extra, lane=False)
    else:
        found = real_tiers(tiers, extra)
    minutes = (time.monotonic() - since) / 60
    return found, f"{' and '.join(tiers)} {len(found)} tests in {minutes:.1f} min"


def run_steps(steps: list[list[str]], extra: list[str]) -> list[tuple[list[Result], str]]:
    """What run_tiers says of each step, one after the other."""
    found = []
    for tiers in steps:
        print(f"== {' '.join(tiers)}", flush=True)
        found.append(run_tiers(tiers, extra))
    return found


def sequences(tiers: list[str]) -> list[list[list[str]]]:
    """What runs side by side; in each, steps one after the other, of tiers that share a pool.

    The longest linter takes one core for minutes, and nothing waits for it.
    """
    real = [tier for tier in ("native", "guests", "integration") if tier in tiers]
    steps = [["unit"] if "unit" in tiers else [], real]
    found = [[["lint"]] if "lint" in tiers else [], [step for step in steps if step]]
    return [sequence for sequence in found if sequence]


@contextlib.contextmanager
def controllers_cache() -> Iterator[None]:
    """What tests with controllers of their own build of the helper, they build once."""
    with tempfile.TemporaryDirectory(prefix="livesnap-cache-") as folder:
        os.environ["LIVESNAP_TEST_CACHE"] = folder
        yield


def main() -> int:
    arguments, extra = sys.argv[1:], []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, extra = arguments[:at], arguments[at + 1 :]
    whole = len(arguments) > 1
    mark = str(uuid.uuid4())
    os.environ[footprint.MARK] = mark
    signal.signal(signal.SIGINT, interrupt)
    before = footprint.take()
    started = time.monotonic()
    results: list[Result] = []
    took = []
    with kept.shelf(), controllers_cache(), ThreadPoolExecutor() as pool:
        for sequence in pool.map(lambda steps: run_steps(steps, extra), sequences(arguments)):
            for found, words in sequence:
                took.append(words)
                results += found
    left = footprint.difference(before, footprint.take())
    left += [f"process: {line}" for line in sorted(footprint.marked_processes(mark))]
    results.append(Result("footprint: the machine is as it was", "failed" if left else "passed"))

    print("\n== ten slowest")
    for result in sorted(results, key=lambda result: -result.seconds)[:10]:
        print(f"{result.seconds:8.1f} s  {result.name}")
    skipped = [result for result in results if result.outcome == "skipped"]
    if skipped or whole:
        print("\n== could not run here")
        for result in skipped:
            print(f"{result.name}: {result.reason or 'no reason given'}")
        if whole:
            print("\n".join(never_here()))
    failed = [result for result in results if result.outcome == "failed"]
    if failed:
        print("\n== failed")
        for result in failed:
            print(f"{result.name} {result.reason}".rstrip())
        for line in left:
            print(f"    left behind: {line}")
    passed = len(results) - len(failed) - len(skipped)
    print(f"\n{'; '.join(took)}; {(time.monotonic() - started) / 60:.1f} min in all")
    print(f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
