"""The expected wait of real requests: unknown until something was measured, then told."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import QueueFull
from tests.conftest import MakeBackend, MakeModel


def until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.01)


def test_it_is_unknown_until_it_was_measured(make_backend: MakeBackend, tiny: MakeModel) -> None:
    model, other = tiny(context_window=8192), tiny(seed=1)
    backend: Backend = make_backend(max_active=1)
    assert backend.expected_wait("nobody") is None
    with backend.stream(model, "Go on", max_tokens=8000) as running:
        next(running)
        behind = backend.stream(model, "Go on", max_tokens=4)
        assert backend.expected_wait(behind.request_id) is None
    assert list(behind)[-1].finish_reason == "length"
    with backend.stream(model, "Go on", max_tokens=8000) as running:
        next(running)
        with backend.stream(model, "Go on", max_tokens=4) as behind:
            until(lambda: backend.expected_wait(behind.request_id) is not None)
            wait = backend.expected_wait(behind.request_id)
            assert wait is not None and wait >= 0 and math.isfinite(wait)
            # The other was never loaded. It is expected to load as fast as the first.
            with backend.stream(other, "Go on", max_tokens=4) as third:
                until(lambda: backend.expected_wait(third.request_id) is not None)
        assert backend.expected_wait(running.request_id) is None, "it has started"


def test_a_full_queue_tells_of_it(make_backend: MakeBackend, tiny: MakeModel) -> None:
    model = tiny(context_window=8192)
    backend: Backend = make_backend(max_active=1, max_queue=1)
    backend.generate(model, "Go on", max_tokens=4)
    with (
        backend.stream(model, "Go on", max_tokens=8000) as running,
        backend.stream(model, "Go on", max_tokens=4, request_id="second"),
    ):
        next(running)
        until(lambda: backend.health().full)
        with pytest.raises(QueueFull) as caught:
            backend.generate(model, "Go on", max_tokens=4)
        error = caught.value
        assert error.retry_after is not None and error.expected_wait is not None
        assert 0 <= error.retry_after <= error.expected_wait
        assert "Try again in" in error.hint
        room = backend.health().room
        assert room is not None and room >= 0
