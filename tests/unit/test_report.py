# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report: what it says, and how a real browser shows and prints it."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.livesnap.qemu.plugins.filter import report as filter_plugin
from ansible_collections.livesnap.qemu.plugins.plugin_utils import _report

NOW = datetime(2026, 11, 28, 12, tzinfo=timezone.utc)
BROWSER = shutil.which("chromium-headless-shell") or shutil.which("chromium")


def verdict(level: str, result: str = "passed", problem: str | None = None) -> dict[str, Any]:
    when = "2026-11-28T03:00:00.250000Z"
    return {"level": level, "result": result, "when": when, "evidence": {"problem": problem}}


def snapshot(guest: str, days: float, *verdicts: Any, **changes: Any) -> dict[str, Any]:
    created = (NOW - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    name = f"hourly-{created[:10].replace('-', '')}T{created[11:13]}00Z"
    return {
        "guest": guest, "name": name, "created": created, "path": f"/s/{guest}/{name}",
        "complete": True, "problem": None, "in_progress": None, "verdicts": list(verdicts),
        "consistency": {"freeze": {"achieved": True, "reason": None}},
        "timings": {"freeze_ms": 41.2, "pause_ms": 18.7}, **changes,
    }  # fmt: skip


BROKEN = {
    "complete": False, "created": None, "problem": "its manifest was cut", "consistency": None,
    "timings": None,
}  # fmt: skip


def store(guests: int) -> dict[str, list[dict[str, Any]]]:
    """Guests of two hosts, one in seven with a failure, one in five never verified."""
    hosts: dict[str, list[dict[str, Any]]] = {"hv1.example.com": [], "hv2.example.com": []}
    for number in range(guests):
        guest = f"guest-with-a-rather-long-name-{number:03}"
        verdicts = [] if number % 5 == 4 else [verdict("drill"), verdict("checksum")]
        found = [snapshot(guest, day / 2, *(verdicts if day % 4 == 1 else [])) for day in range(40)]
        if verdicts:
            found[0]["verdicts"] = verdicts
        if number % 7 == 3:
            words = f"disk image '/var/lib/livesnap/{guest}/x/disks/0-vda.qcow2' has errors"
            found[2]["verdicts"] = [verdict("structure", "failed", words)]
        if number % 9 == 1:
            found[0]["consistency"]["freeze"] = {
                "achieved": False, "reason": "the agent did not answer within 5 s"}  # fmt: skip
        hosts[f"hv{number % 2 + 1}.example.com"] += found
    return hosts


def one(*snapshots: dict[str, Any]) -> dict[str, Any]:
    (row,) = _report.rows({"hv1": snapshots})
    return row


def test_failures_come_first() -> None:
    found = _report.rows(store(40))
    states = [each["state"] for each in found]
    assert states == sorted(states, key=["failed", "unverified", "verified"].index)
    assert {state: states.count(state) for state in set(states)} == {
        "failed": 6, "unverified": 7, "verified": 27}  # fmt: skip


def test_what_a_row_says() -> None:
    good = one(snapshot("a", 0), snapshot("a", 1, verdict("drill")), snapshot("a", 2))
    assert (good["state"], good["count"]) == ("unverified", 3)
    assert good["newest"]["created"].startswith("2026-11-28T12")
    assert good["last_good"]["verdicts"][0]["level"] == "drill"
    assert good["newest"]["pause_ms"] == 18.7
    bad = one(snapshot("a", 0, verdict("drill")), snapshot("a", 1, verdict("drill", "failed", "x")))
    assert bad["state"] == "failed"
    assert bad["problems"][0].endswith(": drill: x")
    broken = one(snapshot("a", 0, **BROKEN))
    assert (broken["state"], broken["newest"]) == ("failed", None)
    making = one(snapshot("a", 0, **{**BROKEN, "in_progress": {"percent": 1}}), snapshot("a", 1))
    assert (making["state"], making["problems"]) == ("unverified", [])
    alone = one(snapshot("a", 0, **{**BROKEN, "in_progress": {"percent": 1}}))
    assert alone["problems"] == ["there is no complete snapshot"]
    assert one(snapshot("a", 0, "what"))["problems"][0].endswith("what is no verdict")


class Balance(HTMLParser):
    """Whether what is opened is closed, and what of it needs another file."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "line"):
            self.open.append(tag)
        self.links += [name for name, _value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag != "line":
            assert self.open.pop() == tag


def test_the_page_is_whole_and_alone() -> None:
    evil = "<script>alert('x')</script>"
    hosts = {evil: [snapshot(evil, 0, verdict("drill", "failed", evil), name=evil)]}
    for found in (_report.rows(hosts), _report.rows(store(12)), []):
        text = _report.page(found, NOW, evil)
        parser = Balance()
        parser.feed(text)
        assert (parser.open, parser.links) == ([], [])
        assert "<script" not in text and "url(" not in text
        assert html.escape(evil) in text
    assert "There is no snapshot of any guest" in _report.page([], NOW, "x")


def test_the_filter() -> None:
    found = filter_plugin.report({"hv1": [snapshot("a", 0, verdict("drill"))]})
    assert found["html"].startswith("<!DOCTYPE html>")
    assert found["guests"][0]["state"] == "verified"
    assert yaml.safe_load(filter_plugin.EXAMPLES)
    for wrong in ([], {"hv1": [{}]}, {"hv1": None}):
        with pytest.raises(AnsibleFilterError, match="not what livesnap_info returns"):
            filter_plugin.report(wrong)


def shown(folder: Path, text: str, *options: str) -> str:
    """What the browser makes of it."""
    if BROWSER is None:
        pytest.skip("chromium-headless-shell is not installed")
    path = folder / "report.html"
    path.write_text(text)
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/home",
         *options, path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
        env={"HOME": str(folder), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    return done.stdout


_MEASURE = """<script>
const wide = [...document.querySelectorAll("body *")].filter(
    each => each.getBoundingClientRect().right > innerWidth + 1);
document.title = [innerWidth, document.documentElement.scrollWidth, wide.length].join(" ");
</script>"""


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("guests", [200, 0])
def test_nothing_has_to_be_scrolled_sideways(tmp_path: Path, width: int, guests: int) -> None:
    text = _report.page(_report.rows(store(guests)), NOW, "Snapshots")
    dom = shown(tmp_path, text + _MEASURE, f"--window-size={width},900", "--dump-dom")
    found = re.search(r"<title>(\d+) (\d+) (\d+)</title>", dom)
    assert found is not None
    inner, scroll, too_wide = (int(each) for each in found.groups())
    assert inner == width
    assert (scroll <= width, too_wide) == (True, 0)


def test_it_prints_and_no_row_is_cut(tmp_path: Path) -> None:
    """Each guest's row has a word at its beginning and one at its end: they are on one page."""
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not installed")
    text = _report.page(_report.rows(store(60)), NOW, "Snapshots")
    text = re.sub(r'(<tr class="\w+"><td[^>]*><div>)', r"\1begins<br>", text)
    text = text.replace("<svg", "<br><br>ends<svg")
    pdf = tmp_path / "report.pdf"
    shown(tmp_path, text, f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
    words = subprocess.run(
        ["pdftotext", "-layout", str(pdf), "-"], capture_output=True, text=True, check=True
    ).stdout
    pages = words.rstrip("\f\n").split("\f")
    assert len(pages) > 2
    assert sum(page.count("begins") for page in pages) == 60
    for page in pages:
        assert page.count("begins") == page.count("ends"), page
