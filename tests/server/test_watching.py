"""Metrics, the record as it grows, and one request's story."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlx_guarded_llm.record import Event, Record
from mlx_guarded_llm.results import Provenance
from mlx_guarded_llm.server.tally import Tally
from tests.conftest import MakeModel

from .conftest import ANSWER, Running, Serve

BODY: dict[str, Any] = {"model": "paris", "messages": [{"role": "user", "content": "Where?"}]}


def ask(running: Running, **more: Any) -> httpx.Response:
    reply = running.client.post("/v1/chat/completions", json=BODY | more)
    assert reply.status_code == 200, reply.text
    return reply


def metrics(running: Running) -> dict[tuple[str, ...], float]:
    """By name and the values of its labels, which are sorted by name."""
    reply = running.client.get("/metrics")
    assert reply.status_code == 200
    return {
        (sample.name.removeprefix("mlx_guarded_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


def test_what_is_counted(paris: Running) -> None:
    before = metrics(paris)
    assert before["queue_requests",] == 0
    assert ("requests_total", "paris", "finished") not in before
    answers = [ask(paris).json() for _ in range(2)]
    after = metrics(paris)
    assert after["requests_total", "paris", "finished"] == 2
    usage = [answer["usage"] for answer in answers]
    completion = sum(one["completion_tokens"] for one in usage)
    assert after["tokens_total", "completion", "paris"] == completion
    assert after["tokens_total", "prompt", "paris"] == sum(one["prompt_tokens"] for one in usage)
    for name in ("prefill", "decode", "queue"):
        assert after[f"{name}_seconds_count", "paris"] == 2
    assert after["load_seconds_count", "paris"] == 1
    assert 0 < after["memory_bytes",] < after["memory_budget_bytes",]
    assert after["engine_starts_total",] == 1
    assert after["events_lost_total",] == 0
    assert not [name for name, *_ in after if name.endswith("_created")]


def test_degraded_answers_are_counted_by_reason(serve: Serve, tiny: MakeModel) -> None:
    model = {"model": tiny(context_window=128), "retry": {"attempts": 1}}
    running = serve(models={"paris": model})
    assert ask(running).json()["guard"]["degraded"] == ["length"]
    assert metrics(running)["degraded_total", "paris", "length"] == 1
    with running.client.stream(
        "POST", "/v1/chat/completions", json=BODY | {"stream": True}
    ) as reply:
        assert reply.read()
    assert metrics(running)["degraded_total", "paris", "length"] == 2


def test_fallbacks_are_counted_though_their_answers_are_refused(
    serve: Serve, tiny: MakeModel, scripted: MakeModel
) -> None:
    first = {
        "model": tiny(context_window=128),
        "fallbacks": ["rome"],
        "retry": {"attempts": 1},
        "on_degraded": "raise",
    }
    running = serve(models={"paris": first, "rome": scripted("Rome.")})
    assert running.client.post("/v1/chat/completions", json=BODY).status_code == 502
    assert metrics(running)["fallbacks_total", "paris"] == 1


def at(time: float, kind: Any, **more: Any) -> Event:
    return Event(kind, time, more.pop("model", "paris"), **more)


def test_labels_are_bounded_and_waits_are_measured() -> None:
    record = Record(maxlen=10)
    tally = Tally(record, ["paris"])
    record.append(at(1, "load.deferred", job_id="j"))
    record.append(at(3, "load.deferred", job_id="j"))
    record.append(at(9, "load.started", job_id="j"))
    record.append(at(10, "load.failed", model="/secret/folder", job_id="k"))
    record.append(at(11, "engine.died", cause="killed", details={"how": "killed"}))
    record.append(at(12, "request.started", request_id="r", details={"recovering": 1.0}))
    tally.catch_up()
    tally.catch_up()
    value = tally.registry.get_sample_value
    assert value("mlx_guarded_load_deferral_seconds_sum", {"model": "paris"}) == 8
    assert value("mlx_guarded_load_failures_total", {"model": "other"}) == 1
    assert value("mlx_guarded_resumed_total", {"model": "paris"}) == 1
    assert tally.deaths == 1 and tally.last_death is not None
    for number in range(15):
        record.append(at(20 + number, "request.failed", request_id=f"r{number}"))
    tally.catch_up()
    assert value("mlx_guarded_events_lost_total") == 5
    tally.answered(Provenance(request_id="r", requested_model="/nobody", served_model=""))


def test_the_record_is_followed(paris: Running) -> None:
    name = ask(paris).headers["x-guard-request-id"]
    kinds, ids = [], []
    with paris.client.stream("GET", "/guard/events", params={"from": "start"}) as reply:
        for line in reply.iter_lines():
            if line.startswith("id: "):
                ids.append(line.removeprefix("id: "))
            if line.startswith("data: "):
                one = json.loads(line.removeprefix("data: "))
                kinds.append(one["kind"])
                if one["kind"] == "request.finished":
                    assert one["request_id"] == name and one["details"]["completion_tokens"]
                    break
    assert "load.started" in kinds and "request.queued" in kinds
    with paris.client.stream("GET", "/guard/events", headers={"last-event-id": ids[-2]}) as reply:
        line = next(one for one in reply.iter_lines() if one.startswith("event: "))
    assert line == f"event: {kinds[-1]}"
    wrong = paris.client.get("/guard/events", headers={"last-event-id": "x"})
    assert wrong.status_code == 400


def test_one_story(paris: Running) -> None:
    name = ask(paris).headers["x-guard-request-id"]
    told = paris.client.get(f"/guard/requests/{name}").json()
    assert told["request_id"] == name
    assert re.search(r"asked for paris[\s\S]*finished", told["story"])
    assert paris.client.get("/guard/requests/nobody").status_code == 404


@pytest.mark.parametrize("path", ["/metrics", "/guard/events", "/guard/requests/x"])
def test_only_for_keys_that_may(serve: Serve, scripted: MakeModel, path: str) -> None:
    running = serve(models={"paris": scripted(ANSWER)}, keys={"alice": {"key": "a"}})
    assert running.client.get(path).status_code == 401
    reply = running.client.get(path, headers={"x-api-key": "a"})
    assert reply.status_code == 403
    assert reply.json()["error"]["code"] == "not_allowed"
