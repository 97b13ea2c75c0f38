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
from mlx_guarded_llm.server.settings import ModelEntry
from mlx_guarded_llm.testing.tiny import make_tiny_model

from .conftest import deploy

pytestmark = [pytest.mark.soak, pytest.mark.timeout(500)]

CLIENTS = 8
SHORT: dict[str, Any] = {"max_tokens": 48, "temperature": 0.0}
LONG: dict[str, Any] = {"max_tokens": 1000, "temperature": 0.0}


@pytest.fixture(scope="module")
def one_at_a_time(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    model = make_tiny_model(tmp_path_factory.mktemp("models") / "m", hidden_size=512, layers=8)
    guard = settings.guard.model_copy(update={"max_active": 1})
    models = {"m": ModelEntry(model=str(model))}
    return settings.model_copy(update={"guard": guard, "models": models})


@pytest.mark.parametrize("grace", [60.0, -2.0], ids=["finishes", "goes on elsewhere"])
def test_an_old_queue_starts_a_replica_and_idleness_ends_one(
    cluster: LocalCluster, one_at_a_time: Settings, grace: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_guarded_ray.application.GRACE", grace)  # behind two seconds of drain
    deployed = deploy(
        cluster,
        one_at_a_time,
        min_replicas=1,
        max_replicas=2,
        queue_age=1.0,
        upscale_delay=0.0,
        downscale_delay=1.0,
        stats_period=0.5,
        cpus=0.5,
    )
    (first,) = deployed.pids()
    with Backend.connect(deployed.url) as backend:
        whole = backend.generate("m", "a long story", **LONG)
        deployed.wait_for_replicas(1)  # it may have waited long for its model
        burst = Burst(backend, first)
        burst.seen.wait()
        # Ray Serve ends the newest replica, although it is the other that has nothing to do.
        stream = backend.stream("m", "a long story", **LONG)
        chunks = [next(stream)]
        (second,) = {result.guard.replica for result in burst.results()} - {first}
        chunks += stream
        last = chunks[-1]
        assert "".join(chunk.text for chunk in chunks) == whole.text
        assert last.usage is not None
        assert last.usage.completion_tokens == LONG["max_tokens"]
        assert last.guard is not None
        told = last.guard.replica, last.guard.resumed
        assert told == ((second, False) if grace > 0 else (first, True))
        started = [event for event in backend.events() if event.kind == "request.started"]
        places = [e.details["replica"] for e in started if e.request_id == stream.request_id]
        assert places == ([second] if grace > 0 else [second, first])
    deployed.wait_for_replicas(1)
    assert [*deployed.pids()] == [first]


class Burst:
    """Many clients, until a second replica answers one."""

    def __init__(self, backend: BaseBackend, first: str) -> None:
        self.seen = threading.Event()
        self._backend, self._first = backend, first
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._clients = [self._pool.submit(self._ask, number) for number in range(CLIENTS)]

    def _ask(self, client: int) -> list[Result]:
        results: list[Result] = []
        try:
            while not self.seen.is_set():
                prompt = f"client {client}, number {len(results)}"
                results.append(self._backend.generate("m", prompt, **SHORT))
                if results[-1].guard.replica != self._first:
                    self.seen.set()
        except BaseException:
            self.seen.set()
            raise
        return results

    def results(self) -> list[Result]:
        """All answers; each has come, and whole."""
        with self._pool:
            results = [result for client in self._clients for result in client.result()]
        assert {result.usage.completion_tokens for result in results} == {SHORT["max_tokens"]}
        return results
