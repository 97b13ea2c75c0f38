"""The planner's model is loaded while the worker is at work, and nothing overlaps."""

from __future__ import annotations

import pytest

from mlx_guarded_llm import GuardedLLM
from mlx_guarded_llm.record import overlaps
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import events

from ._examples import example

NOTES = "Take water, and a coat. " * 12


async def test_the_worker_waits_and_loses_nothing(
    make_backend: MakeBackend, scripted: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    two_models = example("two_models")
    backend = make_backend(load_wait=0.01, fairness_window=0.01)
    plan, worker = scripted("First pack. Then walk."), scripted(NOTES)
    answers = await two_models.write(GuardedLLM(backend, plan), GuardedLLM(backend, worker))
    assert [answer.text for answer in answers] == [NOTES, "First pack. Then walk.", NOTES]
    assert all(answer.guard.as_asked for answer in answers)
    notes, planned, _ = answers
    (paused,) = events(backend, "request.paused")
    assert paused.request_id == notes.guard.request_id
    assert notes.guard.paused > 0
    (deferred,) = events(backend, "load.deferred", model=plan)
    assert (notes.guard.request_id, worker) in deferred.waiting_for
    assert overlaps(backend.timeline()) == []
    two_models.show(backend, answers)
    shown = capsys.readouterr().out
    assert f"Request {planned.guard.request_id} asked for {plan}" in shown
    assert "paused at a token boundary" in shown
