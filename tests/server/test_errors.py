"""Every error has a status, a code, a message and a hint, and no traceback leaves."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from mlx_guarded_llm import errors
from mlx_guarded_llm.errors import GuardedLLMError
from mlx_guarded_llm.results import Provenance
from mlx_guarded_llm.server.errors import http_error
from tests.conftest import MakeModel

from ._asking import ASK, openai_client
from .conftest import ANSWER, Running, Serve


def kinds(kind: type[GuardedLLMError] = GuardedLLMError) -> Iterator[type[GuardedLLMError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from kinds(below)


@pytest.mark.parametrize("kind", list(kinds()))
def test_each_kind_has_a_status_and_a_code(kind: type[GuardedLLMError]) -> None:
    counts = ("prompt_tokens", "context_window", "needed_bytes", "budget_bytes")
    state = {"message": "it broke.", "hint": "Mend it."} | dict.fromkeys(counts, 7)
    error = errors.rebuild(kind, ("it broke.", "Mend it."), dict(state))
    if issubclass(kind, errors.AnswerRefused):
        return  # see below
    said = http_error(error)
    assert 400 <= said.status < 600 and said.code
    assert (said.headers.get("x-should-retry") == "false") is not kind.retryable
    if issubclass(kind, errors.InvalidRequest):
        assert said.status == 400
    waiting_helps = kind.retryable and said.status in (429, 503)
    assert ("retry-after" in said.headers) is waiting_helps


def test_when_to_ask_again() -> None:
    deferred = errors.LoadDeferredTimeout("it waited.", model="m", waited=1.0, held_by=())
    assert http_error(deferred).headers["retry-after"] == "5"
    deferred.retry_after = 41.2
    assert http_error(deferred).headers["retry-after"] == "42"
    exhausted = errors.AttemptsExhausted("no answer.")
    exhausted.__cause__ = deferred
    assert http_error(exhausted).headers["retry-after"] == "42"


def test_what_was_tried_already_is_not_to_be_tried_again() -> None:
    error = errors.QueueFull("it is full.")
    assert "x-should-retry" not in http_error(error).headers
    error.guard = Provenance(request_id="r", requested_model="a", served_model="")
    said = http_error(error)
    assert said.headers["x-should-retry"] == "false" and said.headers["retry-after"]
    exhausted = errors.AttemptsExhausted("no answer.")
    exhausted.__cause__ = error
    assert http_error(exhausted).status == 429


def test_what_nobody_foresaw_tells_nothing() -> None:
    said = http_error(KeyError("/etc/secret"))
    assert said.status == 500 and "secret" not in str(said)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long(paris: Running, stream: bool) -> None:
    body = {
        "model": "paris",
        "messages": [{"role": "user", "content": "a" * 3000}],
        "stream": stream,
    }
    reply = paris.client.post("/v1/chat/completions", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["context_window"] == 2048 and error["prompt_tokens"] > 3000
    for words in ("maximum context length is 2048", "prompt is too long"):
        assert words in error["message"]


@pytest.mark.parametrize(
    ("data", "headers", "status", "code"),
    [
        (b"{", {}, 400, "invalid_request"),
        (b"[]", {}, 400, "invalid_request"),
        (b"\xff\xfe", {}, 400, "invalid_request"),
        (b'{"model": "paris"}', {}, 400, "invalid_request"),
        (b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (b"x" * 2000, {}, 413, "too_large"),
        (b"[" * 900, {}, 400, "invalid_request"),
    ],
)
def test_a_bad_body(
    serve: Serve, scripted: MakeModel, data: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    running = serve(models={"paris": scripted(ANSWER)}, limits={"body_bytes": 1000})
    headers = {"content-type": "application/json"} | headers
    reply = running.client.post("/v1/chat/completions", content=data, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    parts = iter([data[:500], data[500:]]) if len(data) > 1000 else None
    if parts is not None:  # of no told length
        chunked = running.client.post("/v1/chat/completions", content=parts, headers=headers)
        assert chunked.status_code == status


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/chat/completions", '"messages": [{"role": "user", "content": "a"}], "top_p": NaN'),
        (
            "/v1/chat/completions",
            '"messages": [{"role": "user", "content": "a"}], "logit_bias": {"%s": 1}'
            % ("1" * 5000),
        ),
        ("/v1/responses", '"input": "a", "metadata": {"a": Infinity}'),
        ("/v1/responses", '"input": "a", "metadata": {"a": 1e999}'),
        ("/v1/responses", '"input": "a", "temperature": 1e999'),
        ("/v1/responses", '"input": "a", "tools": [{"type": "function", "name": "f", "x": 1e999}]'),
    ],
)
def test_what_json_cannot_carry_is_refused(paris: Running, path: str, more: str) -> None:
    """Python reads it, and could not send it back."""
    content = f'{{"model": "paris", {more}}}'.encode()
    reply = paris.client.post(path, content=content, headers={"content-type": "application/json"})
    assert reply.status_code == 400, reply.text


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/embeddings", b'"input": [%s0]' % (b"{}," * 200_000)),
        ("/v1/completions", b'"prompt": [%s0]' % (b"[{}]," * 100_000)),
        ("/v1/chat/completions", b'"messages": [%s0]' % (b"0," * 200_000)),
        ("/v1/chat/completions", b'"messages": [{}], "stop": [%s0]' % (b"0," * 200_000)),
        ("/v1/messages", b'"messages": [{}], "max_tokens": 1, "tools": [%s0]' % (b"0," * 200_000)),
        ("/v1/responses", b'"input": [%s0]' % (b"0," * 200_000)),
        ("/v1/chat/completions", b'"messages": [%s{}]' % (b"{}," * 300_000)),
        (
            "/v1/chat/completions",
            b'"messages": [{}], ' + b",".join(b'"%x": 0' % n for n in range(5000)),
        ),
    ],
)
def test_of_many_mistakes_one_is_told(paris: Running, path: str, more: bytes) -> None:
    """To list them all takes long, and the event loop would do nothing else meanwhile."""
    headers = {"content-type": "application/json"}
    reply = paris.client.post(path, content=b'{"model": "paris", %s}' % more, headers=headers)
    assert reply.status_code == 400
    others = re.search(r"\((\d+) more\)", reply.text)
    assert others is None or int(others[1]) < 5  # one for each thing that it might have been


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/models", {"origin": "http://["}, 403),
        ("/v1/models", {"host": "["}, 403),
        ("/guard/events", {"last-event-id": "0-" + "9" * 5000}, 400),
        ("/guard/events", {"last-event-id": "\u00b2"}, 400),
    ],
)
def test_a_header_that_cannot_be_read(
    paris: Running, path: str, headers: dict[str, str], status: int
) -> None:
    raw = {name.encode(): value.encode() for name, value in headers.items()}
    reply = paris.client.get(path, headers=raw)
    assert reply.status_code == status and reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("messages", {"messages": ASK * 3}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}] * 2}),
        (
            "schema_bytes",
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"enum": ["a" * 200]}},
                }
            },
        ),
        ("choices", {"n": 3}),
    ],
)
def test_limits_have_names(
    serve: Serve, scripted: MakeModel, name: str, more: dict[str, Any]
) -> None:
    limits = {"messages": 2, "tools": 1, "schema_bytes": 100, "choices": 2}
    running = serve(models={"paris": scripted(ANSWER)}, limits=limits)
    body = {"model": "paris", "messages": ASK} | more
    reply = running.client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["code"], error["param"]) == ("too_large", name)


def test_a_slow_body(serve: Serve, scripted: MakeModel) -> None:
    running = serve(models={"paris": scripted(ANSWER)}, limits={"body_seconds": 0.1})
    url = httpx.URL(running.url)
    with socket.create_connection((url.host, url.port or 0)) as sock:
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
        )
        assert b" 408 " in sock.recv(100)


def broken_model(scripted: MakeModel) -> dict[str, Any]:
    """One that begins to repeat itself, which is no answer."""
    return {"model": scripted("Over and over. ", loop=True), "max_tokens": 400}


@pytest.fixture
def falling(serve: Serve, scripted: MakeModel, tiny: MakeModel) -> Running:
    """Models of which the first gives nothing, with each policy."""
    nothing = {"model": tiny(nan=True), "fallbacks": ["paris"], "retry": {"attempts": 1}}
    return serve(
        models={
            "raise": nothing,
            "mark": {**nothing, "on_fallback": "mark"},
            "alone": {**nothing, "fallbacks": []},
            "paris": scripted(ANSWER),
        }
    )


def test_a_fallback_is_no_silent_answer(falling: Running) -> None:
    reply = falling.client.post("/v1/chat/completions", json={"model": "raise", "messages": ASK})
    assert reply.status_code == 502
    error = reply.json()["error"]
    assert error["code"] == "fallback_refused"
    assert 'on_fallback = "mark" in the settings' in error["hint"]
    assert error["answer"]["text"] == ANSWER
    assert error["guard"]["served_model"] == reply.headers["x-guard-served-model"] == "paris"
    assert reply.headers["x-should-retry"] == "false"


def test_nor_is_it_in_a_stream(falling: Running) -> None:
    with openai_client(falling) as client, pytest.raises(openai.APIError) as raised:
        list(client.chat.completions.create(model="raise", messages=ASK, stream=True))
    assert raised.value.code == "fallback_refused"


def test_a_fallback_that_may_answer_is_marked(falling: Running) -> None:
    body = {"model": "mark", "messages": ASK}
    reply = falling.client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200
    answer = reply.json()
    assert answer["choices"][0]["message"]["content"] == ANSWER
    assert answer["model"] == answer["guard"]["served_model"] == "paris"
    assert answer["guard"]["requested_model"] == "mark" and answer["guard"]["fallback"]
    assert reply.headers["x-guard-fallback"] == "true"
    assert reply.headers["x-guard-requested-model"] == "mark"
    with openai_client(falling) as client:
        *_, last = client.chat.completions.create(model="mark", messages=ASK, stream=True)
        assert last.model == "paris" and last.model_dump()["guard"]["fallback"]


def test_a_model_that_breaks(falling: Running) -> None:
    with openai_client(falling) as client, pytest.raises(openai.InternalServerError) as raised:
        client.chat.completions.create(model="alone", messages=ASK)
    assert raised.value.code == "generation_failed"
    assert len([e for e in falling.backend.events() if e.kind == "request.queued"]) == 1


def test_an_error_in_a_stream_raises(serve: Serve, scripted: MakeModel) -> None:
    running = serve(
        models={"loop": {**broken_model(scripted), "on_degraded": "raise"}},
    )
    with openai_client(running) as client:
        chunks = client.chat.completions.create(model="loop", messages=ASK, stream=True)
        with pytest.raises(openai.APIError) as raised:
            for _ in chunks:
                pass
    assert raised.value.code == "degraded_answer"


def test_a_degraded_answer_is_marked(serve: Serve, scripted: MakeModel) -> None:
    running = serve(models={"loop": broken_model(scripted)})
    with openai_client(running) as client:
        answer = client.chat.completions.create(model="loop", messages=ASK)
        assert answer.choices[0].finish_reason == "length"
        assert answer.model_dump()["guard"]["degraded"] == ["loop"]


def test_no_traceback_leaves(paris: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise KeyError("/etc/secret")

    monkeypatch.setattr(paris.backend, "models", broken)
    reply = paris.client.get("/v1/models")
    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "internal_error"
    for word in ("secret", "Traceback", "KeyError"):
        assert word not in json.dumps(reply.json())
