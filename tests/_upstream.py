"""A server that speaks OpenAI's API badly: how, says the name of the model that is asked for.

It is real HTTP, on loopback. What a good server does is tested with our own.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-very-secret"
WORDS = ("The capital ", "of France ", "is Paris.")


class Upstream(ThreadingHTTPServer):
    """The server.

    Attributes:
        bodies: of the requests so far.
        keys: what stood in their header `authorization`.
        paths: that were asked for.
        asked: is set when a request has come.
        gone: is set when the client of a request that hangs has gone away.
        fails: how many requests for "flaky" fail before it answers.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.paths: list[str] = []
        self.asked = threading.Event()
        self.gone = threading.Event()
        self.fails = 2

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.gone.set()  # it was writing


@contextmanager
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self._error(404, "there is nothing here")

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server.paths.append(self.path)
        server.bodies.append(body)
        server.keys.append(self.headers.get("authorization", ""))
        server.asked.set()
        what = str(body["model"])
        if what.isdecimal():
            self._error(int(what), f"no, {server.keys[-1]}")
        elif what == "final":
            self._error(502, "an answer was refused", {"x-should-retry": "false"})
        elif what == "flaky" and server.fails:
            server.fails -= 1
            self._error(503, "not yet", {"retry-after": "0"})
        elif what == "long":
            self._error(
                400,
                "This model's maximum context length is 8,192 tokens, but you sent 9,001.",
                code="context_length_exceeded",
            )
        elif what.startswith("refuses "):
            self._refuse(body, what.removeprefix("refuses ").split())
        elif what == "moved":
            self.send_response(307)
            self.send_header("location", f"http://127.0.0.1:{server.server_port}/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()
        elif what == "page":
            self._send(200, b"<html>A page.</html>", "text/html")
        else:
            self._stream(what)

    def _refuse(self, body: dict[str, Any], names: list[str]) -> None:
        """As clouds do: one setting at a time."""
        for name in names:
            if name in body:
                newer = " Use 'max_completion_tokens'." if name == "max_tokens" else ""
                return self._error(400, f"Unsupported parameter: '{name}'.{newer}")
        return self._stream("good")

    def _stream(self, what: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        EVENTS[what](self)

    def event(self, data: Any) -> None:
        text = data if isinstance(data, str) else json.dumps(data)
        self.chunk(f"data: {text}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def say(self, delta: dict[str, Any], reason: str | None = None, **more: Any) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, **more}
        self.event({"id": "c-1", "object": "chat.completion.chunk", "choices": [choice]})

    def words(self, *words: str) -> None:
        for word in words or WORDS:
            self.say({"content": word})

    def end(self, reason: str = "stop") -> None:
        self.say({}, reason)
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        self.event({"id": "c-1", "object": "chat.completion.chunk", "choices": [], "usage": usage})
        self.event("[DONE]")
        self.chunk(b"")

    def wait_until_gone(self) -> None:
        while self.connection.recv(4096):
            pass
        self.server.gone.set()

    def drop(self) -> None:
        """Close the connection in the middle of the body."""
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def _error(
        self, status: int, message: str, headers: dict[str, str] | None = None, code: str = "no"
    ) -> None:
        body = json.dumps({"error": {"message": message, "code": code, "type": "x"}}).encode()
        self._send(status, body, "application/json", headers)

    def _send(
        self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _good(handler: _Handler) -> None:
    handler.words()
    handler.end()


def _cut(handler: _Handler) -> None:
    handler.words(*WORDS[:2])
    handler.drop()


def _no_end(handler: _Handler) -> None:
    handler.words(*WORDS[:2])
    handler.event("[DONE]")
    handler.chunk(b"")


def _hang(handler: _Handler) -> None:
    handler.wait_until_gone()


def _hang_half_way(handler: _Handler) -> None:
    handler.words(WORDS[0])
    handler.wait_until_gone()


def _no_json(handler: _Handler) -> None:
    handler.words(WORDS[0])
    handler.event('{"choices": [')
    handler.chunk(b"")


def _strange(handler: _Handler) -> None:
    handler.words(WORDS[0])
    handler.event(["not", "a", "completion"])
    handler.end()


def _failing(handler: _Handler) -> None:
    handler.words(WORDS[0])
    handler.event({"error": {"message": "the model fell over", "code": "server_error"}})
    handler.chunk(b"")


def _thinking(handler: _Handler) -> None:
    for name in ("reasoning_content", "reasoning"):
        handler.say({name: "Well. "})
    handler.words("Paris.")
    handler.end()


def _calling(handler: _Handler) -> None:
    def piece(place: int, arguments: str, **more: Any) -> None:
        name = {"name": more.pop("name")} if "name" in more else {}
        function = {"arguments": arguments, **name}
        handler.say({"tool_calls": [{"index": place, "function": function, **more}]})

    piece(0, "", id="call-a", name="add", type="function")
    piece(0, '{"a": 3,')
    piece(1, '{"a": 1, "b": 2}', id="call-b", name="add")
    piece(0, ' "b": 4}')
    piece(2, '{"a": ', id="call-c", name="add")
    handler.end("tool_calls")


def _calling_at_once(handler: _Handler) -> None:
    for id_, index in (("call-a", {"index": 0}), ("call-b", {"index": 0}), ("call-c", {})):
        function = {"name": "add", "arguments": '{"a": 3, "b": 4}'}
        handler.say({"tool_calls": [{"id": id_, "function": function, **index}]})
    handler.end("tool_calls")


def _half_a_call(handler: _Handler) -> None:
    function = {"name": "add", "arguments": '{"a": 3, "b": 4}'}
    handler.say({"tool_calls": [{"index": 0, "id": "call-a", "function": function}]})
    handler.end("length")


def _fenced(handler: _Handler) -> None:
    handler.words("``", '`json\n{"a": 1, ', '"b": 2}\n', "```")
    handler.end()


def _likely(handler: _Handler) -> None:
    token = {"token": "Paris", "logprob": -0.5, "top_logprobs": [{"token": "P", "logprob": -1}]}
    handler.say({"content": "Paris"}, logprobs={"content": [token]})
    handler.end()


EVENTS: dict[str, Callable[[_Handler], None]] = {
    "good": _good,
    "flaky": _good,
    "cut": _cut,
    "no end": _no_end,
    "hang": _hang,
    "hang half-way": _hang_half_way,
    "no json": _no_json,
    "strange": _strange,
    "failing": _failing,
    "thinking": _thinking,
    "calling": _calling,
    "calling at once": _calling_at_once,
    "half a call": _half_a_call,
    "fenced": _fenced,
    "likely": _likely,
}
