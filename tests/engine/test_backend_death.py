"""The worker of a backend dies: what goes on, what is told, and which model is blamed."""

from __future__ import annotations

import os
import signal
from typing import Any

import psutil
import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import EngineDied, ModelQuarantined
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import events, text_of

pytestmark = pytest.mark.slow  # each death is followed by the start of another worker

TOKENS = 120


@pytest.fixture
def isolation() -> str:
    return "process"


@pytest.fixture
def own_worker() -> bool:
    return True


def abort_in_a_step() -> None:
    """For `run`: the next token kills the process."""
    from mlx_guarded_llm.engine.decode.batch import ContinuousBatch

    def abort(*_: object, **__: object) -> None:
        os.abort()

    setattr(ContinuousBatch, "step", abort)  # noqa: B010 - mypy takes no assignment to a method


def test_an_answer_goes_on_behind_its_last_token(backend: Backend, tiny: MakeModel) -> None:
    options: dict[str, Any] = {"max_tokens": TOKENS, "temperature": 0.8, "seed": 5}
    undisturbed = backend.generate(tiny(), "Hello", **options)
    stream = backend.stream(tiny(), "Hello", **options)
    chunks = [next(stream)]
    pid = backend.worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    chunks += stream
    assert text_of(chunks) == undisturbed.text
    assert chunks[-1].usage == undisturbed.usage
    guard = chunks[-1].guard
    assert guard is not None
    assert guard.resumed and guard.recovering > 0
    assert guard.decoding <= guard.decode - guard.recovering
    assert backend.worker_pid not in (None, pid) and not psutil.pid_exists(pid)
    assert "went on in the new engine" in backend.explain(guard.request_id)


def test_a_thinking_budget_goes_on_where_it_was(backend: Backend, tiny: MakeModel) -> None:
    model = tiny(thinking="open")
    options: dict[str, Any] = {"max_tokens": 120, "temperature": 0.8, "seed": 5}
    options["thinking_budget"] = 60
    undisturbed = backend.generate(model, "Hello", **options)
    assert undisturbed.usage.reasoning_tokens == 61
    stream = backend.stream(model, "Hello", **options)
    chunks = [next(stream) for _ in range(3)]
    assert all(chunk.reasoning for chunk in chunks) and backend.worker_pid is not None
    os.kill(backend.worker_pid, signal.SIGKILL)
    chunks += stream
    assert "".join(chunk.reasoning for chunk in chunks) == undisturbed.reasoning
    assert text_of(chunks) == undisturbed.text
    assert chunks[-1].usage == undisturbed.usage
    assert chunks[-1].guard is not None and chunks[-1].guard.resumed


def test_a_users_function_is_not_run_twice(backend: Backend) -> None:
    def leave() -> None:
        os._exit(3)

    with pytest.raises(EngineDied, match="status 3"):
        backend.run(leave)
    (died,) = events(backend, "engine.died")
    assert died.details["work"] == "run"
    assert backend.run(os.getpid) == backend.worker_pid


def test_a_model_that_kills_is_held_until_it_is_forgiven(
    make_backend: MakeBackend, tiny: MakeModel
) -> None:
    backend = make_backend(quarantine_after=1)
    backend.run(abort_in_a_step)
    with pytest.raises(ModelQuarantined, match="SIGABRT while generating") as caught:
        backend.generate(tiny(), "Hello", max_tokens=4)
    assert caught.value.hint == f"backend.forgive({tiny()!r}) lifts it."
    assert backend.generate(tiny(seed=2), "Hello", max_tokens=4).text, "another model goes on"
    assert backend.forgive(tiny())
    assert backend.generate(tiny(), "Hello", max_tokens=4).text
