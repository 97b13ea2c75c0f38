"""Wherever a client goes away, its place is freed: at each stage of a request, on each path."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import pytest

from tests.conftest import MakeModel

from ._wait import until
from .conftest import ANSWER, Running, Serve

PATHS: dict[str, Callable[[str], dict[str, Any]]] = {
    "/v1/chat/completions": lambda text: {"messages": [{"role": "user", "content": text}]},
    "/v1/completions": lambda text: {"prompt": text},
    "/v1/responses": lambda text: {"input": text},
    "/v1/messages": lambda text: {"messages": [{"role": "user", "content": text}]},
}
LIMIT = {"/v1/responses": "max_output_tokens"}  # elsewhere it is max_tokens
MANNERS = ("close", "reset", "shut")


@pytest.fixture(params=[0.0, 60.0], ids=["after the headers", "before the headers"])
def busy(
    request: pytest.FixtureRequest,
    serve: Serve,
    tiny: MakeModel,
    scripted: MakeModel,
    embedder: MakeModel,
) -> Running:
    """One place. Streams get their headers at once, or not before there is a piece."""
    return serve(
        options={"max_active": 1, "prefix_cache": 0},
        models={
            "noise": {
                "model": tiny(hidden_size=256, layers=6, context_window=8192),
                "retry": {"attempts": 1},
            },
            "paris": scripted(ANSWER),
            "bert": embedder(),
        },
        heartbeat=0.02,
        early_errors=request.param,
    )


@contextmanager
def sending(
    running: Running, path: str, body: dict[str, Any] | None, manner: str
) -> Iterator[None]:
    """A client that sends a request and goes away at the end of the block."""
    url = httpx.URL(running.url)
    with socket.create_connection((url.host, url.port or 0)) as sock:
        text = json.dumps(body).encode() if body is not None else b""
        method = b"GET" if body is None else b"POST"
        sock.sendall(
            b"%s %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (method, path.encode(), len(text), text)
        )
        yield
        if manner == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif manner == "shut":
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):  # up to the end of what had been sent
                pass


def requests(running: Running) -> int:
    return sum(model.active + model.waiting for model in running.backend.models())


def tasks(running: Running) -> int:
    """Those of the event loop, when no request is under way."""
    until(lambda: not (requests(running) or running.server.server_state.tasks))
    return len(asyncio.all_tasks(running.server.servers[0].get_loop()))


def back_at(running: Running, before: int) -> None:
    until(lambda: tasks(running) <= before)


def count(running: Running, what: str, model: str) -> int:
    return sum(getattr(m, what) for m in running.backend.models() if m.name.startswith(model))


def started(running: Running) -> int:
    return sum(e.kind == "request.first_token" for e in running.backend.events())


def asked(path: str, model: str, text: str, *, stream: bool, tokens: int) -> dict[str, Any]:
    limit = {LIMIT.get(path, "max_tokens"): tokens}
    return {"model": model, "stream": stream, **PATHS[path](text), **limit}


def variants() -> Iterator[tuple[str, bool, str]]:
    """Paths, streamed or not, and manners of going."""
    for number, path in enumerate(PATHS):
        for stream in (False, True):
            yield path, stream, MANNERS[(number + stream) % len(MANNERS)]


def leave_at(running: Running, stage: str, path: str, stream: bool, manner: str) -> None:
    """Ask, wait until the request is at a stage, and go."""
    before, answered = requests(running), started(running)
    model = "paris" if stage == "deferred" else "noise"
    text = "a" * 3000 if stage == "prefill" else "Go on"
    body = asked(path, model, text, stream=stream, tokens=1000)
    with sending(running, path, body, manner):
        match stage:
            case "queued" | "deferred":
                until(lambda: count(running, "waiting", model) == 1)
            case "prefill":
                until(lambda: count(running, "active", model) == 1)
            case _:
                until(lambda: started(running) > answered)
    until(lambda: requests(running) == before)


@pytest.mark.parametrize("stage", ["queued", "deferred", "prefill", "decode"])
def test_a_question(busy: Running, stage: str) -> None:
    # What follows finds it loaded, and every package imported.
    warm = asked("/v1/completions", "noise", "a", stream=True, tokens=1)
    assert busy.client.post("/v1/completions", json=warm).status_code == 200
    idle = tasks(busy)
    holder = asked("/v1/completions", "noise", "Go on", stream=True, tokens=8000)
    for path, stream, manner in variants():
        if stage in ("prefill", "decode"):
            leave_at(busy, stage, path, stream, manner)
        else:  # somebody has the place
            with sending(busy, "/v1/completions", holder, "close"):
                until(lambda: count(busy, "active", "noise") == 1)
                leave_at(busy, stage, path, stream, manner)
        back_at(busy, idle)


def test_embeddings_and_counting(busy: Running) -> None:
    embed = {"model": "bert", "input": ["a"] * 500}
    counted = {"model": "noise", "messages": [{"role": "user", "content": "a" * 200_000}]}
    for path, body in (("/v1/embeddings", embed), ("/v1/messages/count_tokens", counted)):
        before = tasks(busy)
        for manner in MANNERS:
            with sending(busy, path, body, manner):
                pass
            back_at(busy, before)


@pytest.mark.parametrize("busy", [0.0], indirect=True)
@pytest.mark.parametrize("path", ["/models/sse", "/guard/events", "/guard/events?from=start"])
def test_somebody_who_watches(busy: Running, path: str) -> None:
    record, loads = busy.backend.record, busy.server._context.loads
    before = None
    for manner in ("close", *MANNERS):
        with sending(busy, path, None, manner):
            until(lambda: record._followers and (loads._listeners or path != "/models/sse"))
        before = before or tasks(busy)
        back_at(busy, before)
        assert not record._followers and not loads._listeners


@pytest.mark.parametrize("busy", [0.0], indirect=True)
def test_a_load_goes_on(busy: Running) -> None:
    """It is no request: whoever asked for it need not stay."""
    before = tasks(busy)

    def happened(kind: str) -> bool:
        return any(event.kind == kind for event in busy.backend.events())

    for what in ("load", "unload"):
        with sending(busy, f"/models/{what}", {"model": "paris"}, "reset"):
            until(partial(happened, f"{what}.queued"))  # what is reset sooner may never be read
        until(partial(happened, f"{what}.finished"))
        back_at(busy, before)
