"""`priority="batch"` lets interactive requests go first, in both isolations and every face."""

from __future__ import annotations

import pytest

from mlx_guarded_llm import Backend, GuardedLLM
from mlx_guarded_llm.errors import InvalidRequest
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import events, wait_until


@pytest.fixture
def backend(make_backend: MakeBackend) -> Backend:
    return make_backend(max_active=1)


def test_an_interactive_request_passes_a_batch_request(backend: Backend, tiny: MakeModel) -> None:
    model = tiny()
    holder = backend.stream(model, "Hello", max_tokens=2000)
    next(holder)
    later = GuardedLLM(backend, model, priority="batch").stream(
        "Hello", max_tokens=1, request_id="batch"
    )
    started = backend.stream(model, "Hello", max_tokens=1, priority="batch", request_id="second")
    wait_until(lambda: sum(info.waiting for info in backend.models()) == 1)
    sooner = backend.stream(model, "Hello", max_tokens=1, request_id="interactive")
    wait_until(lambda: sum(info.waiting for info in backend.models()) == 2)
    holder.close()
    for stream in (started, sooner):
        assert list(stream)[-1].finish_reason == "length"
    order = [e.request_id for e in events(backend, "request.started")][1:]
    assert order == ["interactive", "second"]
    assert list(later)[-1].finish_reason == "length"  # it is asked when it is read


def test_what_it_can_be(backend: Backend, tiny: MakeModel) -> None:
    with pytest.raises(InvalidRequest, match="priority is 'urgent'; it must be 'interactive' or"):
        backend.generate(tiny(), "Hello", priority="urgent")
    with pytest.raises(InvalidRequest, match="priority"):
        backend.embed(tiny(), ["Hello"], priority="urgent")
    with pytest.raises(InvalidRequest, match="priority has nothing to do with"):
        backend.tokens(tiny(), "Hello", priority="batch")
    with pytest.raises(InvalidRequest, match="batch_wait"):
        Backend(batch_wait=-1)
