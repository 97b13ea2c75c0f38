"""The web application in front of two replicas is that of `mlx-guarded serve`."""

from __future__ import annotations

import json
import time

import httpx
import openai
import pytest

from mlx_guarded_llm.backend import BaseBackend
from mlx_guarded_llm.errors import ModelNotFound, RequestTimeout

from .conftest import Deployed, chat

pytestmark = pytest.mark.timeout(300)


def test_an_answer_says_which_replica_gave_it(client: httpx.Client, deployed: Deployed) -> None:
    answer = client.post("/v1/chat/completions", json=chat("a"))
    assert answer.status_code == 200, answer.text
    guard = answer.json()["guard"]
    assert guard["served_model"] == "a"
    assert guard["replica"] in deployed.pids()
    assert answer.headers["x-guard-replica"] == guard["replica"]


def test_openai_streams(deployed: Deployed) -> None:
    client = openai.OpenAI(base_url=f"{deployed.url}/v1", api_key="none")
    options = chat("b", stream=True, stream_options={"include_usage": True}, max_tokens=32)
    chunks = list(client.chat.completions.create(**options))
    assert len(chunks) > 5
    assert chunks[-1].usage.completion_tokens == 32


def test_a_model_stays_where_it_is(client: httpx.Client) -> None:
    def replica(model: str) -> str:
        answer = client.post("/v1/chat/completions", json=chat(model))
        return str(answer.json()["guard"]["replica"])

    homes = {model: replica(model) for model in "abc"}
    for _ in range(3):
        assert {model: replica(model) for model in "abc"} == homes


def test_a_backend_connects(backend: BaseBackend) -> None:
    told = backend.generate("a", "hi", max_tokens=16, seed=7, temperature=1.0)
    again = backend.generate("a", "hi", max_tokens=16, seed=7, temperature=1.0)
    assert told.text == again.text
    assert told.usage.completion_tokens == 16
    assert backend.tokens("a", "hi")
    card = backend.card("a")
    assert card is not None
    assert card.context_window == 2048
    assert {"a"} <= {info.name for info in backend.models()}
    assert backend.memory()[1] == 2 * 2**30
    with pytest.raises(ModelNotFound):
        backend.generate("no-such-model", "hi")


def test_models_are_loaded_and_unloaded(backend: BaseBackend) -> None:
    assert backend.load("c").state == "resident"
    assert backend.unload("c")
    assert "c" not in {info.name for info in backend.models()}
    assert not backend.unload("c")


def test_a_deadline_is_kept(backend: BaseBackend) -> None:
    with pytest.raises(RequestTimeout):
        backend.generate("slow", "hi", max_tokens=2000, timeout=0.5)


def test_a_stream_that_is_left_ends_at_its_replica(backend: BaseBackend) -> None:
    with backend.stream("slow", "hi", max_tokens=2000) as stream:
        next(iter(stream))
    kinds = {"request.finished", "request.failed"}

    while not any(e.kind in kinds for e in backend.events() if e.request_id == stream.request_id):
        time.sleep(0.1)
    assert not backend.requests()


def test_what_happens_at_all_replicas_is_seen_in_front(
    client: httpx.Client, backend: BaseBackend
) -> None:
    answer = client.post("/v1/chat/completions", json=chat("a"))
    name = answer.headers["x-guard-request-id"]
    assert backend.events()
    story = client.get(f"/guard/requests/{name}")
    assert story.status_code == 200, story.text
    assert "finished" in story.json()["story"]
    replicas = {e.details["replica"] for e in backend.events() if e.request_id == name}
    assert replicas == {answer.headers["x-guard-replica"]}
    health = client.get("/health").json()
    assert health["status"] == "ok"
    assert health["memory_budget_bytes"] == 2 * 2**30
    metrics = client.get("/metrics").text
    assert 'mlx_guarded_requests_total{model="a",outcome="finished"}' in metrics
    listed = client.get("/v1/models")
    assert listed.status_code == 200, listed.text
    assert {"a", "b", "c", "slow"} <= {model["id"] for model in listed.json()["data"]}
    assert client.get("/", headers={"accept": "text/html"}).status_code == 200


def test_an_error_has_its_shape(client: httpx.Client) -> None:
    answer = client.post("/v1/chat/completions", json=chat("none"))
    assert answer.status_code == 404
    assert json.loads(answer.text)["error"]["code"] == "model_not_found"
