"""A server that speaks as much of OpenAI's HTTP API as the tests of the client ask for.

    python _server.py PORT

What it answers is what the request's message names; a child process sleeps beside it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DONE = "[DONE]"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(200, {"data": []})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        behaviour = body["messages"][0]["content"]
        if behaviour == "refuse":
            self._answer(503, {"error": "no room"})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        getattr(self, "_" + behaviour.replace(" ", "_"))(body)
        self.wfile.write(b"0\r\n\r\n")

    def _whole(self, body: dict[str, Any]) -> None:
        self._piece(role="assistant", content="")
        self._piece(reasoning_content="Well. ")
        for word in ["Paris", " it", " is."]:
            self._piece(content=word)
        self._event({"choices": [{"delta": {}, "finish_reason": "length"}]})
        self._event({"choices": [], "usage": {"completion_tokens": 7}})
        self._event(DONE)

    def _without_usage(self, body: dict[str, Any]) -> None:
        self._piece(content="One")
        self._piece(content=" two")
        self._event({"choices": [{"delta": {}, "finish_reason": "stop"}]})

    def _echo(self, body: dict[str, Any]) -> None:
        self._piece(content=json.dumps(body))
        self._event(DONE)

    def _error(self, body: dict[str, Any]) -> None:
        self._piece(content="So")
        self._event({"error": {"message": "out of memory"}})

    def _break_off(self, body: dict[str, Any]) -> None:
        self._piece(content="So")

    def _die(self, body: dict[str, Any]) -> None:
        self._piece(content="So")
        os.kill(os.getpid(), signal.SIGKILL)

    def _no_json(self, body: dict[str, Any]) -> None:
        self._write("data: {\n\n")

    def _silence(self, body: dict[str, Any]) -> None:
        self._piece(content="So")
        time.sleep(3600)

    def _comments(self, body: dict[str, Any]) -> None:
        while True:
            self._write(": still here\n\n")

    def _piece(self, **delta: str) -> None:
        self._event({"choices": [{"delta": delta, "finish_reason": None}]})

    def _event(self, event: Any) -> None:
        self._write(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n")

    def _write(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


if __name__ == "__main__":
    print("started by a test", flush=True)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
