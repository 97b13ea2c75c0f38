"""What is learnt from the record, and that nothing else is told."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_guarded_llm.record import Event, Kind
from mlx_guarded_llm.record.speeds import Lengths, Speeds


def at(time: float, kind: Kind, model: str = "phi3", *, cause: str = "", **details: Any) -> Event:
    subject = kind.partition(".")[0]
    request = "r1" if subject == "request" else None
    return Event(kind, time, model, request, None if request else "job", cause, (), details)


def learnt(*events: Event) -> Speeds:
    speeds = Speeds()
    for event in events:
        speeds.learn(event)
    return speeds


def answered(time: float, tokens: int, cause: str = "stop", *, request: str = "r1") -> Event:
    details = {"prompt_tokens": 100, "completion_tokens": tokens}
    return Event("request.finished", time, "phi3", request, None, cause, (), details)


def test_nothing_is_known_at_first() -> None:
    speeds = Speeds()
    assert speeds.load("phi3", 10) is None
    assert speeds.unload("phi3") is None
    assert speeds.function("cell") is None
    assert speeds.texts("phi3") is None
    assert speeds.prompt("phi3", 10) is None
    assert speeds.token("phi3") is None
    assert speeds.tokens_left("phi3", 0, 100) is None


def test_jobs() -> None:
    speeds = learnt(
        at(1, "load.finished", seconds=4.0, bytes=1000),
        at(2, "load.finished", seconds=2.0, bytes=1000),
        at(3, "unload.finished", seconds=0.5),
        at(4, "run.finished", "cell", seconds=7.0),
    )
    assert speeds.load("phi3", 1000) == 3.0
    assert speeds.unload("phi3") == 0.5 and speeds.unload("qwen") is None
    assert speeds.function("cell") == 7.0 and speeds.function("other") is None


def test_a_model_that_was_never_loaded_loads_as_fast_as_others() -> None:
    speeds = learnt(
        at(1, "load.finished", seconds=4.0, bytes=1000),
        at(2, "load.finished", "qwen", seconds=2.0, bytes=2000),
    )
    assert speeds.load("llama", 500) == pytest.approx(1.0)
    assert speeds.load("llama", None) is None
    assert speeds.load("phi3", None) == 4.0


def test_an_answer() -> None:
    speeds = learnt(at(0, "request.started"), at(2, "request.first_token"), answered(7, 11))
    assert speeds.prompt("phi3", 50) == 1.0
    assert speeds.token("phi3") == 0.5  # the first of the eleven is the prompt's
    assert speeds.tokens_left("phi3", 0, 100) == 11
    assert speeds.token("qwen") is None


def test_what_runs_is_measured_as_well() -> None:
    speeds = learnt(at(5, "request.started"))
    assert (speeds.reading("r1", 6), speeds.writing("r1", 6)) == (1.0, None)
    speeds.learn(at(7, "request.first_token"))
    assert (speeds.reading("r1", 10), speeds.writing("r1", 10)) == (5.0, 3.0)
    assert (speeds.reading("r2", 10), speeds.writing("r2", 10)) == (0.0, None)


def test_pauses_do_not_count() -> None:
    speeds = learnt(
        at(0, "request.started"),
        at(1, "load.started", "qwen"),
        at(4, "load.finished", "qwen", seconds=3.0),
        at(5, "request.first_token"),
        at(6, "run.started", "cell"),
        Event("load.failed", 7, "llama", None, "another"),
        at(8, "run.failed", "cell"),
        answered(16, 11),
    )
    assert speeds.prompt("phi3", 100) == 2.0
    assert speeds.token("phi3") == 0.9


def test_models_take_turns() -> None:
    other = Event("request.started", 0, "qwen", "r2")
    speeds = learnt(
        other,
        at(0, "request.started"),
        at(4, "request.first_token"),
        Event("request.failed", 10, "qwen", "r2"),
        answered(17, 11),
    )
    assert speeds.prompt("phi3", 100) == 2.0
    assert speeds.token("phi3") == 1.0


def test_of_an_answer_after_a_death_only_the_length_counts() -> None:
    speeds = learnt(
        at(0, "request.started"),
        at(1, "request.first_token"),
        at(2, "engine.died"),
        at(2, "request.interrupted"),
        at(3, "request.started", recovering=1.0),
        answered(9, 11),
    )
    assert speeds.token("phi3") is None
    assert speeds.tokens_left("phi3", 0, 100) == 11


def test_texts() -> None:
    speeds = learnt(at(0, "request.started"), answered(0.25, 0, ""))
    assert speeds.texts("phi3") == 0.25
    assert speeds.tokens_left("phi3", 0, 10) is None


def test_what_fails_teaches_nothing() -> None:
    speeds = learnt(
        at(0, "request.started"), at(1, "request.failed"), at(2, "load.failed", seconds=1.0)
    )
    assert speeds.token("phi3") is None and speeds.load("phi3", 10) is None


# ---- how long answers are ------------------------------------------------------------

ENDS = st.lists(st.tuples(st.integers(1, 300), st.booleans()), min_size=1, max_size=150)


def lengths(*ends: tuple[int, bool]) -> Lengths:
    made = Lengths()
    for tokens, cut in ends:
        made.add(tokens, cut=cut)
    return made


def test_answers_of_one_length() -> None:
    found = lengths((40, False), (40, False))
    assert [found.left(emitted, 100) for emitted in (0, 30, 40)] == [40, 10, 40]
    assert found.left(0, 25) == 25


def test_an_answer_that_was_cut_off_would_have_gone_on() -> None:
    assert lengths((16, True), (16, True)).left(0, 100) == 100
    # Half of them end at ten tokens; of the others nothing is known but that they go on.
    assert lengths((10, False), (16, True)).left(0, 100) == pytest.approx(10 + 90 / 2)


def test_what_has_come_so_far_counts() -> None:
    found = lengths((10, False), (100, False))
    assert found.left(0, 1000) == 55
    assert found.left(10, 1000) == 90


@given(ENDS, st.integers(0, 400), st.integers(1, 400))
def test_it_is_never_negative_and_never_more_than_allowed(
    ends: list[tuple[int, bool]], emitted: int, limit: int
) -> None:
    left = lengths(*ends).left(emitted, limit)
    assert left is not None and math.isfinite(left)
    assert 0 <= left <= max(limit - emitted, 0) + 1e-6


@given(ENDS, st.integers(1, 400), st.integers(0, 400))
def test_a_higher_limit_never_makes_it_shorter(
    ends: list[tuple[int, bool]], limit: int, more: int
) -> None:
    found = lengths(*ends)
    less, greater = found.left(0, limit), found.left(0, limit + more)
    assert less is not None and greater is not None and less <= greater + 1e-9
