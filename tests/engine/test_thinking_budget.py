"""`thinking_budget`: the thinking ends, and the answer follows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mlx_guarded_llm import Backend
from tests.conftest import MakeModel

THOUGHT = "First this, then that, and so on for ever."
ANSWER = '{"city": "Rome", "size": 42}'
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "size": {"type": "integer"}},
    "required": ["city", "size"],
    "additionalProperties": False,
}
CALL = '<tool_call>\n{"name": "go", "arguments": {}}\n</tool_call>'
GO = {"type": "function", "function": {"name": "go"}}


def begin(thinking: Any) -> str:
    return "" if thinking == "open" else "<think>"


@pytest.mark.parametrize("thinking", [True, "open"])
@pytest.mark.parametrize("options", [{}, {"kv_bits": 8, "kv_group_size": 32}])
def test_it_ends_the_thinking(
    backend: Backend, scripted: MakeModel, thinking: Any, options: dict[str, Any]
) -> None:
    model = scripted(f"{begin(thinking)}{THOUGHT}</think>{ANSWER}", thinking=thinking)
    markers = 1 if thinking == "open" else 2
    whole = backend.generate(model, "Hi", **options)
    assert (whole.reasoning, whole.text) == (THOUGHT, ANSWER)
    length = whole.usage.reasoning_tokens - markers
    for budget in (0, 1, 5, length, length + 9):
        held = backend.generate(model, "Hi", thinking_budget=budget, logprobs=True, **options)
        assert held.usage.reasoning_tokens == min(budget, length) + markers
        assert THOUGHT.startswith(held.reasoning)
        assert (held.text, held.finish_reason) == (ANSWER, "stop")
        assert len(held.logprobs) == held.usage.completion_tokens
    assert backend.generate(model, "Hi", thinking_budget=length, **options).reasoning == THOUGHT


@pytest.mark.parametrize("thinking", [True, "open"])
def test_a_form_and_calls_follow_it(backend: Backend, scripted: MakeModel, thinking: Any) -> None:
    model = scripted(f"{begin(thinking)}{THOUGHT}</think>{ANSWER}", thinking=thinking)
    held = backend.generate(model, "Hi", thinking_budget=4, schema=CITY)
    assert held.text == ANSWER
    assert 0 < len(held.reasoning) < len(THOUGHT)
    caller = scripted(f"{begin(thinking)}{THOUGHT}</think>{CALL}", thinking=thinking, tools=True)
    for choice in ("auto", "required"):
        held = backend.generate(caller, "Hi", thinking_budget=4, tools=[GO], tool_choice=choice)
        assert [call.name for call in held.tool_calls] == ["go"]
        assert 0 < len(held.reasoning) < len(THOUGHT)


def test_white_space_may_come_before_it(backend: Backend, scripted: MakeModel) -> None:
    model = scripted(f"\n\n<think>{THOUGHT}</think>{ANSWER}", thinking=True)
    held = backend.generate(model, "Hi", thinking_budget=4)
    assert 0 < len(held.reasoning) < len(THOUGHT)
    assert held.text.strip() == ANSWER


def test_a_marker_in_the_answer_begins_no_thinking(backend: Backend, scripted: MakeModel) -> None:
    text = f"A model writes <think> before: {THOUGHT}"
    model = scripted(text, thinking=True)
    assert backend.generate(model, "Hi", thinking_budget=2).text == text


def test_others_in_the_batch_are_free(backend: Backend, tiny: MakeModel) -> None:
    model = tiny(thinking="open")
    options: dict[str, Any] = {"max_tokens": 60, "temperature": 0.9, "seed": 4}
    budgets: list[dict[str, Any]] = [{}, {"thinking_budget": 7}, {"thinking_budget": 20}]
    alone = [backend.generate(model, "Hi", **options, **more) for more in budgets]
    assert [one.usage.reasoning_tokens for one in alone[1:]] == [8, 21]
    with ThreadPoolExecutor(3) as pool:
        together = list(
            pool.map(
                lambda more: backend.generate(model, "Hi", **options, **more),
                budgets,
            )
        )
    for one, other in zip(alone, together, strict=True):
        assert (one.reasoning, one.text) == (other.reasoning, other.text)


def test_a_model_that_does_not_think_is_not_changed(backend: Backend, tiny: MakeModel) -> None:
    cases: list[tuple[str, dict[str, Any]]]
    cases = [(tiny(), {}), (tiny(thinking="open"), {"raw": True})]
    for model, options in cases:
        free = backend.generate(model, "Hi", max_tokens=20, **options)
        assert backend.generate(model, "Hi", max_tokens=20, thinking_budget=1, **options).text == (
            free.text
        )
