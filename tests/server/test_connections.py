"""Connections that are silent, slow, stuck, broken or too many: nobody else sees anything of it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest

from mlx_guarded_llm.server.connections import SPARE, Connection
from mlx_guarded_llm.server.running import ACCEPTED_AT_ONCE
from tests.conftest import MakeModel

from ._wait import until
from .conftest import ANSWER, Running, Serve

HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
)
ASK = [{"role": "user", "content": "Go on"}]


@pytest.fixture
def strict(serve: Serve, scripted: MakeModel, tiny: MakeModel) -> Running:
    """Short limits, and a model whose answers take long."""
    return serve(
        models={
            "paris": scripted(ANSWER),
            "noise": tiny(hidden_size=256, layers=6, context_window=8192),
        },
        limits={"head_seconds": 0.3, "send_seconds": 0.3, "body_seconds": 0.3},
        heartbeat=0.05,
    )


@contextmanager
def connected(running: Running, *, receive: int | None = None) -> Iterator[socket.socket]:
    """A connection; `receive` are the bytes that its side keeps while nobody reads them."""
    url = httpx.URL(running.url)
    with socket.socket() as sock:
        if receive is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        sock.settimeout(60)
        sock.connect((url.host, url.port or 0))
        yield sock


def rest(sock: socket.socket) -> bytes:
    """All that still comes until the other side closes."""
    parts = []
    try:
        while part := sock.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def post(body: dict[str, Any], path: bytes = b"/v1/chat/completions") -> bytes:
    text = json.dumps(body).encode()
    head = HEAD.replace(b"/v1/chat/completions", path)
    return head + b"content-length: %d\r\n\r\n%s" % (len(text), text)


def error_of(reply: bytes) -> tuple[int, str]:
    """The status and the code of a reply, which is an error in the shape of OpenAI's API."""
    head, _, body = reply.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert error["message"] and error["type"]
    return int(head.split()[1]), error["code"]


def busy(running: Running) -> int:
    return sum(model.active + model.waiting for model in running.backend.models())


def at_rest(running: Running) -> bool:
    return not (busy(running) or running.server.server_state.tasks)


def answers(running: Running) -> bool:
    reply = running.client.post(
        "/v1/chat/completions", json={"model": "paris", "messages": ASK, "temperature": 0}
    )
    said: str = reply.json()["choices"][0]["message"]["content"]
    return said == ANSWER


@pytest.mark.parametrize("sent", [b"", b"G", HEAD, post({"model": "nobody", "messages": ASK})])
def test_one_that_is_silent_is_closed(strict: Running, sent: bytes) -> None:
    with connected(strict) as sock:
        sock.sendall(sent)
        if sent.startswith(b"POST") and sent != HEAD:
            while b"model_not_found" not in sock.recv(65536):
                pass
            sock.sendall(b"GET /he")  # the beginning of another request
        assert error_of(rest(sock)) == (408, "timeout")
    assert answers(strict)


def test_one_that_sends_its_headers_byte_by_byte_is_closed(strict: Running) -> None:
    """There is always something new, and never enough."""
    with connected(strict) as sock, suppress(ConnectionError):
        sock.settimeout(0.02)
        said = b"nothing yet"
        while said:
            sock.sendall(b"x")
            with suppress(TimeoutError):
                said = sock.recv(1000)
    assert answers(strict)


def test_one_that_is_used_is_kept(strict: Running) -> None:
    """The bound is on each request's headers, not on the connection."""
    with httpx.Client(base_url=strict.url, timeout=60) as client:
        for _ in range(3):
            body = {"model": "noise", "messages": ASK, "max_tokens": 100}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
        assert len(strict.server.server_state.connections) == 1


def test_a_client_that_stops_reading_a_stream_loses_its_place(strict: Running) -> None:
    body: dict[str, Any] = {
        "model": "noise",
        "messages": ASK,
        "max_tokens": 8000,
        "stream": True,
        "logprobs": True,
    }
    with connected(strict, receive=4096) as sock:
        # Small, so that it is full after a few pieces.
        until(lambda: strict.server.server_state.connections)
        for connection in strict.server.server_state.connections:
            peer = connection.transport.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.sendall(post(body | {"top_logprobs": 20}))
        until(lambda: busy(strict))
        until(lambda: at_rest(strict))
    [ended] = [
        e for e in strict.backend.events() if e.kind in ("request.finished", "request.failed")
    ]
    assert ended.details.get("completion_tokens", 0) < body["max_tokens"]
    assert answers(strict)


def test_a_client_that_reads_nothing_of_a_whole_answer_is_let_go(strict: Running) -> None:
    with connected(strict, receive=4096) as sock:
        for _ in range(2000):  # one after the other, and none of their answers is read
            try:
                sock.settimeout(0.5)
                sock.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n" * 50)
            except OSError:
                break
        until(lambda: not strict.server.server_state.connections)
    assert answers(strict)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),  # TLS
        b"\0\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost : localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 70_000,
        HEAD + b"content-length: 3\r\ncontent-length: 4\r\n\r\n{}",
        HEAD + b"content-length: -1\r\n\r\n",
        HEAD + b"content-length: " + b"9" * 5000 + b"\r\n\r\n",
        HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}}\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 100 + b"\r\n",
    ],
)
def test_what_is_no_http_is_refused_in_the_shape_of_the_api(strict: Running, sent: bytes) -> None:
    with connected(strict) as sock:
        sock.sendall(sent)
        status, code = error_of(rest(sock))
        assert (status, code) in ((400, "invalid_request"), (501, "invalid_request"))
    until(lambda: at_rest(strict))
    assert answers(strict)


def test_a_request_with_two_lengths_smuggles_nothing(strict: Running) -> None:
    """By its chunks it ends before what a proxy that goes by the length takes for its body."""
    inner = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"
    lengths = b"content-length: %d\r\ntransfer-encoding: chunked\r\n\r\n" % (5 + len(inner))
    with connected(strict) as sock:
        sock.sendall(HEAD + lengths + b"0\r\n\r\n" + inner)
        assert error_of(rest(sock)) == (400, "invalid_request")


def test_requests_sent_together_are_answered_in_order(strict: Running) -> None:
    get = b"GET %s HTTP/1.1\r\nhost: localhost\r\n%s\r\n"
    paths = [b"/health", b"/v1/models/paris", b"/nothing"]
    with connected(strict) as sock:
        sock.sendall(b"".join(get % (path, b"") for path in paths))
        sock.sendall(get % (b"/v1/models", b"connection: close\r\n"))
        said = rest(sock)
    statuses = [part[:3] for part in said.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"200", b"404", b"200"]


@pytest.fixture
def small(serve: Serve, scripted: MakeModel) -> Running:
    """A server that takes three connections."""
    return serve(models={"paris": scripted(ANSWER)}, limits={"connections": 3})


def test_more_connections_than_the_limit(small: Running) -> None:
    with ExitStack() as stack:
        assert answers(small)  # one, which is kept
        others = [stack.enter_context(connected(small)) for _ in range(2)]
        until(lambda: len(small.server.server_state.connections) == 3)
        newest = stack.enter_context(httpx.Client(base_url=small.url, timeout=60))
        for path, shape in (
            ("/v1/models", "error"),
            ("/v1/messages", "error"),
            ("/ready", "status"),
        ):
            reply = newest.get(path) if path != "/v1/messages" else newest.post(path, json={})
            assert reply.status_code == 503 and int(reply.headers["retry-after"]) > 0
            assert "too_many_connections" in reply.text and shape in reply.json()
            assert reply.headers["connection"] == "close"
        assert newest.get("/health").status_code == 200
        assert answers(small)  # those who were there before see nothing of it
        for sock in others:
            sock.close()
    with httpx.Client(base_url=small.url, timeout=60) as client:
        until(lambda: client.get("/v1/models").status_code == 200)


def test_so_many_that_no_more_are_told_of_it(small: Running) -> None:
    with ExitStack() as stack:
        assert answers(small)
        socks = [stack.enter_context(connected(small)) for _ in range(SPARE + 20)]
        until(lambda: len(small.server.server_state.connections) == 3 + SPARE)
        assert rest(socks[-1]) == b""
        assert answers(small)


def test_a_burst_is_accepted_in_shares(paris: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    turn, made = 0, Counter[int]()
    made_by = Connection.connection_made

    def connection_made(self: Connection, transport: asyncio.Transport) -> None:
        made[turn] += 1
        made_by(self, transport)

    async def hold_then_count() -> None:
        nonlocal turn
        holds.set()
        assert come.wait(60)  # the event loop does not turn
        while made.total() < 100:
            turn += 1
            await asyncio.sleep(0)

    assert answers(paris)
    (connection,) = paris.server.server_state.connections
    loop, holds, come = connection.loop, threading.Event(), threading.Event()
    monkeypatch.setattr(Connection, "connection_made", connection_made)
    counted = asyncio.run_coroutine_threadsafe(hold_then_count(), loop)
    assert holds.wait(60)
    with ExitStack() as stack:
        for _ in range(100):  # none waits for the server: the system's queue has room
            stack.enter_context(connected(paris))
        come.set()
        counted.result(60)
        assert answers(paris)
    assert max(made.values()) <= ACCEPTED_AT_ONCE


@pytest.mark.parametrize("target", [b"]v1/responses", b"*", b"x", b"%2fhealth", b"http:/v1", b"?a"])
@pytest.mark.parametrize("method", [b"GET", b"POST", b"OPTIONS"])
def test_a_target_that_is_no_path(strict: Running, method: bytes, target: bytes) -> None:
    with connected(strict) as sock:
        sock.sendall(
            method + b" " + target + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )
        head, _, body = rest(sock).partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert status < 500
    assert status < 400 or json.loads(body), "an error has the shape of some API"
