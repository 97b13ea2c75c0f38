"""The arguments of one call."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_mlx_guarded.options import call_options, tool_choice
from mlx_guarded_llm.errors import InvalidRequest

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("add", "sub")
]
ADD = {"type": "function", "function": {"name": "add"}}


def test_a_call_beats_the_constructor_and_none_says_nothing() -> None:
    defaults = {"temperature": 0.5, "stop": ["a"], "seed": 1}
    given = {"temperature": 0.0, "stop": ["b"], "seed": None, "max_tokens": 3}
    expected = {"temperature": 0.0, "stop": ["b"], "seed": 1, "max_tokens": 3}
    assert call_options(defaults, given) == expected
    assert defaults == {"temperature": 0.5, "stop": ["a"], "seed": 1}


def test_no_stop_at_all_can_be_asked_for() -> None:
    assert call_options({"stop": ["a"]}, {"stop": []}) == {"stop": []}


def test_langchains_own_switch_is_not_an_option() -> None:
    assert call_options({}, {"stream": True}) == {}


def test_an_unknown_option_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(InvalidRequest, match=r"'temprature'.*temperature"):
        call_options({}, {"temprature": 1})


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, None),
        (False, None),
        (True, "required"),
        ("any", "required"),
        ("required", "required"),
        ("auto", "auto"),
        ("none", "none"),
        ("add", ADD),
        (ADD, ADD),
        ({"type": "tool", "name": "add"}, ADD),
    ],
)
def test_tool_choice_in_all_its_spellings(choice: Any, expected: Any) -> None:
    assert tool_choice(choice, TOOLS) == expected


@pytest.mark.parametrize("choice", ["mul", {"type": "function", "function": {"name": "mul"}}, 3])
def test_a_choice_that_names_no_tool_is_an_error(choice: Any) -> None:
    with pytest.raises(InvalidRequest, match="no tool has that name"):
        tool_choice(choice, TOOLS)


def test_tools_are_converted_and_a_call_that_must_be_made_needs_one() -> None:
    def add(a: int) -> int:
        """Add."""
        return a

    options = call_options({}, {"tools": [add], "tool_choice": "any"})
    assert options["tools"][0]["function"]["name"] == "add"
    assert options["tool_choice"] == "required"
    assert call_options({}, {"tools": [], "tool_choice": "auto"}) == {}
    with pytest.raises(InvalidRequest, match="there are no tools"):
        call_options({}, {"tools": [], "tool_choice": "any"})


def test_openais_response_format_is_understood() -> None:
    schema = {"type": "object", "properties": {}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert call_options({}, {"response_format": form}) == {"schema": schema}
    assert call_options({}, {"response_format": {"type": "json_object"}}) == {
        "schema": {"type": "object"}
    }
    assert call_options({}, {"response_format": {"type": "text"}}) == {}
    with pytest.raises(InvalidRequest, match="response_format"):
        call_options({}, {"response_format": {"type": "yaml"}})
