from __future__ import annotations

from typing import Any

import pytest

from mlx_guarded_llm.tool_check import callable_tools, misfit

PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ADD = {"type": "function", "function": {"name": "add", "parameters": PARAMETERS}}
NOW = {"type": "function", "function": {"name": "now"}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("choice", "tools"),
    [(None, [ADD, NOW]), ("required", [ADD, NOW]), ("none", []), (named("now"), [NOW])],
)
def test_what_may_be_called(choice: Any, tools: Any) -> None:
    assert callable_tools([ADD, NOW], choice) == tools
    assert callable_tools(None, choice) == []


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("add", {"a": 1}, ""),
        ("now", {"anything": "goes"}, ""),
        ("fly", {}, "no tool 'fly' was offered; there are: 'add', 'now'."),
        ("add", {}, "'a' is a required property"),
        ("add", {"a": "one"}, "a: 'one' is not of type 'integer'"),
        ("add", "{}", "no JSON object"),
    ],
)
def test_whether_a_call_fits(name: str, arguments: Any, why: str) -> None:
    found = misfit(name, arguments, [ADD, NOW])
    assert why in found and bool(found) is bool(why)


def test_a_tool_that_is_not_strict_takes_any_arguments() -> None:
    lenient = {"function": {"name": "add", "parameters": PARAMETERS, "strict": False}}
    assert misfit("add", {"a": "one"}, [lenient]) == ""


def test_a_schema_that_is_none_refuses_nothing() -> None:
    wrong = {"function": {"name": "add", "parameters": {"type": "number of things"}}}
    assert misfit("add", {"a": 1}, [wrong]) == ""
