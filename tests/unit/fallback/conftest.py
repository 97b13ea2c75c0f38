"""A `GuardedLLM` over a backend that fails as planned, and the four ways to ask it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from mlx_guarded_llm import GuardedLLM, Result, RetryPolicy
from mlx_guarded_llm.errors import EngineDied, LoadDeferredTimeout
from mlx_guarded_llm.results import Collector
from mlx_guarded_llm.testing.faulty import FaultyBackend

SOON = RetryPolicy(initial_wait=0, jitter=0)
ANSWERS = {"big": "Forty two.", "small": "About forty."}

Ask = Callable[..., Result]


def _by_stream(llm: GuardedLLM, prompt: str, **arguments: Any) -> Result:
    collector = Collector()
    for chunk in llm.stream(prompt, **arguments):
        collector.add(chunk)
    return collector.result()


def _by_astream(llm: GuardedLLM, prompt: str, **arguments: Any) -> Result:
    async def read() -> Result:
        collector = Collector()
        async for chunk in llm.astream(prompt, **arguments):
            collector.add(chunk)
        return collector.result()

    return asyncio.run(read())


WAYS: dict[str, Ask] = {
    "generate": lambda llm, *a, **k: llm.generate(*a, **k),
    "agenerate": lambda llm, *a, **k: asyncio.run(llm.agenerate(*a, **k)),
    "stream": _by_stream,
    "astream": _by_astream,
}


@pytest.fixture(params=list(WAYS))
def ask(request: pytest.FixtureRequest) -> Ask:
    return WAYS[request.param]


def guarded(faults: dict[str, list[Any]], **options: Any) -> tuple[GuardedLLM, FaultyBackend]:
    """With `hold_back` so large that streams retry like whole answers."""
    backend: Any = FaultyBackend(faults=faults, answers=ANSWERS)
    settings: dict[str, Any] = {
        "fallbacks": ["small"],
        "retry": SOON,
        "hold_back": math.inf,
    } | options
    return GuardedLLM(backend, "big", **settings), backend


def dead() -> EngineDied:
    return EngineDied("it aborted.")


def deferred() -> LoadDeferredTimeout:
    return LoadDeferredTimeout("it waited.", model="big", waited=120.0, held_by=[("r1", "other")])
