"""A Hugging Face Hub on the loopback interface, as far as the real client needs it to upload."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DROP, VANISH = "drop", "vanish"
"""Faults besides a status: cut the connection; cut it, and refuse every later one."""

ROUTES = {
    "create": r"/api/repos/create",
    "info": r"/api/models/(?P<repo>[^/]+/[^/]+)",
    "auth": r"/api/models/(?P<repo>.+)/auth-check/write",
    "card": r"/api/validate-yaml",
    "preupload": r"/api/models/(?P<repo>.+)/preupload/main",
    "batch": r"/(?P<repo>.+)\.git/info/lfs/objects/batch",
    "lfs": r"/lfs/(?P<oid>\w+)",
    "commit": r"/api/models/(?P<repo>.+)/commit/main",
}


class HubServer(ThreadingHTTPServer):
    """Keeps what was uploaded, and fails where it is told to.

    Attributes:
        faults: By repository and route, such as "me/model commit": one for each request to come.
        repositories: By id: whether it is private.
        files: By repository and path.
        requests: The route of every request, in order.
        tokens: Every `Authorization` header that came.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.faults: dict[str, Iterator[int | str]] = {}
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()


@contextmanager
def serve_hub() -> Iterator[HubServer]:
    """Run a server in a thread."""
    server = HubServer()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        route, parts = next(
            (name, found.groupdict())
            for name, pattern in {**ROUTES, "unknown": ".*"}.items()
            if (found := re.fullmatch(pattern, self.path))
        )
        self.server.tokens.add(self.headers.get("Authorization"))
        self.server.requests.append(route)
        if route == "create":
            order = json.loads(body)
            parts["repo"] = f"{order['organization']}/{order['name']}"
        fault = next(self.server.faults.get(f"{parts.get('repo')} {route}", iter(())), None)
        if fault in (DROP, VANISH):
            if fault == VANISH:
                self.server.socket.close()
            self.close_connection = True
        elif fault is not None:
            self.reply({"error": "so the test wants it"}, int(fault))
        elif route == "unknown" or (
            route in ("info", "auth") and parts["repo"] not in self.server.repositories
        ):
            self.reply({"error": f"there is no {self.path}"}, 404)
        else:
            self.reply(getattr(self, f"answer_{route}")(body, **parts))

    do_GET = do_POST = do_PUT = handle_request  # noqa: N815 (the base class names them)

    def answer_create(self, body: bytes, repo: str) -> Any:
        self.server.repositories.setdefault(repo, json.loads(body).get("visibility") == "private")
        return {"url": f"{self.server.url}/{repo}", "name": repo}

    def answer_info(self, body: bytes, repo: str) -> Any:
        return {"id": repo, "sha": "0" * 40, "siblings": []}

    def answer_auth(self, body: bytes, repo: str) -> Any:
        return {}

    def answer_card(self, body: bytes) -> Any:
        return {"errors": [], "warnings": []}

    def answer_preupload(self, body: bytes, repo: str) -> Any:
        paths = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
        return {
            "files": [
                {"path": path, "uploadMode": mode, "shouldIgnore": False}
                for path, mode in modes.items()
            ]
        }

    def answer_batch(self, body: bytes, repo: str) -> Any:
        objects = json.loads(body)["objects"]
        for item in objects:
            if item["oid"] not in self.server.objects:
                item["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def answer_lfs(self, body: bytes, oid: str) -> Any:
        self.server.objects[oid] = body
        return {}

    def answer_commit(self, body: bytes, repo: str) -> Any:
        files = self.server.files.setdefault(repo, {})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        return {"commitUrl": f"{self.server.url}/{repo}/commit/1", "commitOid": "1" * 40}

    def reply(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Print nothing."""
