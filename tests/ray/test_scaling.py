"""Autoscaling of a running cluster, by the age of its queue."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from mlx_guarded_ray.testing import LocalCluster

from mlx_guarded_llm import Backend
from mlx_guarded_llm.backend import BaseBackend
from mlx_guarded_llm.results import Result
from mlx_guarded_llm.server import Settings

from .conftest import Deployed, deploy

pytestmark = pytest.mark.timeout(500)

CLIENTS = 8
TOKENS = 64
LONG = 1500


@pytest.mark.parametrize("grace", [60.0, -2.0], ids=["in time", "cut off"])
def test_an_old_queue_starts_a_replica_and_idleness_ends_one(
    cluster: LocalCluster, settings: Settings, grace: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_guarded_ray.application.GRACE", grace)  # behind a drain of two seconds
    guard = settings.guard.model_copy(update={"max_active": 1})
    deployed = deploy(
        cluster,
        settings.model_copy(update={"guard": guard}),
        min_replicas=1,
        max_replicas=2,
        queue_age=0.5,
        upscale_delay=0.0,
        downscale_delay=2.0,
        stats_period=0.5,
        cpus=0.5,
    )
    (first,) = deployed.pids()
    with Backend.connect(deployed.url) as backend:
        results = _burst(backend, first)
        assert {(r.finish_reason, r.usage.completion_tokens) for r in results} == {("length", TOKENS)}
        (second,) = {r.guard.replica for r in results} - {first}
        _is_ended_while_it_answers(backend, deployed, first, second)


def _burst(backend: BaseBackend, first: str) -> list[Result]:
    """What many clients are answered until a second replica answers one."""
    seen = threading.Event()

    def ask(client: int) -> list[Result]:
        results: list[Result] = []
        while not seen.is_set():
            prompt = f"client {client}, number {len(results)}"
            results.append(backend.generate("slow", prompt, max_tokens=TOKENS, temperature=0.0))
            if results[-1].guard.replica != first:
                seen.set()
        return results

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [result for results in pool.map(ask, range(CLIENTS)) for result in results]


def _is_ended_while_it_answers(
    backend: BaseBackend, deployed: Deployed, first: str, second: str
) -> None:
    """Ray Serve ends the newest replica, whichever has nothing to do."""
    options: dict[str, Any] = {"max_tokens": LONG, "temperature": 0.0}
    whole = backend.generate("slow", "a long story", **options)
    streams = [backend.stream("slow", "a long story", **options) for _ in range(2)]
    texts = {stream.request_id: next(stream).text for stream in streams}
    started = (event for event in backend.events() if event.kind == "request.started")
    places = {event.request_id: event.details["replica"] for event in started}
    idle, busy = sorted(streams, key=lambda stream: places[stream.request_id] == second)
    assert (places[idle.request_id], places[busy.request_id]) == (first, second)
    idle.close()
    chunks = [*busy]
    last = chunks[-1]
    assert last.guard is not None and last.usage is not None
    assert texts[busy.request_id] + "".join(chunk.text for chunk in chunks) == whole.text
    assert (last.finish_reason, last.usage.completion_tokens) == ("length", LONG)
    deployed.wait_for_replicas(1)
    assert [*deployed.pids()] == [first]
    print(second, first, last.guard.replica, last.guard.resumed)
