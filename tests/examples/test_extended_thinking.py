"""The incident's chain: its model's answer, or the knowledge that it is not."""

from __future__ import annotations

import signal

import pytest

from mlx_guarded_llm import Backend, taint
from mlx_guarded_llm.errors import FallbackRefused
from tests.conftest import MakeModel

from ._examples import example

RIGHT, WRONG = "The answer is 42.", "The answer is 7."


def test_a_model_that_fails_twice_at_each_step_still_answers(
    backend: Backend, scripted: MakeModel
) -> None:
    results = example("extended_thinking").fails_twice(backend, scripted(RIGHT), scripted(WRONG))
    assert [result.text for result in results] == [RIGHT] * 3
    outcomes = [[attempt.outcome for attempt in result.guard.attempts] for result in results]
    assert outcomes == [["error", "degraded", "ok"]] * 3
    assert not any(taint(results))


@pytest.mark.slow
def test_a_server_that_really_dies_twice_still_answers(
    backend: Backend, scripted: MakeModel, tiny: MakeModel
) -> None:
    extended_thinking = example("extended_thinking")
    # Long enough that the load strikes while it is being said.
    said = "So " + "and so on, " * 60 + "it is 42."
    server = extended_thinking.CrashingServer(
        "big", scripted(said), tiny(architecture="phi3", seed=1)
    )
    llm = extended_thinking.guarded(backend, server, scripted(WRONG))
    result = llm.generate(extended_thinking.QUESTION)
    assert server.codes == [-signal.SIGABRT, -signal.SIGABRT, 0]
    assert result.text == said and result.guard.as_asked


def test_a_model_that_is_gone_is_refused_or_marked(
    backend: Backend, scripted: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    extended_thinking, small = example("extended_thinking"), scripted(WRONG)
    gone = extended_thinking.GONE
    with pytest.raises(FallbackRefused) as caught:
        extended_thinking.extended_thinking(extended_thinking.guarded(backend, gone, small))
    assert caught.value.answer.text == WRONG
    marking = extended_thinking.guarded(backend, gone, small, on_fallback="mark")
    results = extended_thinking.extended_thinking(marking)
    assert [step.own for step in taint(results)] == [("fallback",)] * 3
    assert [step.inherited for step in taint(results)] == [(), (0,), (0, 1)]
    extended_thinking.show(results)
    assert "rests on (0, 1)" in capsys.readouterr().out
