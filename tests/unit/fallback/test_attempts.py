"""The steps of a call, carried out by hand: they wait for nothing and ask nobody."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_guarded_llm import Candidate, Provenance, Result, RetryPolicy
from mlx_guarded_llm.backend.remote import frames
from mlx_guarded_llm.errors import AttemptsExhausted, QueueFull
from mlx_guarded_llm.fallback.attempts import Ask, Attempts, FallbackPolicy, Pause, Take
from mlx_guarded_llm.fallback.candidate import Call
from mlx_guarded_llm.results import Chunk, Usage
from tests.unit.fallback.conftest import dead


class Nobody(Candidate):
    name = "nobody"

    def generate(self, call: Call) -> Result:
        raise AssertionError("the steps ask nobody themselves")


GUARD = Provenance(request_id="r", requested_model="nobody", served_model="nobody")
ANSWER = Result(text="Yes.", usage=Usage(1, 1), guard=GUARD)


def attempts(**retry: Any) -> Attempts:
    policy = FallbackPolicy(
        candidates=(Nobody(),),
        retry=RetryPolicy(initial_wait=3.0, jitter=0.0, **retry),
        on_fallback="raise",
        on_degraded="raise",
        constrain=True,
    )
    return Attempts(Call(prompt="?", request_id="r"), policy, None)


def test_a_remote_backend_says_as_well_when_to_ask_again() -> None:
    full = QueueFull("it is full.")
    full.retry_after = 12.0
    sent = frames.raised(frames.failure(full))
    steps = attempts().steps(None, 0)
    next(steps)
    assert steps.throw(sent) == Pause(12.0)


def test_a_pause_that_would_outlast_the_deadline_is_not_made() -> None:
    full = QueueFull("it is full.")
    full.retry_after = 12.0
    steps = attempts(deadline=8.0).steps(None, 0)
    next(steps)
    with pytest.raises(AttemptsExhausted) as caught:
        steps.throw(full)
    assert caught.value.__cause__ is full


def test_an_error_that_may_pass_gives_a_pause_and_another_attempt() -> None:
    steps = attempts().steps(None, 0)
    first = next(steps)
    assert isinstance(first, Ask) and first.call.request_id == "r"
    assert steps.throw(dead()) == Pause(3.0)
    second = steps.send(None)
    assert isinstance(second, Ask) and second.call.request_id == "r.2"
    result = steps.send(ANSWER)
    assert isinstance(result, Result) and result.text == "Yes."
    assert [attempt.outcome for attempt in result.guard.attempts] == ["error", "ok"]
    assert next(steps, None) is None


def test_it_is_not_asked_before_it_wants_to_be() -> None:
    for wanted, pause in ((1.0, 3.0), (5.0, 5.0), (90.0, 9.0), (None, 3.0)):
        full = QueueFull("full.")
        full.retry_after = wanted
        steps = attempts(max_wait=9.0).steps(None, 0)
        next(steps)
        assert steps.throw(full) == Pause(pause)


def test_pieces_are_passed_on_once_enough_of_them_was_kept() -> None:
    stream = object()
    steps = attempts().steps(lambda candidate, call: stream, 5)
    pieces = [Chunk(text="One "), Chunk(text="two "), Chunk(text="three")]
    last = Chunk(finish_reason="stop", usage=Usage(1, 3), guard=GUARD)
    assert next(steps) == Take(stream)
    assert steps.send(pieces[0]) == Take(stream)
    assert steps.send(pieces[1]) == pieces[0]
    assert next(steps) == pieces[1]
    assert next(steps) == Take(stream)
    assert steps.send(pieces[2]) == pieces[2]
    assert next(steps) == Take(stream)
    end = steps.send(last)
    assert isinstance(end, Chunk) and end.guard is not None and len(end.guard.attempts) == 1
    assert next(steps, None) is None


def test_cancelling_ends_a_pause() -> None:
    woken: list[bool] = []
    call = attempts()
    call.wake = lambda: woken.append(True)
    call.cancel()
    assert woken == [True]
