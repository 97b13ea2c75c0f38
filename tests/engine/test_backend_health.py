"""What a backend tells of itself at one moment, and models that may be evicted again."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.backend import Health
from mlx_guarded_llm.errors import RequestTimeout
from tests.conftest import MakeBackend, MakeModel


def test_from_before_its_first_use_to_its_end(backend: Backend, tiny: MakeModel) -> None:
    assert backend.health() == Health(engine="idle")
    model = tiny()
    with backend.stream(model, "Hello", max_tokens=200) as stream:
        next(stream)
        health = backend.health()
        assert (health.engine, health.running, health.waiting) == ("working", 1, 0)
        assert 0 < health.memory_bytes < health.budget_bytes
    assert not backend.health().full
    backend.close()
    assert backend.health() == Health(engine="closed")


async def test_what_waits_has_an_age(make_backend: MakeBackend, tiny: MakeModel) -> None:
    backend = make_backend(max_active=1, max_queue=1)
    model = tiny()
    async with backend.astream(model, "Hello", max_tokens=500) as stream:
        await anext(stream)
        behind = backend.astream(model, "Me too", max_tokens=1)
        while (health := await backend.ahealth()).waiting == 0 or not health.full:
            pass
        assert health.oldest_waiting >= 0
        await behind.aclose()


@pytest.mark.parametrize("own_worker", [True])
@pytest.mark.parametrize("isolation", ["process"])
def test_a_stopped_worker_stalls(make_backend: MakeBackend, tiny: MakeModel) -> None:
    backend = make_backend(stall_timeout=30.0)
    backend.load(tiny())
    assert backend.worker_pid is not None
    os.kill(backend.worker_pid, signal.SIGSTOP)
    while backend.health().stalled < 2.0:
        pass
    os.kill(backend.worker_pid, signal.SIGCONT)
    while backend.health().stalled > 1.0:
        pass


def test_a_thread_that_decides_nothing_is_told(backend: Backend) -> None:
    held = threading.Event()
    backend._dispatcher.call(lambda: held.wait(60))
    with pytest.raises(RequestTimeout):
        backend.health(timeout=0.1)
    held.set()
    assert backend.health().engine == "idle"


def test_a_model_is_unpinned(backend: Backend, tiny: MakeModel) -> None:
    model = tiny()
    assert backend.load(model, pin=True).pinned
    assert backend.unpin(model)
    assert not backend.unpin(model)
    (info,) = backend.models()
    assert info.state == "resident" and not info.pinned
