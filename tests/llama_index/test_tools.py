"""Tools, tool choice and the calls in an answer."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ToolCallBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.mlx_guarded import NoToolCall
from llama_index.llms.mlx_guarded.tools import choice_to_openai, selections, tools_to_openai

from mlx_guarded_llm.errors import GuardedLLMError, InvalidRequest


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


NAMED = {"type": "function", "function": {"name": "add"}}


@pytest.mark.parametrize(
    ("choice", "required", "expected"),
    [
        (None, False, "auto"),
        (None, True, "required"),
        ("auto", True, "auto"),
        ("none", False, "none"),
        ("required", False, "required"),
        ("any", False, "required"),
        ("add", False, NAMED),
        (NAMED, False, NAMED),
    ],
)
def test_every_way_to_choose_a_tool(choice: Any, required: bool, expected: Any) -> None:
    assert choice_to_openai(choice, required=required) == expected


def test_a_tool_in_openai_form() -> None:
    (tool,) = tools_to_openai([FunctionTool.from_defaults(add)])
    function = tool["function"]
    assert function["name"] == "add"
    assert "Add two numbers." in function["description"]
    assert function["parameters"]["required"] == ["a", "b"]


def test_a_long_description_is_no_error() -> None:
    tool = FunctionTool.from_defaults(add, description="long " * 1000)
    assert len(tools_to_openai([tool])[0]["function"]["description"]) >= 4999


def test_a_mapping_is_taken_as_it_is() -> None:
    assert tools_to_openai([NAMED]) == [NAMED]


def answer(*blocks: ToolCallBlock, **extra: Any) -> ChatResponse:
    return ChatResponse(
        message=ChatMessage(role="assistant", blocks=list(blocks), additional_kwargs=extra)
    )


def test_the_calls_of_an_answer() -> None:
    block = ToolCallBlock(tool_call_id="c1", tool_name="add", tool_kwargs={"a": 1})
    (call,) = selections(answer(block), error_on_no_tool_call=True)
    assert (call.tool_id, call.tool_name, call.tool_kwargs) == ("c1", "add", {"a": 1})


def test_calls_in_the_older_form() -> None:
    older = {"id": "c1", "function": {"name": "add", "arguments": '{"a": 1}'}}
    (call,) = selections(answer(tool_calls=[older]), error_on_no_tool_call=True)
    assert (call.tool_id, call.tool_name, call.tool_kwargs) == ("c1", "add", {"a": 1})


def test_no_call_is_an_error_where_one_is_wanted() -> None:
    assert selections(answer(), error_on_no_tool_call=False) == []
    with pytest.raises(NoToolCall, match="has no tool call") as caught:
        selections(answer(), error_on_no_tool_call=True)
    assert isinstance(caught.value, GuardedLLMError)


@pytest.mark.parametrize("arguments", ["{half", "[1]", '"text"'])
def test_arguments_that_cannot_be_read_never_become_an_empty_call(arguments: str) -> None:
    block = ToolCallBlock(tool_call_id="c1", tool_name="add", tool_kwargs=arguments)
    with pytest.raises(InvalidRequest, match="the call of 'add' are no JSON object"):
        selections(answer(block), error_on_no_tool_call=False)
