"""The incident's chain of thought through every face: it is never wrong in silence.

Three calls build on each other. The model that was asked for knows the answer, the
fallback gives a wrong one, and what fails, and when, is drawn at random.
"""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from mlx_guarded_llm.errors import (
    AnswerRefused,
    AttemptsExhausted,
    EngineDied,
    FallbackRefused,
    GuardedLLMError,
)
from mlx_guarded_llm.testing.faulty import Broken, Says
from tests._incident import RIGHT, STEPS, WRONG, faults
from tests.conftest import MakeBackend, MakeModel

from ._each import LIBRARIES
from ._faces import WAYS, Answer, Face, Heard

SCHEDULES = 100

each_kind = pytest.mark.parametrize("kind", LIBRARIES, ids=lambda kind: kind.library)


async def extended_thinking(face: Face, llm: Any) -> list[Answer]:
    """Each step sees what the steps before it said."""
    messages: list[Any] = [{"role": "user", "content": "What is 6 times 7?"}]
    answers: list[Answer] = []
    for step in STEPS:
        messages.append({"role": "user", "content": step})
        answers.append(await face.ask(llm, messages))
        messages.append(answers[-1].native)
    return answers


def fault(rng: random.Random) -> Any:
    return rng.choice([*faults(), Broken(EngineDied("it died half-way."), pieces=2)])


@each_kind
async def test_under_schedules_of_two_failures_the_answer_is_right(
    kind: type[Face], make_backend: MakeBackend, scripted: MakeModel
) -> None:
    big, small = scripted(RIGHT), scripted(WRONG)
    backend = make_backend()
    failures = 0
    for seed in range(SCHEDULES):
        rng = random.Random(seed)
        face = kind(WAYS[seed % len(WAYS)])
        planned: list[Any] = []
        for _ in STEPS:
            planned += [fault(rng) for _ in range(rng.randint(0, 2))]
            planned.append(Says(RIGHT))
        failures += len(planned) - len(STEPS)
        heard = Heard(backend, {big: planned[:-1]})  # the last answer is a real one
        on_fallback = rng.choice(["raise", "mark", "hold"])
        llm = face.make(heard, big, fallbacks=[small], on_fallback=on_fallback, hold_back=math.inf)
        answers = await extended_thinking(face, llm)
        assert [answer.text for answer in answers] == [RIGHT] * 3
        assert all(answer.guard.as_asked for answer in answers)
        assert WRONG not in str(heard.prompts)
    assert failures > 200


@each_kind
@pytest.mark.parametrize("hold_back", [0, math.inf])
async def test_under_hard_schedules_nothing_is_wrong_in_silence(
    kind: type[Face], hold_back: float
) -> None:
    ends = dict.fromkeys(("right", "marked", "error"), 0)
    for seed in range(SCHEDULES):
        rng = random.Random(seed)
        face = kind(WAYS[seed % len(WAYS)])
        planned = [fault(rng) if rng.random() < 0.7 else Says(RIGHT) for _ in range(9)]
        heard = Heard(faults={"big": planned}, answers={"big": RIGHT, "small": WRONG})
        llm = face.make(
            heard,
            "big",
            fallbacks=["small"],
            on_fallback=rng.choice(["raise", "mark", "hold"]),
            on_degraded=rng.choice(["raise", "mark"]),
            hold_back=hold_back,
        )
        ends[await ending(face, llm)] += 1
    assert all(count >= 5 for count in ends.values()), ends


async def ending(face: Face, llm: Any) -> str:
    """How a chain ended; that what is not right says so is checked."""
    try:
        answers = await extended_thinking(face, llm)
    except (AnswerRefused, AttemptsExhausted) as caught:
        error = caught
    else:
        for answer in answers:
            assert answer.guard.as_asked == (answer.text == RIGHT)
            assert answer.guard.fallback == (answer.text == WRONG)
        return "right" if all(answer.guard.as_asked for answer in answers) else "marked"
    assert error.guard is not None
    assert error.guard.attempts and not (isinstance(error, AnswerRefused) and error.guard.as_asked)
    return "error"


@each_kind
@pytest.mark.parametrize("way", WAYS)
async def test_with_the_model_gone_for_good_the_chain_knows(
    kind: type[Face], way: Any, make_backend: MakeBackend, scripted: MakeModel
) -> None:
    face, small = kind(way), scripted(WRONG)
    backend = make_backend()
    with pytest.raises(FallbackRefused) as caught:
        await extended_thinking(face, face.make(backend, "/gone", fallbacks=[small]))
    assert caught.value.answer.text == WRONG
    assert isinstance(caught.value, GuardedLLMError)
    marking = face.make(backend, "/gone", fallbacks=[small], on_fallback="mark")
    answers = await extended_thinking(face, marking)
    assert [answer.text for answer in answers] == [WRONG] * 3
    assert all(answer.guard.fallback and answer.model == small for answer in answers)
