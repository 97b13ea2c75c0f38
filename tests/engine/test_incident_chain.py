"""The incident's chain of thought: its model fails, and the answer is still its own.

Three calls build on each other (plan, think, answer). The model that was asked for
knows the answer, the fallback model gives a wrong one, and nothing may confuse them.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import (
    Candidate,
    GuardedLLM,
    Provenance,
    Result,
    RetryPolicy,
    taint,
)
from mlx_guarded_llm.errors import (
    EngineDied,
    FallbackRefused,
    GuardedLLMError,
)
from mlx_guarded_llm.fallback import Call
from mlx_guarded_llm.testing.faulty import FaultyBackend, Says
from tests._incident import RIGHT, STEPS, WRONG, faults
from tests.conftest import MakeBackend, MakeModel

SOON = RetryPolicy(attempts=3, initial_wait=0, jitter=0)


@pytest.fixture
def isolation() -> str:
    """What fails here fails above the backend; `tests/contract` has the same on a thread."""
    return "process"


def extended_thinking(llm: GuardedLLM) -> list[Result]:
    """Each step sees what the steps before it said."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is 6 times 7?"}]
    results: list[Result] = []
    for step in STEPS:
        messages.append({"role": "user", "content": step})
        results.append(llm.generate(messages))
        messages.append({"role": "assistant", "content": results[-1].text})
    return results


def fault(rng: random.Random) -> Any:
    return rng.choice(faults())


@pytest.mark.parametrize("on_fallback", ["raise", "mark", "hold"])
def test_under_100_schedules_of_two_failures_the_answer_is_right(
    make_backend: MakeBackend, scripted: MakeModel, on_fallback: Any
) -> None:
    big, small = scripted(RIGHT), scripted(WRONG)
    backend = make_backend()
    failures = 0
    for seed in range(100):
        rng = random.Random(seed)
        planned: list[Any] = []
        for _ in STEPS:
            planned += [fault(rng) for _ in range(rng.randint(0, 2))]
            planned.append(Says(RIGHT))
        failures += len(planned) - len(STEPS)
        faulty: Any = FaultyBackend(backend, {big: planned[:-1]})  # the last one is real
        llm = GuardedLLM(faulty, big, fallbacks=[small], retry=SOON, on_fallback=on_fallback)
        results = extended_thinking(llm)
        assert [result.text for result in results] == [RIGHT] * 3
        assert all(result.guard.as_asked for result in results)
        assert not any(taint(results))
    assert failures > 200


def test_under_100_hard_schedules_no_fallback_is_silent(
    make_backend: MakeBackend, scripted: MakeModel
) -> None:
    big, small = scripted(RIGHT), scripted(WRONG)
    backend = make_backend()
    ends = dict.fromkeys(("raise", "mark", "hold"), 0)
    for seed in range(100):
        rng = random.Random(seed)
        # Up to six failures in a row: more than the attempts of one step can mend.
        planned = [fault(rng) if rng.random() < 0.7 else Says(RIGHT) for _ in range(6)]
        for on_fallback in ends:
            faulty: Any = FaultyBackend(backend, {big: planned})
            options: Any = {"fallbacks": [small], "retry": SOON, "on_fallback": on_fallback}
            spoiled = _spoiled(GuardedLLM(faulty, big, **options))
            ends[on_fallback] += spoiled
    assert ends["raise"] == ends["mark"] >= 20
    assert ends["hold"] == 0


def _spoiled(llm: GuardedLLM) -> bool:
    """Whether a chain could not use its model's answers; that it said so is checked."""
    try:
        results = extended_thinking(llm)
    except FallbackRefused as refused:
        error = refused
    else:
        spots = taint(results)
        for result, spot in zip(results, spots, strict=True):
            assert result.guard.as_asked == (result.text == RIGHT)
            assert ("fallback" in spot.own) == (result.text == WRONG)
        return any(spots)
    assert error.answer.text == WRONG
    assert error.answer.guard.fallback
    return True


@pytest.mark.parametrize("on_fallback", ["raise", "mark"])
def test_with_the_model_gone_for_good_the_chain_knows(
    make_backend: MakeBackend, scripted: MakeModel, on_fallback: Any
) -> None:
    gone, small = "/no/such/model", scripted(WRONG)
    llm = GuardedLLM(make_backend(), gone, fallbacks=[small], retry=SOON, on_fallback=on_fallback)
    if on_fallback == "raise":
        with pytest.raises(FallbackRefused) as caught:
            extended_thinking(llm)
        assert caught.value.answer.text == WRONG
    else:
        assert all(taint(extended_thinking(llm)))


class NaiveServer(Candidate):
    """The incident's server, which really dies: a load beside a generation, twice."""

    def __init__(self, model: str, other: str, *, deaths: int) -> None:
        self.name = model
        self._other = other
        self._deaths = deaths
        self.codes: list[int] = []

    def generate(self, call: Call) -> Result:
        serial = [] if len(self.codes) < self._deaths else ["--serial"]
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "mlx_guarded_llm.testing.naive", self.name, self._other),
                *("--at", "2", *serial),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
            cwd=Path(__file__).parents[2],
        )
        self.codes.append(ended.returncode)
        if ended.returncode:
            raise EngineDied(f"the server died with {ended.returncode}.")
        guard = Provenance(
            request_id=call.request_id, requested_model=self.name, served_model=self.name
        )
        return Result(text=ended.stdout.strip(), guard=guard)


def test_a_server_that_aborts_twice_still_gives_the_answer(
    make_backend: MakeBackend, scripted: MakeModel, tiny: MakeModel
) -> None:
    # Long enough that the load strikes while it is being said.
    said = "So " + "and so on, " * 60 + "it is 42."
    server = NaiveServer(scripted(said), tiny(architecture="phi3", seed=1), deaths=2)
    small = scripted(WRONG)
    llm = GuardedLLM(make_backend(), server, fallbacks=[small], retry=SOON)
    result = llm.generate("What is 6 times 7?")
    assert server.codes == [-signal.SIGABRT, -signal.SIGABRT, 0]
    assert result.text == said
    assert result.guard.as_asked
    assert [attempt.outcome for attempt in result.guard.attempts] == ["error", "error", "ok"]


def test_a_failure_that_is_a_bug_passes_through(
    make_backend: MakeBackend, scripted: MakeModel
) -> None:
    small = scripted(WRONG)
    faulty: Any = FaultyBackend(make_backend(), {"big": [TypeError("a bug")]})
    with pytest.raises(TypeError, match="a bug") as caught:
        GuardedLLM(faulty, "big", fallbacks=[small]).generate("?")
    assert not isinstance(caught.value, GuardedLLMError)
