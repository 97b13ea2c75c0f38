"""Another model answers: refused, marked or held. In all four ways of asking."""

from __future__ import annotations

import pytest

from mlx_guarded_llm import Candidate, Result, RetryPolicy
from mlx_guarded_llm.errors import (
    AttemptsExhausted,
    DegradedAnswer,
    EngineDied,
    FallbackRefused,
    ModelNotFound,
)
from mlx_guarded_llm.fallback import Call
from mlx_guarded_llm.testing.faulty import LOOP, FaultyBackend
from tests.unit.fallback.conftest import Ask, dead, guarded


def test_a_fallback_is_refused_and_carried(ask: Ask) -> None:
    llm, backend = guarded({"big": [dead()] * 3})
    with pytest.raises(FallbackRefused, match="big gave no full answer") as caught:
        ask(llm, "6 * 7?")
    error = caught.value
    assert error.answer.text == "About forty."
    assert error.answer.guard.fallback
    assert error.answer.guard.requested_model == "big"
    assert error.answer.guard.served_model == "small"
    assert [a.model for a in error.guard.attempts] == ["big"] * 3 + ["small"]  # type: ignore[union-attr]
    assert isinstance(error.__cause__, EngineDied)
    assert not error.retryable
    assert [model for model, _ in backend.calls] == ["big"] * 3 + ["small"]


def test_a_fallback_is_marked(ask: Ask) -> None:
    llm, _ = guarded({"big": [dead()] * 3}, on_fallback="mark")
    result = ask(llm, "6 * 7?")
    assert result.text == "About forty."
    assert result.guard.fallback
    assert not result.guard.as_asked
    assert len(result.guard.attempts) == 4


def test_a_fallback_is_not_asked_with_ids_of_another_tokenizer(ask: Ask) -> None:
    llm, backend = guarded({"big": [dead()] * 3}, on_fallback="mark")
    with pytest.raises(AttemptsExhausted):
        ask(llm, [1, 2, 3], raw=True)
    assert [model for model, _ in backend.calls] == ["big"] * 3


def test_a_fallback_is_held_until_the_model_answers(ask: Ask) -> None:
    llm, backend = guarded({"big": [dead()] * 5}, on_fallback="hold")
    result = ask(llm, "6 * 7?")
    assert result.text == "Forty two."
    assert result.guard.as_asked
    models = [a.model for a in result.guard.attempts]
    assert models == ["big"] * 3 + ["small"] + ["big"] * 3
    assert len(backend.calls) == 7


def test_a_held_fallback_is_returned_marked_at_the_deadline(ask: Ask) -> None:
    policy = RetryPolicy(attempts=2, initial_wait=0.02, jitter=0, deadline=2)
    llm, _ = guarded({"big": [dead()] * 1000}, on_fallback="hold", retry=policy)
    result = ask(llm, "6 * 7?")
    assert result.text == "About forty."
    assert result.guard.fallback
    assert result.guard.attempts[-1].model == "big"


def test_a_model_that_cannot_come_back_is_not_waited_for(ask: Ask) -> None:
    gone = ModelNotFound("there is none.")
    llm, backend = guarded({"big": [gone] * 9}, on_fallback="hold")
    assert ask(llm, "6 * 7?").guard.fallback
    assert [model for model, _ in backend.calls] == ["big", "small"]


def test_a_degraded_answer_of_a_fallback_is_no_answer_either(ask: Ask) -> None:
    llm, _ = guarded({"big": [dead()] * 3, "small": [LOOP] * 3}, on_fallback="mark")
    with pytest.raises(DegradedAnswer):
        ask(llm, "6 * 7?")


def test_another_kind_of_model_can_answer(ask: Ask) -> None:
    backend = FaultyBackend(answers={"cloud": "From afar."})

    class Cloud(Candidate):
        name = "cloud"

        def generate(self, call: Call) -> Result:
            return backend.generate("cloud", call.prompt, request_id=call.request_id)

    llm, _ = guarded({"big": [dead()] * 3}, fallbacks=[Cloud()], on_fallback="mark")
    result = ask(llm, "?")
    assert result.text == "From afar."
    assert result.guard.fallback and result.guard.served_model == "cloud"
