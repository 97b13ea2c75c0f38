"""Models that another server runs: a server of ours in front of one, and in front of a bad one."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.server import Settings
from mlx_guarded_llm.server.settings import in_force, load_settings
from tests._upstream import KEY, WORDS, Upstream, upstream
from tests.conftest import MakeModel

from ._asking import ASK, CALL, openai_client
from ._wait import until
from .conftest import ANSWER, Running, Serve
from .test_leaving import sending

TEXT = "".join(WORDS)
QUICK = {"attempts": 2, "initial_wait": 0, "jitter": 0}
PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/messages")


@pytest.fixture
def bad() -> Iterator[Upstream]:
    with upstream() as server:
        yield server


@pytest.fixture
def front(serve: Serve, scripted: MakeModel) -> Running:
    """A server in front of another of ours, with a model of its own."""
    behind = serve(models={"paris": scripted(ANSWER), "caller": scripted(CALL, tools=True)})
    return serve(
        models={
            "far": {"url": f"{behind.url}/v1", "model": "paris", "context_window": 2048},
            "caller": {"url": f"{behind.url}/v1"},
            "near": scripted("Near it is, at any rate."),
        }
    )


def table(bad: Upstream, how: str, **options: Any) -> dict[str, Any]:
    return {"url": bad.url, "model": how, "retry": QUICK, **options}


def body(path: str, model: str, **options: Any) -> dict[str, Any]:
    if path == "/v1/responses":
        return {"model": model, "input": ASK[0]["content"], **options}
    limit = {"max_tokens": 64} if path == "/v1/messages" else {}
    return {"model": model, "messages": ASK, **limit, **options}


def text_of(path: str, reply: httpx.Response) -> str:
    said = reply.json()
    if path == "/v1/responses":
        text: str = said["output"][0]["content"][0]["text"]
    elif path == "/v1/messages":
        text = said["content"][0]["text"]
    else:
        text = said["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize("path", PATHS)
def test_another_server_answers(front: Running, path: str) -> None:
    reply = front.client.post(path, json=body(path, "far"))
    assert reply.status_code == 200, reply.text
    assert text_of(path, reply) == ANSWER
    guard = reply.json()["guard"]
    assert guard["requested_model"] == guard["served_model"] == "far"
    assert not guard["fallback"] and not guard["degraded"]
    assert reply.headers["x-guard-served-model"] == "far"
    lines = []
    with front.client.stream("POST", path, json=body(path, "far", stream=True)) as streamed:
        assert streamed.status_code == 200
        lines = [line for line in streamed.iter_lines() if line.startswith("data: {")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    said = [_piece(event) for event in events]
    assert "".join(said) == ANSWER and sum(map(bool, said)) > 1
    assert '"served_model": "far"' in json.dumps(events) or '"served_model":"far"' in lines[-1]


def _piece(event: dict[str, Any]) -> str:
    if event.get("type") in ("response.output_text.delta", "content_block_delta"):
        delta = event["delta"]
        return delta if isinstance(delta, str) else str(delta.get("text", ""))
    choices = event.get("choices") or [{}]
    return str(choices[0].get("delta", {}).get("content") or "")


def test_tool_calls_and_usage_come_through(front: Running) -> None:
    number = {"type": "integer"}
    form = {"type": "object", "properties": {"a": number, "b": number}, "required": ["a", "b"]}
    add: Any = {"name": "add", "parameters": form}
    client = openai_client(front)
    answer = client.chat.completions.create(
        model="caller", messages=ASK, tools=[{"type": "function", "function": add}]
    )
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function" and json.loads(call.function.arguments) == {"a": 3, "b": 4}
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.usage is not None and answer.usage.completion_tokens > 3


def test_it_is_listed_and_not_loaded(front: Running) -> None:
    models = {one["id"]: one for one in front.client.get("/v1/models").json()["data"]}
    assert models["far"]["state"] == "remote" and models["far"]["context_length"] == 2048
    assert "status" not in models["far"] and models["near"]["status"]["value"] == "unloaded"
    assert front.client.get("/v1/models/far").json()["state"] == "remote"
    for what in ("load", "unload", "pin", "unpin"):
        reply = front.client.post(f"/models/{what}", json={"model": "far"})
        assert reply.status_code == 400
        assert reply.json()["error"]["code"] == "model_unsupported"
    counted = front.client.post("/v1/messages/count_tokens", json=body("", "far"))
    assert counted.status_code == 400 and "another server" in counted.text


@pytest.mark.parametrize("how", ["500", "cut", "no end", "hang", "page", "401", "404"])
@pytest.mark.parametrize("path", PATHS)
def test_from_a_bad_server_to_a_model_here(
    serve: Serve, scripted: MakeModel, bad: Upstream, path: str, how: str
) -> None:
    far = table(bad, how, fallbacks=["near"], on_fallback="mark", read_timeout=0.3)
    front = serve(models={"far": far, "near": scripted(ANSWER)})
    reply = front.client.post(path, json=body(path, "far"))
    assert reply.status_code == 200, reply.text
    assert text_of(path, reply) == ANSWER
    guard = reply.json()["guard"]
    assert guard["fallback"] and guard["served_model"] == "near"
    assert {attempt["model"] for attempt in guard["attempts"]} == {"far", "near"}
    assert reply.headers["x-guard-fallback"] == "true"
    assert reply.headers["x-guard-served-model"] == "near"


def test_from_a_model_that_cannot_be_loaded_to_another_server(
    serve: Serve, tiny: MakeModel, bad: Upstream
) -> None:
    near = {"model": tiny(hidden_size=256, layers=6), "fallbacks": ["far"], "on_fallback": "mark"}
    front = serve(
        models={"near": near, "far": table(bad, "good")}, options={"memory_budget": 2**20}
    )
    client = openai_client(front, max_retries=0)
    raw = client.chat.completions.with_raw_response.create(model="near", messages=ASK)
    assert raw.headers["x-guard-served-model"] == "far"
    guard: Any = raw.parse().model_dump()["guard"]
    assert guard["fallback"] and "MemoryRefused" in guard["attempts"][0]["error"]
    said = ""
    for chunk in client.chat.completions.create(model="near", messages=ASK, stream=True):
        said += chunk.choices[0].delta.content or ""
    assert said == TEXT


@pytest.mark.parametrize("how", ["cut", "no end", "no json", "failing"])
def test_a_stream_that_is_cut_is_an_error_to_every_client(
    serve: Serve, bad: Upstream, how: str
) -> None:
    front = serve(models={"far": table(bad, how)})
    client = openai_client(front, max_retries=0)
    chunks: list[Any] = []
    with pytest.raises(openai.APIError):
        chunks.extend(client.chat.completions.create(model="far", messages=ASK, stream=True))
    assert all(choice.finish_reason is None for chunk in chunks for choice in chunk.choices)
    events = list(client.responses.create(model="far", input="Where?", stream=True))
    assert events[-1].type in ("response.failed", "error")
    with (
        pytest.raises(anthropic.APIError),
        anthropic.Anthropic(base_url=front.url, api_key="none", max_retries=0).messages.stream(
            model="far", max_tokens=64, messages=ASK
        ) as stream,
    ):
        stream.get_final_message()


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        ("401", 502, "server_refused"),
        ("404", 404, "model_not_found"),
        ("429", 429, "queue_full"),
        ("500", 503, "server_unavailable"),
        ("long", 400, "context_length_exceeded"),
    ],
)
def test_what_its_errors_become(
    serve: Serve,
    bad: Upstream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
    status: int,
    code: str,
) -> None:
    monkeypatch.setenv("FAR_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    front = serve(models={"far": table(bad, how, key_env="FAR_KEY")})
    reply = front.client.post("/v1/chat/completions", json=body("", "far"))
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), reply.text
    assert KEY not in reply.text + str(reply.headers) + caplog.text
    assert bad.keys[-1] == f"Bearer {KEY}"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_leaves_ends_the_other_request(
    serve: Serve, bad: Upstream, path: str, stream: bool
) -> None:
    front = serve(models={"far": table(bad, "hang")}, early_errors=0, heartbeat=0.05)
    with sending(front, path, body(path, "far", stream=stream), "reset" if stream else "close"):
        until(lambda: bad.bodies)
    assert bad.gone.wait(60)


def test_a_guarded_server_behind_says_what_it_did(
    serve: Serve, bad: Upstream, scripted: MakeModel
) -> None:
    """Its fallback's answer is no full answer here either."""
    far = table(bad, "500", fallbacks=["near"], on_fallback="mark")
    behind = serve(models={"far": far, "near": scripted(ANSWER)})
    front = serve(models={"gpt": {"url": f"{behind.url}/v1", "model": "far"}})
    reply = front.client.post("/v1/chat/completions", json=body("", "gpt")).json()
    assert reply["choices"][0]["message"]["content"] == ANSWER
    assert reply["guard"]["fallback"] and reply["guard"]["served_model"] == "gpt/near"


def test_embeddings(serve: Serve, embedder: MakeModel) -> None:
    behind = serve(models={"bert": embedder()})
    front = serve(models={"far": {"url": f"{behind.url}/v1", "model": "bert"}})
    asked = {"input": ["One.", "Two."], "encoding_format": "float"}
    here = front.client.post("/v1/embeddings", json={"model": "far", **asked}).json()
    there = behind.client.post("/v1/embeddings", json={"model": "bert", **asked}).json()
    assert here["guard"]["served_model"] == "far" and here["usage"] == there["usage"]
    for mine, theirs in zip(here["data"], there["data"], strict=True):
        assert mine["embedding"] == pytest.approx(theirs["embedding"], abs=1e-6)


def test_a_backend_elsewhere_cannot_ask_it(front: Running) -> None:
    from mlx_guarded_llm import Backend

    with Backend.connect(front.url) as backend:
        with pytest.raises(InvalidRequest, match="another server"):
            backend.generate("far", "Where?")
        assert backend.generate("near", "Where?").text


def test_no_request_names_an_address(front: Running, bad: Upstream) -> None:
    for name in ("url", "base_url", "api_base"):
        reply = front.client.post("/v1/chat/completions", json=body("", "far", **{name: bad.url}))
        assert reply.status_code == 400 and name in reply.text
    for name in (bad.url, f"far[url={bad.url}]"):
        reply = front.client.post("/v1/chat/completions", json=body("", name))
        assert reply.status_code == 404
    assert not bad.paths


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"url": "here"}, "models.far: url"),
        ({"url": "http://h/v1", "key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY"),
    ],
)
def test_what_is_wrong_is_said_at_the_start(serve: Serve, entry: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        serve(models={"far": entry})


@pytest.mark.parametrize(
    "entry",
    [
        {"url": "http://h/v1", "pin": True},
        {"url": "http://h/v1", "kv_bits": 8},
        {"model": "qwen3-4b", "key_env": "KEY"},
    ],
)
def test_what_contradicts_itself(entry: dict[str, Any]) -> None:
    name = [*entry][-1]
    with pytest.raises(InvalidRequest, match=rf"models\.far: .*{name} is for models"):
        load_settings(None, {"models": {"far": entry}})


def test_the_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_KEY", KEY)
    loaded = load_settings(None, {"models": {"far": {"url": "http://h/v1", "key_env": "FAR_KEY"}}})
    assert KEY not in repr(list(in_force(loaded))) + repr(loaded.settings)
    assert isinstance(loaded.settings, Settings)


def test_drafted_tokens_come_through(serve: Serve, scripted: MakeModel) -> None:
    looping = scripted("The quick brown fox jumps over the lazy dog. ", loop=True)
    behind = serve(models={"fox": {"model": looping, "draft": "prompt"}})
    front = serve(models={"far": {"url": f"{behind.url}/v1", "model": "fox"}})
    with openai_client(front) as client:
        answer = client.chat.completions.create(model="far", messages=ASK, max_tokens=60)
    assert answer.usage is not None
    details = answer.usage.completion_tokens_details
    assert details is not None and details.accepted_prediction_tokens
    assert details.rejected_prediction_tokens == 0
