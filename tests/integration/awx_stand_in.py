# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for AWX's API on loopback, for the real awx.awx collection to speak to.

It is no AWX: it keeps what it is sent, looks things up as AWX's lists do, and refuses references to
what is not there. What AWX makes of it, above all running anything, it does not show.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "stand-in"
ROOT = "/api/v2/"
#: Fields that name something else, and lists of what they may name.
UNIFIED = ("job_templates", "workflow_job_templates", "projects", "inventory_sources")
REFERENCES: dict[str, tuple[str, ...]] = {
    "organization": ("organizations",),
    "project": ("projects",),
    "source_project": ("projects",),
    "inventory": ("inventories",),
    "execution_environment": ("execution_environments",),
    "default_environment": ("execution_environments",),
    "workflow_job_template": ("workflow_job_templates",),
    "unified_job_template": UNIFIED,
    "credentials": ("credentials",),
    "always_nodes": ("workflow_job_template_nodes",),
}
LISTS = (*dict.fromkeys(each for kinds in REFERENCES.values() for each in kinds),
         "project_updates", "schedules")  # fmt: skip


class StandIn:
    """What it was sent: list -> id -> object."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in LISTS}
        self.writes: list[str] = []
        self.lock = threading.Lock()
        self._last = 0

    def add(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        """A new object of a list."""
        self._last += 1
        url = f"{ROOT}{kind}/{self._last}/"
        item = {
            **fields, "id": self._last, "url": url, "type": kind.removesuffix("s"),
            "related": {"survey_spec": f"{url}survey_spec/"}, "summary_fields": {},
        }  # fmt: skip
        self.kept[kind][self._last] = item
        if kind == "projects":
            # AWX fetches a new project at once, and the collection waits for that.
            update = self.add("project_updates", {"status": "successful"})
            item.update(scm_revision="", summary_fields={"current_update": {"id": update["id"]}})
        return item

    def find(self, kind: str, asked: dict[str, str]) -> list[dict[str, Any]]:
        """As AWX filters a list: every field, or any of those that begin with or__."""
        kinds = UNIFIED if kind == "unified_job_templates" else (kind,)
        items = [item for each in kinds for item in self.kept[each].values()]
        for key, value in asked.items():
            if not key.startswith("or__"):
                items = [item for item in items if str(item.get(key)) == value]
        either = [(key[4:], value) for key, value in asked.items() if key.startswith("or__")]
        if either:
            items = [
                item for item in items if any(str(item.get(key)) == value for key, value in either)
            ]
        return items

    def dangling(self, fields: dict[str, Any]) -> list[str]:
        """Fields that name what is not there."""
        return [
            key
            for key, value in fields.items()
            if key in REFERENCES and value is not None
            and not any(value in self.kept[kind] for kind in REFERENCES[key])
        ]  # fmt: skip


def handler(api: StandIn) -> type[BaseHTTPRequestHandler]:
    """The requests of one stand-in."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_words: Any) -> None:
            """Nothing."""

        def answer(self, code: int, body: Any = None) -> None:
            data = b"" if body is None else json.dumps(body).encode()
            self.send_response(code)
            self.send_header("X-API-Product-Name", "AWX")
            self.send_header("X-API-Product-Version", "24.6.1")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer(401, {"detail": "no token"})
            url = urlsplit(self.path)
            asked = {key: values[0] for key, values in parse_qs(url.query).items()}
            parts = url.path.removeprefix(ROOT).strip("/").split("/")
            with api.lock:
                if self.command != "GET":
                    api.writes.append(f"{self.command} {self.path}")
                return self.answer(*self.result(parts, asked, body))

        def result(
            self, parts: list[str], asked: dict[str, str], body: dict[str, Any]
        ) -> tuple[int, Any]:
            kind, rest = parts[0], parts[1:]
            if kind not in api.kept and kind != "unified_job_templates":
                return 404, {"detail": f"no list {kind}"}
            if not rest:
                if self.command == "GET":
                    found = api.find(kind, asked)
                    return 200, {"count": len(found), "next": None, "results": found}
                wrong = api.dangling(body)
                return (400, {"__all__": [f"not there: {wrong}"]}) if wrong else (
                    201, api.add(kind, body))  # fmt: skip
            item = api.kept[kind].get(int(rest[0]))
            if item is None:
                return 404, {"detail": "no such object"}
            if len(rest) == 1:
                if self.command == "PATCH":
                    wrong = api.dangling(body)
                    if wrong:
                        return 400, {"__all__": [f"not there: {wrong}"]}
                    item.update(body)
                return 200, item
            if rest[1] == "survey_spec":
                if self.command == "POST":
                    item["survey"] = body
                return 200, item.get("survey", {})
            return self.associate(item, rest[1], body)

        def associate(
            self, item: dict[str, Any], key: str, body: dict[str, Any]
        ) -> tuple[int, Any]:
            ids: list[int] = item.setdefault(f"{key} of it", [])
            if self.command == "GET":
                found = [api.kept[REFERENCES[key][0]][each] for each in ids]
                return 200, {"count": len(ids), "next": None, "results": found}
            if body.get("disassociate"):
                ids.remove(body["id"])
            elif api.dangling({key: body["id"]}):
                return 400, {"detail": f"{key} {body['id']} is not there"}
            else:
                ids.append(body["id"])
            return 204, None

        do_GET = do_POST = do_PATCH = do_DELETE = serve

    return Handler


@contextlib.contextmanager
def stand_in() -> Iterator[tuple[StandIn, str]]:
    """One that listens, and its address."""
    api = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(api))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield api, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
