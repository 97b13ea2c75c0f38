from __future__ import annotations

from typing import Any

import pytest

from mlx_guarded_llm.fallback.checks import capped, fitted, judge, matches, repeats
from mlx_guarded_llm.fallback.remedies import remedy
from mlx_guarded_llm.results import InvalidToolCall, Provenance, Result, ToolCall, Usage

GUARD = Provenance(request_id="r", requested_model="m", served_model="m")
ADD = {"type": "function", "function": {"name": "add"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def answer(text: str = "", finish_reason: Any = "stop", tokens: int = 1024, **rest: Any) -> Result:
    fields: dict[str, Any] = {
        "reasoning": "",
        "tool_calls": (),
        "invalid_tool_calls": (),
        "logprobs": (),
    }
    usage = Usage(0, 0) if rest.pop("usage", ...) is None else Usage(3, tokens)
    return Result(
        text=text,
        finish_reason=finish_reason,
        usage=usage,
        guard=GUARD,
        **(fields | rest),
    )


@pytest.mark.parametrize(
    ("result", "options", "reasons"),
    [
        (answer("Paris."), {}, ()),
        (answer(" \n"), {}, ("empty",)),
        (answer("", reasoning="hm"), {}, ("empty",)),
        (answer("", tool_calls=(ToolCall("1", "f", {}),)), {}, ()),
        (answer("Par", "length"), {}, ("length",)),
        (answer("", "length", reasoning="hm"), {}, ("thinking",)),
        (answer("no no no no. " * 40, "length"), {}, ("loop",)),
        (answer("no no no no. " * 40), {}, ()),
        (answer("", "length", reasoning="wait, " * 80), {}, ("loop",)),
        (answer("x", invalid_tool_calls=(InvalidToolCall("{", "cut"),)), {}, ("tool_call",)),
        (answer('{"a": 1}'), {"schema": SCHEMA}, ()),
        (answer('{"a": "1"}'), {"schema": SCHEMA}, ("schema",)),
        (answer('{"a": ', "length"), {"schema": SCHEMA}, ("length", "schema")),
        (answer("", tool_calls=(ToolCall("1", "f", {}),)), {"schema": SCHEMA}, ()),
        (answer("Par", "cancelled"), {"schema": SCHEMA}, ("cancelled",)),
        (answer("Par", "content_filter"), {}, ("filtered",)),
        (answer("Par", "other"), {}, ("unfinished",)),
        (answer("It is 7."), {"tools": [ADD], "tool_choice": "required"}, ("tool_call",)),
        (answer("It is 7."), {"tools": [ADD]}, ()),
    ],
)
def test_what_makes_an_answer_degraded(
    result: Result, options: dict[str, Any], reasons: tuple[str, ...]
) -> None:
    assert judge(result, options, None) == reasons


def test_the_callers_check_sees_full_answers_and_cut_ones_only() -> None:
    seen: list[str] = []

    def accept(result: Result) -> bool:
        seen.append(result.text)
        return False

    assert judge(answer("Lyon"), {}, accept) == ("refused",)
    assert judge(answer("Par", "length"), {}, accept) == ("length", "refused")
    assert judge(answer(""), {}, accept) == ("empty",)
    assert judge(answer("Paris"), {}, lambda result: None) == ()
    assert seen == ["Lyon", "Par"]


def test_a_list_or_a_refrain_is_no_loop() -> None:
    assert not repeats("\n".join(f"{i}. point number {i}" for i in range(80)))
    assert not repeats("na na na na na na na na hey hey hey goodbye")
    assert not repeats("")
    assert repeats("It began well. " + "ha" * 80)
    assert repeats("It began well. " + "The cat sat on the mat and then " * 5)
    assert not repeats("The cat sat on the mat and then " * 5 + "it left.")


def test_a_cut_by_a_limit_of_the_callers_own_is_what_was_asked_for() -> None:
    cut = answer("Par", "length", 5)
    forced = {"tools": [{"type": "function"}], "tool_choice": "required"}
    assert capped(cut, ("length",), {"max_tokens": 5})
    assert capped(answer("Par", "length", 0), ("length",), {"max_tokens": 5}), "not counted"
    assert not capped(cut, ("length",), {}), "the default is nobody's own"
    assert not capped(cut, ("length",), {"max_tokens": 6}), "the context window cut it"
    assert not capped(cut, ("length", "schema"), {"max_tokens": 5, "schema": SCHEMA})
    assert not capped(cut, ("length",), {"max_tokens": 5, "regex": "a+"})
    assert not capped(cut, ("length",), {"max_tokens": 5, **forced})
    assert not capped(cut, ("thinking",), {"max_tokens": 5})
    assert not capped(cut, (), {"max_tokens": 5})


def test_a_text_that_is_no_json_matches_no_schema() -> None:
    assert not matches("Sure! Here it is:", True)
    assert matches("3", True)


@pytest.mark.parametrize(
    ("reasons", "result", "options", "changes"),
    [
        (("length",), answer("x", "length"), {}, {"max_tokens": 2048}),
        (("length",), answer("x", "length", 5000), {"max_tokens": 5000}, {"max_tokens": 8192}),
        (("length",), answer("x", "length", 8192), {"max_tokens": 8192}, {}),
        # The context window, and not the limit, cut it off.
        (("length",), answer("x", "length", 700), {}, {}),
        (("thinking",), answer("", "length"), {}, {"max_tokens": 2048}),
        (("thinking",), answer("", "length", 700), {}, {"thinking": False}),
        (("schema",), answer("x"), {"constrain": False}, {"constrain": True}),
        (("tool_call",), answer("x", "length"), {}, {"max_tokens": 2048}),
    ],
)
def test_what_helps_a_degraded_answer(
    reasons: tuple[str, ...], result: Result, options: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert remedy(reasons, result, options, cap=8192) == changes


def test_a_greedy_call_is_not_repeated_as_it_was() -> None:
    changes = remedy(("empty",), answer(""), {"seed": 7}, cap=8192)
    assert changes["temperature"] > 0
    assert changes["seed"] != 7
    assert changes == remedy(("empty",), answer(""), {"seed": 7}, cap=8192)
    assert "temperature" not in remedy(("empty",), answer(""), {"temperature": 0.9}, cap=8192)


def test_a_loop_gets_a_growing_penalty_and_another_seed() -> None:
    first = remedy(("loop",), answer("x", "length"), {}, cap=8192)
    second = remedy(("loop",), answer("x", "length"), first, cap=8192)
    assert 1 < first["repetition_penalty"] < second["repetition_penalty"]
    assert first["seed"] != second["seed"]


def test_no_more_tokens_are_asked_for_where_nobody_knows_how_many_there_were() -> None:
    unknown = answer("x", "length", usage=None)
    assert remedy(("length",), unknown, {}, cap=8192) == {}
    assert remedy(("length",), unknown, {"max_tokens": 10}, cap=8192) == {"max_tokens": 20}
    # Its own limit was higher than ours.
    assert remedy(("length",), answer("x", "length", 5000), {}, cap=8192) == {"max_tokens": 8192}


def test_a_call_that_fits_no_tool_is_an_invalid_one() -> None:
    calls = (ToolCall("1", "add", {"a": 1}), ToolCall("2", "fly", {"to": "é"}))
    result = fitted(answer("", tool_calls=calls), {"tools": [ADD]})
    assert result.tool_calls == calls[:1]
    (invalid,) = result.invalid_tool_calls
    assert invalid.text == '{"name": "fly", "arguments": {"to": "é"}}'
    assert "'fly' was offered" in invalid.error
    full = answer("", tool_calls=calls[:1])
    assert fitted(full, {"tools": [ADD]}) is full
