"""A client that waits is told so, and one that goes away frees its place."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.conftest import MakeModel

from ._wait import until
from .conftest import ANSWER, Running, Serve

ASK = [{"role": "user", "content": "Go on"}]


@pytest.fixture
def busy(serve: Serve, tiny: MakeModel, scripted: MakeModel, embedder: MakeModel) -> Running:
    """One place, two that wait, and a model whose answers take long."""
    return serve(
        options={"max_active": 1, "max_queue": 2},
        models={
            "noise": {
                "model": tiny(hidden_size=256, layers=6, context_window=8192),
                "retry": {"attempts": 1},
            },
            "paris": {"model": scripted(ANSWER), "retry": {"attempts": 1}},
            "bert": embedder(),
        },
        heartbeat=0.05,
        early_errors=0.2,
    )


def body(model: str = "noise", **options: Any) -> dict[str, Any]:
    return {"model": model, "messages": ASK, "max_tokens": 8000, **options}


@contextmanager
def streaming(running: Running, **options: Any) -> Iterator[Iterator[str]]:
    """The lines of a stream that has begun to answer."""
    request = body(**{"stream": True, **options})
    with running.client.stream("POST", "/v1/chat/completions", json=request) as reply:
        assert reply.status_code == 200, reply.read()
        yield reply.iter_lines()


@contextmanager
def sending(running: Running, path: str, data: dict[str, Any]) -> Iterator[None]:
    """A client that sends a request, and goes away at the end of the block."""
    text, url = json.dumps(data), httpx.URL(running.url)
    with socket.create_connection((url.host, url.port or 0)) as sock:
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        sock.sendall(f"{head}content-length: {len(text)}\r\n\r\n{text}".encode())
        yield


def first_text(lines: Iterator[str]) -> None:
    for line in lines:
        if line.startswith("data: ") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
            return
    raise AssertionError("the stream ended")


def texts(lines: Iterator[str]) -> str:
    parts = []
    for line in lines:
        if line.startswith("data: {"):
            data = json.loads(line[6:])
            parts.append(data["choices"][0]["delta"].get("content") or "")
    return "".join(parts)


def active(running: Running) -> int:
    return sum(model.active for model in running.backend.models())


def waiting(running: Running) -> int:
    return sum(model.waiting for model in running.backend.models())


def test_it_gets_its_headers_and_the_reason(busy: Running) -> None:
    with streaming(busy) as lines:
        first_text(lines)
        with streaming(busy, model="paris") as others:
            for line in others:
                assert line.startswith(":") or not line
                if line == ": paris waits to be loaded behind noise":
                    break
            busy.backend.cancel(
                next(e.request_id for e in busy.backend.events() if e.kind == "request.started")
                or ""
            )
            assert texts(others) == ANSWER


def test_it_is_told_how_long_it_will_take(busy: Running) -> None:
    for model in ("paris", "noise"):  # so that both are measured
        busy.client.post("/v1/chat/completions", json=body(model, max_tokens=4)).raise_for_status()
    busy.client.post("/models/unload", json={"model": "paris"}).raise_for_status()
    with streaming(busy) as lines:
        first_text(lines)
        ask = body("paris", stream=True)
        with busy.client.stream("POST", "/v1/chat/completions", json=ask) as reply:
            assert float(reply.headers["x-guard-expected-wait"]) >= 0
            told = re.compile(": paris waits to be loaded behind noise, (about|less than) .*")
            heartbeats = reply.iter_lines()  # kept: httpx hangs up when it is thrown away
            for line in heartbeats:
                assert line.startswith(":") or not line
                if told.fullmatch(line):
                    break
            name = reply.headers["x-guard-request-id"]
            # It is unknown for a moment where forecasts have had their share of the time.
            until(lambda: "expected_wait_seconds" in story(busy, name))


def story(running: Running, name: str) -> Any:
    return running.client.get(f"/guard/requests/{name}").json()


def test_a_stream_whose_client_goes_away(busy: Running) -> None:
    with streaming(busy) as lines:
        first_text(lines)
    until(lambda: active(busy) == 0)
    assert busy.client.post("/v1/chat/completions", json=body("paris")).status_code == 200


def test_a_stream_whose_client_goes_away_before_it_begins(busy: Running) -> None:
    with streaming(busy) as lines:
        first_text(lines)
        with streaming(busy):
            until(lambda: waiting(busy) == 1)
        until(lambda: waiting(busy) == 0)


@pytest.mark.parametrize(
    ("path", "extra"),
    [
        ("/v1/chat/completions", {"messages": ASK}),
        ("/v1/chat/completions", {"messages": ASK, "n": 2}),
        ("/v1/completions", {"prompt": "Go on"}),
    ],
)
def test_a_whole_answer_whose_client_goes_away(
    busy: Running, path: str, extra: dict[str, Any]
) -> None:
    with sending(busy, path, {"model": "noise", "max_tokens": 8000, **extra}):
        until(lambda: active(busy) == 1)
    until(lambda: active(busy) == 0 and waiting(busy) == 0)


def test_embeddings_whose_client_goes_away(busy: Running) -> None:
    with streaming(busy) as lines:
        first_text(lines)
        with sending(busy, "/v1/embeddings", {"model": "bert", "input": "a"}):
            until(lambda: waiting(busy) == 1)
        until(lambda: waiting(busy) == 0)


def test_a_full_queue(busy: Running) -> None:
    with streaming(busy) as lines:
        first_text(lines)
        with streaming(busy, n=2):
            until(lambda: waiting(busy) == 2)
            for stream in (False, True):
                reply = busy.client.post("/v1/chat/completions", json=body(stream=stream))
                assert reply.status_code == 429, reply.text
                assert int(reply.headers["retry-after"]) > 0
                assert reply.headers["x-should-retry"] == "false"
                assert reply.json()["error"]["code"] == "queue_full"
                assert reply.json()["error"]["guard"]["attempts"]


def test_a_full_queue_says_when_to_come_again(busy: Running) -> None:
    busy.client.post("/v1/chat/completions", json=body(max_tokens=4)).raise_for_status()
    with streaming(busy) as lines:
        first_text(lines)
        with streaming(busy, n=2, max_tokens=7000):
            until(lambda: waiting(busy) == 2)
            reply = busy.client.post("/v1/chat/completions", json=body())
            assert reply.status_code == 429
            room, wait = reply.headers["retry-after"], reply.headers["x-guard-expected-wait"]
            # A place is free when the first has ended, an answer begins when all three have.
            assert 1 <= int(room) <= float(wait) + 1
            assert "Try again in" in reply.json()["error"]["message"]
            assert int(busy.client.get("/ready").headers["retry-after"]) >= 1


def test_the_deadline_of_a_client(busy: Running) -> None:
    with streaming(busy) as lines:
        first_text(lines)
        reply = busy.client.post(
            "/v1/chat/completions", json=body(), headers={"x-guard-deadline": "0.2"}
        )
        assert reply.status_code == 504
        assert reply.json()["error"]["code"] == "timeout"
    wrong = busy.client.post(
        "/v1/chat/completions", json=body(), headers={"x-guard-deadline": "soon"}
    )
    assert wrong.status_code == 400


def test_a_batch_request_lets_others_go_first(busy: Running) -> None:
    def ask(priority: str) -> Any:
        return busy.client.post(
            "/v1/chat/completions",
            json=body(max_tokens=2),
            headers={"x-guard-priority": priority},
        )

    with ThreadPoolExecutor() as pool:
        with streaming(busy) as lines:
            first_text(lines)
            batch = pool.submit(ask, "batch")
            until(lambda: waiting(busy) == 1)
            other = pool.submit(ask, "interactive")
            until(lambda: waiting(busy) == 2)
        queued = [float(call.result().headers["x-guard-queued"]) for call in (batch, other)]
    ends = [event.request_id for event in busy.backend.events() if event.kind == "request.started"]
    ids = [call.result().headers["x-guard-request-id"] for call in (other, batch)]
    assert [name for name in ends if name in ids] == ids
    assert all(seconds > 0 for seconds in queued)
    wrong = ask("urgent")
    assert wrong.status_code == 400 and "interactive or batch" in wrong.text


def test_health_tells_who_waits(busy: Running) -> None:
    assert busy.client.get("/ready").json() == {"status": "ready"}
    with streaming(busy) as lines:
        first_text(lines)
        with streaming(busy):
            until(lambda: waiting(busy) == 1)
            found = busy.client.get("/health").json()
            assert (found["status"], found["running"], found["waiting"]) == ("ok", 1, 1)
            assert found["oldest_waiting_seconds"] > 0
    until(lambda: busy.client.get("/health").json()["running"] == 0)
    assert busy.client.get("/health").json()["oldest_waiting_seconds"] == 0
