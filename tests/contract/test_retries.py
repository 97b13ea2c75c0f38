"""The rules of retries and fallbacks, for every face: how often the backend is asked, and what
becomes of answers that are not the one asked for.

They are stated here only. The suites of the libraries test what a library adds to them, and
tests/unit/fallback tests what no library shows.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from mlx_guarded_llm import RetryPolicy, taint
from mlx_guarded_llm.errors import (
    AttemptsExhausted,
    DegradedAnswer,
    EngineDied,
    FallbackRefused,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
)
from mlx_guarded_llm.testing.faulty import CUT_THINKING, EMPTY, LOOP, Broken, Says

from ._each import each_adapter, each_face, each_library, each_stream
from ._faces import Face, Heard, pieces_of

RIGHT, OTHER = "Forty two.", "About forty."
WHOLE: dict[str, Any] = {"hold_back": math.inf}  # so that streams can be retried to their end


def backend(*faults: Any, small: Any = ()) -> Heard:
    answers = {"big": RIGHT, "small": OTHER}
    return Heard(faults={"big": faults, "small": small}, answers=answers)


def died() -> EngineDied:
    return EngineDied("it aborted.")


def gone() -> ModelNotFound:
    return ModelNotFound("there is no big.")


# ---- attempts -------------------------------------------------------------------------


@each_face
@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (died(), "error"),
        (QueueFull("full."), "error"),
        (EMPTY, "degraded"),
        (LOOP, "degraded"),
        (CUT_THINKING, "degraded"),
    ],
)
async def test_what_may_pass_is_asked_again(face: Face, fault: Any, outcome: str) -> None:
    faulty = backend(fault, fault)
    answer = await face.ask(face.make(faulty, "big", **WHOLE), "6 * 7?")
    assert answer.text == RIGHT and answer.guard.as_asked
    assert [attempt.outcome for attempt in answer.guard.attempts] == [outcome, outcome, "ok"]
    assert len(faulty.calls) == 3


@each_face
async def test_attempts_end_and_the_error_tells_them_all(face: Face) -> None:
    faulty = backend(*[died()] * 9)
    with pytest.raises(AttemptsExhausted) as caught:
        await face.ask(face.make(faulty, "big"), "6 * 7?")
    assert len(faulty.calls) == 3
    assert isinstance(caught.value.__cause__, EngineDied) and not caught.value.retryable
    assert caught.value.guard is not None and caught.value.guard.served_model == ""
    assert [attempt.outcome for attempt in caught.value.guard.attempts] == ["error"] * 3


@each_face
async def test_a_single_attempt_gives_its_error_as_it_is(face: Face) -> None:
    faulty = backend(died())
    with pytest.raises(EngineDied) as caught:
        await face.ask(face.make(faulty, "big", retry=RetryPolicy(attempts=1)), "6 * 7?")
    assert caught.value.retryable and caught.value.guard is not None
    assert len(faulty.calls) == 1


@each_adapter
@pytest.mark.parametrize("retries", [0, 1, 4])
async def test_max_retries_counts_what_comes_after_the_first(face: Face, retries: int) -> None:
    faulty = backend(*[EMPTY] * 9)
    llm = face.make(faulty, "big", retry=None, max_retries=retries, **WHOLE)
    with pytest.raises(DegradedAnswer):
        await face.ask(llm, "6 * 7?")
    assert len(faulty.calls) == retries + 1


@each_face
async def test_what_no_retry_mends_is_asked_once(face: Face) -> None:
    faulty = backend(*[gone()] * 9)
    with pytest.raises(ModelNotFound, match="there is no big") as caught:
        await face.ask(face.make(faulty, "big"), "6 * 7?")
    assert caught.value.guard is not None
    assert len(faulty.calls) == 1


@each_face
@pytest.mark.parametrize("fault", [died(), EMPTY])
async def test_a_retry_of_the_framework_does_not_multiply_attempts(face: Face, fault: Any) -> None:
    faulty = backend(*[fault] * 99)
    with pytest.raises((AttemptsExhausted, DegradedAnswer)):
        await face.ask_with_retry(face.make(faulty, "big"), "6 * 7?")
    assert len(faulty.calls) == 3  # not 15


@each_face
async def test_an_answer_that_the_caller_refuses_is_asked_for_again(face: Face) -> None:
    faulty = backend(Says("No idea."))
    llm = face.make(faulty, "big", accept=lambda result: "two" in result.text, **WHOLE)
    answer = await face.ask(llm, "6 * 7?")
    assert answer.text == RIGHT
    assert [attempt.reasons for attempt in answer.guard.attempts] == [("refused",), ()]


@each_face
async def test_a_check_may_be_given_with_a_call(face: Face) -> None:
    llm = face.make(backend(), "big", **WHOLE)
    with pytest.raises(DegradedAnswer) as caught:
        await face.ask(llm, "6 * 7?", accept=lambda result: False)
    assert caught.value.reasons == ("refused",)


@each_stream
async def test_a_stream_that_broke_is_not_gone_on_with(face: Face) -> None:
    faulty = backend(Broken(died(), pieces=2))
    llm = face.make(faulty, "big", fallbacks=["small"], on_fallback="mark")
    stream, passed_on = await face.open(llm, "6 * 7?"), 0

    async def read() -> None:
        nonlocal passed_on
        async for _ in pieces_of(stream):
            passed_on += 1

    with pytest.raises(AttemptsExhausted, match="broke off"):
        await read()
    assert passed_on == 2 and len(faulty.calls) == 1


@each_stream
async def test_a_stream_that_broke_before_it_was_passed_on_is_asked_for_again(face: Face) -> None:
    faulty = backend(Broken(died(), pieces=2))
    answer = await face.ask(face.make(faulty, "big", **WHOLE), "6 * 7?")
    assert answer.text == RIGHT and len(faulty.calls) == 2


@each_stream
async def test_a_stream_that_ends_degraded_says_so(face: Face) -> None:
    with pytest.raises(DegradedAnswer) as caught:
        await face.ask(face.make(backend(LOOP), "big"), "6 * 7?")
    assert caught.value.reasons == ("loop",)


# ---- fallbacks ------------------------------------------------------------------------


@each_face
async def test_a_fallbacks_answer_is_refused_and_carried(face: Face) -> None:
    llm = face.make(backend(*[died()] * 9), "big", fallbacks=["small"])
    with pytest.raises(FallbackRefused) as caught:
        await face.ask(llm, "6 * 7?")
    answer = caught.value.answer
    assert answer.text == OTHER
    assert (answer.guard.requested_model, answer.guard.served_model) == ("big", "small")
    assert answer.guard.fallback and len(answer.guard.attempts) == 4


@each_face
async def test_a_fallbacks_answer_is_marked_where_that_is_asked_for(face: Face) -> None:
    llm = face.make(backend(gone()), "big", fallbacks=["small"], on_fallback="mark")
    answer = await face.ask(llm, "6 * 7?")
    assert (answer.text, answer.model) == (OTHER, "small")
    assert answer.guard.fallback and not answer.guard.as_asked
    assert (answer.guard.requested_model, answer.guard.served_model) == ("big", "small")


@each_face
async def test_when_fallbacks_fail_too_the_error_tells_of_every_attempt(face: Face) -> None:
    faulty = backend(*[died()] * 3, small=[QueueFull("full.")] * 3)
    with pytest.raises(AttemptsExhausted) as caught:
        await face.ask(face.make(faulty, "big", fallbacks=["small"]), "6 * 7?")
    assert caught.value.guard is not None
    models = [attempt.model for attempt in caught.value.guard.attempts]
    assert models == [model for model, _ in faulty.calls] == ["big"] * 3 + ["small"] * 3


@each_face
async def test_a_held_fallback_gives_way_to_the_answer_asked_for(face: Face) -> None:
    llm = face.make(backend(*[died()] * 4), "big", fallbacks=["small"], on_fallback="hold")
    answer = await face.ask(llm, "6 * 7?")
    assert answer.text == RIGHT and answer.guard.as_asked
    assert "small" in [attempt.model for attempt in answer.guard.attempts]


@each_face
async def test_a_held_fallback_is_marked_when_nothing_better_came(face: Face) -> None:
    llm = face.make(backend(gone()), "big", fallbacks=["small"], on_fallback="hold")
    answer = await face.ask(llm, "6 * 7?")
    assert answer.text == OTHER and answer.guard.fallback


@each_face
@pytest.mark.parametrize("on_fallback", ["raise", "mark", "hold"])
async def test_a_model_of_the_framework_is_a_fallback_like_any_other(
    face: Face, on_fallback: Any
) -> None:
    fallbacks = [face.external(OTHER)]
    llm = face.make(backend(gone()), "big", fallbacks=fallbacks, on_fallback=on_fallback)
    if on_fallback == "raise":
        with pytest.raises(FallbackRefused) as caught:
            await face.ask(llm, "6 * 7?")
        assert caught.value.answer.text == OTHER and caught.value.answer.guard.fallback
    else:
        answer = await face.ask(llm, "6 * 7?")
        assert answer.text == OTHER
        assert answer.guard.fallback and answer.guard.requested_model == "big"
        assert answer.model == answer.guard.served_model != "big"


@each_face
async def test_a_wrong_call_is_not_passed_to_a_fallback(face: Face) -> None:
    faulty = backend(InvalidRequest("temperature is -1."))
    with pytest.raises(InvalidRequest):
        await face.ask(face.make(faulty, "big", fallbacks=["small"], on_fallback="mark"), "?")
    assert [model for model, _ in faulty.calls] == ["big"]


# ---- degraded answers -------------------------------------------------------------------


@each_face
@pytest.mark.parametrize(
    ("fault", "reason"), [(EMPTY, "empty"), (LOOP, "loop"), (CUT_THINKING, "thinking")]
)
async def test_a_degraded_answer_is_refused_or_marked(face: Face, fault: Says, reason: str) -> None:
    with pytest.raises(DegradedAnswer) as caught:
        await face.ask(face.make(backend(*[fault] * 9), "big", **WHOLE), "6 * 7?")
    assert caught.value.reasons == (reason,)
    llm = face.make(backend(*[fault] * 9), "big", on_degraded="mark", **WHOLE)
    answer = await face.ask(llm, "6 * 7?")
    assert answer.guard.degraded == (reason,) and not answer.guard.as_asked


@each_library
async def test_a_degraded_answer_is_no_reason_to_keep_a_fallback_silent(face: Face) -> None:
    llm = face.make(backend(*[EMPTY] * 9), "big", fallbacks=["small"], on_degraded="mark")
    with pytest.raises(FallbackRefused):
        await face.ask(llm, "6 * 7?")


@each_face
async def test_a_marked_answer_taints_what_is_built_on_it(face: Face) -> None:
    llm = face.make(backend(gone()), "big", fallbacks=["small"], on_fallback="mark")
    turns: list[Any] = [{"role": "user", "content": "6 * 7?"}]
    first = await face.ask(llm, turns)
    second = await face.ask(llm, [*turns, first.native, {"role": "user", "content": "Sure?"}])
    assert (first.text, second.text) == (OTHER, RIGHT)
    steps = taint([first.whole, second.whole])
    assert [(step.own, step.inherited) for step in steps] == [(("fallback",), ()), ((), (0,))]
