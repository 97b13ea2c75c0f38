"""Tools: offering them, choosing among them, and calls that come back."""

from __future__ import annotations

import json
from typing import Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableBinding
from langchain_core.tools import tool
from pydantic import BaseModel

from langchain_mlx_guarded import ChatMLXGuarded
from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.grammar.validation import mismatch
from mlx_guarded_llm.testing.faulty import FaultyBackend
from tests.conftest import MakeModel

from .test_chat_models import each_way

CALL = '<tool_call>\n{"name": "lookup", "arguments": {"number": 6}}\n</tool_call>'


@tool
def lookup(number: int) -> str:
    """Look it up."""
    return str(number)


class Area(BaseModel):
    """Compute an area."""

    width: int
    height: int


class Nested(BaseModel):
    """An area inside of something."""

    at: Area


class Point(TypedDict):
    """Take a point."""

    x: int


def plus(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the one
        b: the other
    """
    return a + b


ANTHROPIC = {
    "name": "color_picker",
    "input_schema": {"type": "object", "properties": {"color": {"type": "string"}}},
    "description": "Pick one.",
}
OPENAI = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture
def chat(backend: Backend, scripted: MakeModel) -> ChatMLXGuarded:
    return ChatMLXGuarded(model=scripted(CALL, tools=True), backend=backend)


@each_way
async def test_a_call_comes_back_as_a_call(ask: Any, chat: ChatMLXGuarded) -> None:
    message = await ask(chat.bind_tools([lookup]), "What is it?")
    ((call),) = message.tool_calls
    assert (call["name"], call["args"], call["type"]) == ("lookup", {"number": 6}, "tool_call")
    assert call["id"]
    assert message.content == ""
    assert message.response_metadata["finish_reason"] == "tool_calls"
    assert [block["type"] for block in message.content_blocks] == ["tool_call"]
    result = lookup.invoke(call)
    assert isinstance(result, ToolMessage)
    again = await ask(chat.bind_tools([lookup]), [HumanMessage("What is it?"), message, result])
    assert isinstance(again, AIMessage)


@each_way
async def test_standard_blocks_hold_the_call_once(
    ask: Any, backend: Backend, chat: ChatMLXGuarded
) -> None:
    standard = ChatMLXGuarded(model=chat.model_name, backend=backend, output_version="v1")
    message = await ask(standard.bind_tools([lookup]), "What is it?")
    assert [block["type"] for block in message.content] == ["tool_call"]
    assert len(message.tool_calls) == 1


@each_way
@pytest.mark.parametrize("choice", ["any", "plus", True])
async def test_any_model_can_be_made_to_call(
    ask: Any, choice: Any, backend: Backend, tiny: MakeModel
) -> None:
    chat = ChatMLXGuarded(model=tiny(), backend=backend, max_tokens=200)
    offered = chat.bind_tools([plus], tool_choice=choice, parallel_tool_calls=False)
    message = await ask(offered, "3 + 4?")
    ((call),) = message.tool_calls
    assert call["name"] == "plus"
    assert {type(value) for value in call["args"].values()} == {int}


@each_way
async def test_none_hides_the_tools(ask: Any, backend: Backend, scripted: MakeModel) -> None:
    chat = ChatMLXGuarded(model=scripted("I will not call."), backend=backend)
    message = await ask(chat.bind_tools([lookup], tool_choice="none"), "What is it?")
    assert message.tool_calls == []
    assert message.content == "I will not call."


def test_every_kind_of_tool_is_converted() -> None:
    bound: Any = ChatMLXGuarded(model="m").bind_tools(
        [lookup, Area, Point, plus, ANTHROPIC, OPENAI, Area.model_json_schema()]
    )
    assert isinstance(bound, RunnableBinding)
    names = [each["function"]["name"] for each in bound.kwargs["tools"]]
    assert names == ["lookup", "Area", "Point", "plus", "color_picker", "f", "Area"]
    json.dumps(bound.kwargs)
    plus_schema = bound.kwargs["tools"][3]["function"]["parameters"]
    assert plus_schema["properties"]["a"] == {"description": "the one", "type": "integer"}


def test_what_is_bound_is_what_was_said() -> None:
    chat = ChatMLXGuarded(model="m")
    bound: Any = chat.bind_tools([plus], parallel_tool_calls=False, strict=True, seed=3)
    assert bound.kwargs["parallel_tool_calls"] is False
    assert bound.kwargs["seed"] == 3
    assert "tool_choice" not in bound.kwargs
    assert bound.kwargs["tools"][0]["function"]["strict"] is True
    nothing: Any = chat.bind_tools([], tool_choice="any", seed=3)
    assert nothing.kwargs == {"tool_choice": "any", "seed": 3}, "which a call refuses"
    with pytest.raises(InvalidRequest, match="no tool has that name"):
        chat.bind_tools([plus], tool_choice="minus")


def save(scores: dict[str, bool]) -> str:
    """Save who passed."""
    return str(scores)


@pytest.mark.parametrize("strict", [None, True])
def test_a_mapping_of_free_names_stays_open(
    backend: Backend, scripted: MakeModel, strict: bool | None
) -> None:
    call = '<tool_call>\n{"name": "save", "arguments": {"scores": {"Ann": true}}}\n</tool_call>'
    chat = ChatMLXGuarded(model=scripted(call, tools=True), backend=backend)
    (made,) = chat.bind_tools([save], strict=strict).invoke("Save.").tool_calls
    assert made["args"] == {"scores": {"Ann": True}}


def test_strict_closes_the_objects_that_name_their_properties() -> None:
    bound: Any = ChatMLXGuarded(model="m").bind_tools([save, Nested], strict=True)
    saved, nested = (tool["function"]["parameters"] for tool in bound.kwargs["tools"])
    assert mismatch({"scores": {"Ann": True}}, saved) == ""
    assert mismatch({"scores": {"Ann": 1}}, saved) and mismatch({"scores": {}, "x": 1}, saved)
    assert mismatch({"at": {"width": 1, "height": 1}}, nested) == ""
    assert mismatch({"at": {"width": 1, "height": 1, "depth": 1}}, nested)


def test_the_choice_reaches_the_backend() -> None:
    backend: Any = FaultyBackend(answers={"m": "Done."})  # and calls nothing
    chat = ChatMLXGuarded(model="m", backend=backend, on_degraded="mark", max_retries=0)
    chat.bind_tools([plus], tool_choice="plus", parallel_tool_calls=False).invoke("Hi")
    chat.bind_tools([plus]).invoke("Hi", tool_choice="any")
    chat.invoke("Hi", tools=[plus], tool_choice="none")
    chat.invoke("Hi", tools=[plus], tool_choice="any", parallel_tool_calls=True)
    chosen = [options.get("tool_choice") for _, options in backend.calls]
    parallel = [options.get("parallel_tool_calls") for _, options in backend.calls]
    assert parallel == [False, False, None, True]
    assert chosen == [
        {"type": "function", "function": {"name": "plus"}},
        "required",
        "none",
        "required",
    ]
