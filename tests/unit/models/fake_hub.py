"""A Hugging Face hub of one repository on this machine, for huggingface_hub to talk to."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "org/repo"


class FakeHub:
    """Serves `files` as `org/repo`; anything else answers `status` or is not found.

    Attributes:
        files: content by name; change it between requests as a test needs.
        status: answer every request with this status instead.
        code: the hub's own error code, in the header X-Error-Code.
        cut: send only this many bytes of each file, then close the connection.
        served: names of the files that were fetched.
        sent: bytes of files.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.status: int | None = None
        self.code = ""
        self.cut: int | None = None
        self.served: list[str] = []
        self.sent = 0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self, body=True)

            def do_HEAD(self) -> None:
                hub._answer(self, body=False)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def _answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = request.path.split("?")[0]
        api, resolve = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/"
        if self.status is not None:
            self._send(request, self.status, b"{}", {"X-Error-Code": self.code}, body)
        elif path in (api, f"{api}/revision/main"):
            siblings = [{"rfilename": name} for name in self.files]
            info = {"_id": "1", "id": REPOSITORY, "sha": COMMIT, "siblings": siblings}
            self._send(request, 200, json.dumps(info).encode(), {}, body)
        elif path.startswith(f"{api}/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                for name, content in self.files.items()
            ]
            self._send(request, 200, json.dumps(tree).encode(), {}, body)
        elif path.startswith(resolve) and (name := path.split("/", 5)[5]) in self.files:
            content = self.files[name]
            headers = {
                "X-Repo-Commit": COMMIT,
                "ETag": f'"{_etag(content)}"',
                "Accept-Ranges": "bytes",
            }
            if body:
                self.served.append(name)
            self._send(request, 200, content, headers, body)
        elif path.startswith(f"{api}/revision/"):
            self._send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        else:
            self._send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        content: bytes,
        headers: Mapping[str, str],
        body: bool,
    ) -> None:
        start, end = 0, len(content)
        wanted = request.headers.get("Range", "")
        if status == 200 and wanted.startswith("bytes=") and "ETag" in headers:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first or 0), min(int(last) + 1, len(content)) if last else end
            if body and (start, end) != (0, len(content)):
                status = 206
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(end - start))
        if status == 206:
            request.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        request.end_headers()
        if body:
            part = content[start:end]
            if self.cut is not None and "ETag" in headers and len(part) > self.cut:
                request.wfile.write(part[: self.cut])
                request.close_connection = True
            else:
                request.wfile.write(part)
                self.sent += len(part) if "ETag" in headers else 0


def _etag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
