"""Why an answer ended; the dialects themselves are in tests/contract/test_external_answers.py."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from mlx_guarded_llm.fallback.finish_reasons import finish_reason

WORDS = {
    "stop": ["stop", "end_turn", "eos_token", "COMPLETE", "stop_sequence", "stop_string_found"],
    "length": [
        "length",
        "max_tokens",
        "model_length",
        "model_context_window_exceeded",
        "max_predicted_tokens_reached",
        "context_length_reached",
    ],
    "content_filter": ["content_filter", "refusal", "SAFETY", "guardrail_intervened"],
    "tool_calls": ["tool_calls", "tool_use", "function_call"],
    "other": ["pause_turn", "error", "insufficient_system_resource", "load", "odd"],
}


def spellings(word: str) -> list[str]:
    camel = "".join(part.capitalize() for part in word.lower().split("_"))
    return [
        word.lower(),
        word.upper(),
        word.replace("_", "-"),
        word.lower().replace("_", " "),
        camel,
        camel[0].lower() + camel[1:],
        f"FinishReason.{word.upper()}",
        f"FINISH_REASON_{word.upper()}",
    ]


@pytest.mark.parametrize(("meaning", "words"), WORDS.items())
def test_a_word_means_the_same_however_it_is_written(meaning: str, words: list[str]) -> None:
    names = ("finish_reason", "stop_reason", "stopReason", "done_reason", "completionReason")
    for word, name in itertools.product(words, names):
        for said in spellings(word):
            assert finish_reason({name: said}) == meaning, said
            assert finish_reason(SimpleNamespace(**{name: said})) == meaning, said
            assert finish_reason({}, {"choices": [{name: said}]}) == meaning, said


@pytest.mark.parametrize(
    "answer",
    [None, 3, "text", [], {}, {"finish_reason": None}, {"finish_reason": ""}, {"choices": None}],
)
def test_where_nothing_is_said_it_came_to_its_end(answer: Any) -> None:
    assert finish_reason(answer) == "stop"


def test_the_worst_of_what_is_said_counts() -> None:
    assert (
        finish_reason({"choices": [{"finish_reason": "stop"}, {"finish_reason": "length"}]})
        == "length"
    )
    assert finish_reason({"finish_reason": "length"}, {"refusal": "No."}) == "content_filter"
    assert finish_reason({"done": False, "done_reason": "stop"}) == "other"


def test_any_object_can_be_read() -> None:
    assert finish_reason(MagicMock(spec=object())) == "stop"
