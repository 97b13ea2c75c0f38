"""What a backend says of a request that is under way."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from mlx_guarded_llm import Backend
from tests._remote import ServedBackend, serving
from tests.conftest import MakeBackend, MakeModel


@pytest.fixture
def isolation() -> str:
    return "thread"


@pytest.fixture(params=["local", "remote"])
def backend(request: pytest.FixtureRequest, make_backend: MakeBackend) -> Any:
    local: Backend = make_backend(max_active=1)
    if request.param == "local":
        yield local
        return
    with serving(local) as url, ServedBackend(url, local) as served:
        yield cast(Backend, served)


def until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.01)


def test_from_its_queue_to_its_end(backend: Backend, tiny: MakeModel) -> None:
    model = tiny(context_window=8192)
    assert backend.status("nobody") is None
    with backend.stream(model, "Go on", max_tokens=8000) as running:
        next(running)
        until(lambda: (found := backend.status(running.request_id)) and found.tokens > 1)
        found = backend.status(running.request_id)
        assert found is not None and (found.state, found.model) == ("running", model)
        assert found.expected_wait is None and not found.resumed
        with backend.stream(model, "Go on", max_tokens=4) as behind:
            until(lambda: (told := backend.status(behind.request_id)) and told.state == "waiting")
            told = backend.status(behind.request_id)
            assert told is not None and told.tokens == 0
            assert told.words == f"{model} is queued behind {model}"
            listed = [(r.request_id, r.model, r.state) for r in backend.requests()]
            assert listed == [
                (running.request_id, model, "running"),
                (behind.request_id, model, "waiting"),
            ]
            assert backend.requests()[1].words == told.words
    until(lambda: backend.status(running.request_id) is None)
    until(lambda: not backend.requests())


async def test_without_blocking_the_loop(backend: Backend, tiny: MakeModel) -> None:
    assert await backend.astatus("nobody") is None
    async with backend.astream(tiny(context_window=8192), "Go on", max_tokens=8000) as stream:
        await anext(stream)
        found = await backend.astatus(stream.request_id)
        assert found is not None and found.state == "running"


@pytest.mark.parametrize(
    ("request_id", "name", "found"),
    [
        ("a", "a", True),
        ("a.2", "a", True),  # as `GuardedLLM` calls its second attempt
        ("a.b.12", "a.b", True),
        ("a.b", "a", False),  # somebody else's request
        ("a.2.2", "a", False),
        ("a.", "a", False),
        ("ab", "a", False),
    ],
)
def test_of_a_call_by_its_attempt(
    backend: Backend, tiny: MakeModel, request_id: str, name: str, found: bool
) -> None:
    model = tiny(context_window=8192)
    with backend.stream(model, "Go on", max_tokens=8000, request_id=request_id) as stream:
        next(stream)
        status = backend.status(name)
        assert (status is not None) == found
        if status is not None:
            assert status.request_id == request_id and status.words.endswith("answers")
