"""A W&B server on the loopback interface that knows one project, and remembers every run."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer(ThreadingHTTPServer):
    """Keeps the rows of every run, and hands the last one back to a run that is resumed.

    Attributes:
        status: Of every answer.
        history: By run id: the rows of `wandb-history.jsonl`, in the order they came.
        configs: By run id: the last config.
        exit_codes: By run id, once the run has ended.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.status = 200
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.exit_codes: dict[str, int] = {}

    def handle_error(self, *request: Any) -> None:
        """Print nothing of clients that were killed."""

    def start_run(self, name: str, project: str, config: str | None, **others: Any) -> Any:
        self.history.setdefault(name, [])
        self.configs[name] = json.loads(config or "{}")
        entity = {"id": "e", "name": "me"}
        place = {"id": "p", "name": project, "entity": entity}
        return {
            "upsertBucket": {
                "bucket": {"id": name, "name": name, "displayName": name, "project": place},
                "inserted": True,
            }
        }

    def find_run(self, name: str, **others: Any) -> Any:
        if name not in self.history:
            return {"model": None}
        last = [json.dumps(row) for row in self.history[name][-1:]]
        bucket = {
            "id": name,
            "name": name,
            "displayName": name,
            "summaryMetrics": "{}",
            "config": json.dumps(self.configs[name]),
            "historyLineCount": len(self.history[name]),
            "historyTail": json.dumps(last),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {"id": "p", "name": "p", "entity": {"name": "me"}, "bucket": bucket}}

    def take_rows(self, run: str, content: dict[str, Any]) -> None:
        part = content.get("files", {}).get("wandb-history.jsonl")
        if part:
            rows = self.history[run]
            rows[part["offset"] :] = map(json.loads, part["content"])
        if "exitcode" in content:
            self.exit_codes[run] = content["exitcode"]


@contextmanager
def serve_wandb() -> Iterator[WandbServer]:
    """Run a server in a thread."""
    server = WandbServer()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer: Any = {}
        if self.path == "/graphql" and self.server.status == 200:
            answer = {"data": self.answer_query(json.loads(body))}
        elif self.path.endswith("/file_stream"):
            self.server.take_rows(self.path.split("/")[-2], json.loads(body))
        data = json.dumps(answer).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = handle_request  # noqa: N815 (the base class names them)

    def answer_query(self, query: dict[str, Any]) -> Any:
        variables = query.get("variables") or {}
        if query["operationName"] == "Viewer":
            return {"viewer": {"id": "v", "entity": "me", "username": "me", "teams": {"edges": []}}}
        if query["operationName"] == "UpsertBucket":
            return self.server.start_run(**variables)
        if query["operationName"] == "RunResumeStatus":
            return self.server.find_run(**variables)
        if query["operationName"] == "CreateRunFiles":
            files = [
                {"name": name, "uploadUrl": f"{self.server.url}/storage/{name}"}
                for name in variables["files"]
            ]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {}

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Print nothing."""
