"""What no library shows of retries: ids, changed options, limits of time, cancelling.

The rules that every face shows are in tests/contract/test_retries.py.
"""

from __future__ import annotations

import asyncio
import math
import pickle
import threading
from typing import Any

import pytest

from mlx_guarded_llm import Candidate, GuardedLLM, Result, RetryPolicy, taint
from mlx_guarded_llm.errors import (
    AttemptsExhausted,
    DeadlineExceeded,
    DegradedAnswer,
    FallbackRefused,
    GuardedLLMError,
    InvalidRequest,
    RequestCancelled,
    RequestTimeout,
)
from mlx_guarded_llm.fallback import Call
from mlx_guarded_llm.testing.faulty import CUT_THINKING, EMPTY, LOOP, FaultyBackend, Says
from tests.engine._backend import wait_until
from tests.unit.fallback.conftest import SOON, Ask, dead, deferred, guarded


def test_an_answer_comes_as_it_is(ask: Ask) -> None:
    llm, backend = guarded({})
    result = ask(llm, "6 * 7?", temperature=0.5, seed=None)
    assert result.text == "Forty two."
    assert result.guard.as_asked
    assert [a.outcome for a in result.guard.attempts] == ["ok"]
    assert backend.calls == [("big", {"temperature": 0.5})]


def test_each_attempt_has_an_id_and_its_error(ask: Ask) -> None:
    llm, _ = guarded({"big": [deferred(), dead()]})
    attempts = ask(llm, "6 * 7?", request_id="mine").guard.attempts
    assert "LoadDeferredTimeout" in attempts[0].error
    assert [a.request_id for a in attempts] == ["mine", "mine.2", "mine.3"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (EMPTY, "empty"),
        (CUT_THINKING, "thinking"),
        (LOOP, "loop"),
        (Says("x", "", "length"), "length"),
    ],
)
def test_a_degraded_answer_is_asked_for_again_with_something_changed(
    ask: Ask, fault: Any, reason: str
) -> None:
    llm, backend = guarded({"big": [fault]})
    result = ask(llm, "6 * 7?")
    assert result.text == "Forty two."
    assert result.guard.as_asked
    assert result.guard.attempts[0].reasons == (reason,)
    assert result.guard.attempts[1].changed
    assert backend.calls[0][1] != backend.calls[1][1]


def test_the_best_degraded_answer_is_carried(ask: Ask) -> None:
    faults = [EMPTY, Says("Forty", "", "length"), LOOP]
    llm, _ = guarded({"big": faults, "small": [EMPTY] * 3})
    with pytest.raises(DegradedAnswer) as caught:
        ask(llm, "6 * 7?")
    assert caught.value.answer.text == "Forty"
    assert "it begins 'Forty'" in str(caught.value)
    assert caught.value.reasons == ("length",)
    assert not caught.value.retryable


def test_a_cut_by_a_limit_of_the_callers_own_is_told_and_no_taint(ask: Ask) -> None:
    llm, backend = guarded({"big": [Says("Forty", "", "length")]})
    result = ask(llm, "6 * 7?", max_tokens=1)
    assert result.text == "Forty"
    assert result.finish_reason == "length" and result.guard.capped
    assert result.guard.as_asked and result.guard.attempts[0].outcome == "ok"
    assert not any(taint([result]))
    assert len(backend.calls) == 1


def test_a_cap_lets_a_limit_grow(ask: Ask) -> None:
    policy = RetryPolicy(max_tokens_cap=3, initial_wait=0)
    llm, backend = guarded({"big": [Says("Forty", "", "length")] * 2}, retry=policy)
    assert ask(llm, "6 * 7?", max_tokens=1).guard.as_asked
    assert [options["max_tokens"] for _, options in backend.calls] == [1, 2, 3]


def test_accept_refuses_until_it_is_pleased(ask: Ask) -> None:
    llm, backend = guarded({"big": [Says("Lyon"), Says("Lille")]})
    result = ask(llm, "?", accept=lambda r: "two" in r.text)
    assert result.text == "Forty two."
    assert [a.reasons for a in result.guard.attempts] == [("refused",), ("refused",), ()]
    seeds = [options.get("seed") for _, options in backend.calls]
    assert len(set(seeds)) == 3


def test_what_accept_raises_passes_through(ask: Ask) -> None:
    llm, _ = guarded({})
    with pytest.raises(ZeroDivisionError):
        ask(llm, "?", accept=lambda r: 1 / 0)


def test_a_schema_is_let_go_first_and_held_after_a_mismatch(ask: Ask) -> None:
    schema = {"type": "array"}
    llm, backend = guarded({"big": [Says("Sure!"), Says("[1]")]}, constrain=False)
    assert ask(llm, "?", schema=schema).text == "[1]"
    assert [options.get("schema") for _, options in backend.calls] == [None, schema]


def test_a_schema_is_held_from_the_start(ask: Ask) -> None:
    llm, backend = guarded({"big": [Says("[1]")]})
    assert ask(llm, "?", schema={"type": "array"}).guard.as_asked
    assert backend.calls[0][1]["schema"] == {"type": "array"}


def test_one_deadline_covers_attempts_and_pauses(ask: Ask) -> None:
    policy = RetryPolicy(attempts=50, initial_wait=0.05, jitter=0, deadline=0.2)
    llm, backend = guarded({"big": [dead()] * 50}, retry=policy)
    with pytest.raises(GuardedLLMError) as caught:
        ask(llm, "?")
    assert isinstance(caught.value, AttemptsExhausted | FallbackRefused)
    assert len(backend.calls) < 10


def test_a_deadline_that_passed_is_a_timeout(ask: Ask) -> None:
    llm, _ = guarded({"big": [RequestTimeout("too late.")] * 3, "small": [dead()] * 3})
    with pytest.raises(DeadlineExceeded) as caught:
        ask(llm, "?", timeout=0)
    assert isinstance(caught.value, TimeoutError)
    assert not caught.value.retryable
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, DeadlineExceeded) and again.guard == caught.value.guard


def test_an_attempt_has_its_own_limit() -> None:
    policy = RetryPolicy(attempt_timeout=2.5, initial_wait=0, deadline=100)
    seen: list[float] = []

    class Slow(Candidate):
        name = "slow"

        def generate(self, call: Call) -> Result:
            seen.append(call.timeout)
            raise RequestTimeout("slow.")

    with pytest.raises(AttemptsExhausted):
        GuardedLLM(None, Slow(), retry=policy).generate("?")
    assert seen == [2.5] * 3


def test_errors_of_another_library_are_retried_by_their_own_word(ask: Ask) -> None:
    class RateLimit(Exception):
        is_retryable = True

    class Cloud(Candidate):
        name = "cloud"
        calls = 0

        def generate(self, call: Call) -> Result:
            Cloud.calls += 1
            raise RateLimit("slow down")

    with pytest.raises(AttemptsExhausted) as caught:
        ask(GuardedLLM(None, Cloud(), retry=SOON), "?")
    assert Cloud.calls == 3
    assert isinstance(caught.value.__cause__, RateLimit)


def test_one_object_serves_many_threads() -> None:
    llm, backend = guarded({"big": [dead()] * 8})
    texts: list[str] = []

    def run() -> None:
        try:
            texts.append(llm.generate("?").text)
        except FallbackRefused as error:
            texts.append(error.answer.text)

    threads = [threading.Thread(target=run) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(texts) == 16
    assert len(backend.calls) >= 24 or "About forty." in texts


# ---- cancelling ----------------------------------------------------------------------


def test_cancelling_ends_a_pause_at_once() -> None:
    policy = RetryPolicy(initial_wait=3600, max_wait=3600, deadline=7200)
    llm, backend = guarded({"big": [dead()] * 3}, retry=policy)
    done = threading.Event()
    caught: list[BaseException] = []

    def run() -> None:
        try:
            llm.generate("?", request_id="mine")
        except GuardedLLMError as error:
            caught.append(error)
        done.set()

    threading.Thread(target=run, daemon=True).start()
    while not done.wait(0.01):
        if backend.calls:
            llm.cancel("mine")
    assert isinstance(caught[0], RequestCancelled)
    assert len(backend.calls) == 1
    llm.cancel("mine")  # it has ended


async def test_cancelling_an_async_call_ends_its_pause() -> None:
    policy = RetryPolicy(initial_wait=3600, max_wait=3600, deadline=7200)
    llm, backend = guarded({"big": [dead()] * 3}, retry=policy)
    task = asyncio.create_task(llm.agenerate("?", request_id="mine"))
    await asyncio.to_thread(wait_until, lambda: backend.calls)
    llm.cancel("mine")
    with pytest.raises(RequestCancelled):
        await task


async def test_a_cancelled_task_makes_no_further_attempt() -> None:
    policy = RetryPolicy(initial_wait=3600, max_wait=3600, deadline=7200)
    llm, backend = guarded({"big": [dead()] * 3}, retry=policy)
    task = asyncio.create_task(llm.agenerate("?"))
    await asyncio.to_thread(wait_until, lambda: backend.calls)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(backend.calls) == 1


# ---- bad arguments -------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"on_fallback": "ignore"},
        {"on_degraded": "hide"},
        {"accept": 3},
        {"hold_back": -1},
        {"hold_back": True},
        {"fallbacks": "small"},
        {"fallbacks": [""]},
        {"temprature": 1},
    ],
)
def test_wrong_arguments_are_told_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        GuardedLLM(FaultyBackend(), "big", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"attempts": 1.5},
        {"deadline": -1},
        {"deadline": math.nan},
        {"initial_wait": "1"},
        {"max_tokens_cap": 0},
    ],
)
def test_a_policy_checks_its_values(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        RetryPolicy(**options)


def test_an_unknown_option_of_a_call_is_refused(ask: Ask) -> None:
    llm, backend = guarded({})
    with pytest.raises(InvalidRequest, match="temprature"):
        ask(llm, "?", temprature=1)
    assert backend.calls == []
