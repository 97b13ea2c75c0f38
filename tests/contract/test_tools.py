"""Tool calls, from the choice to the result that goes back."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import DegradedAnswer, InvalidRequest
from mlx_guarded_llm.grammar.validation import mismatch
from tests.conftest import MakeModel

from ._each import each_adapter, each_face, each_library
from ._faces import Face, Heard

ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "integer", "minimum": 0, "maximum": 9},
                "b": {"type": "integer", "minimum": 0, "maximum": 9},
            },
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
SWITCH: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "switch",
        "description": "Switch the light.",
        "parameters": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}},
            "required": ["on"],
            "additionalProperties": False,
        },
    },
}
QUESTION = [{"role": "user", "content": "What is 3 + 4?"}]


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@each_face
async def test_the_model_may_call_and_its_result_goes_back(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    heard = Heard(backend)
    caller = face.make(heard, scripted(call("add", '{"a": 3, "b": 4}'), tools=True))
    first = await face.ask(caller, QUESTION, tools=[ADD, SWITCH])
    assert first.calls == (("add", {"a": 3, "b": 4}),)
    assert first.finish_reason == "tool_calls" and first.guard.as_asked
    assert all(first.call_ids)

    answerer = face.make(heard, scripted("It is 7.", tools=True))
    result = {"role": "tool", "tool_call_id": first.call_ids[0], "content": "7"}
    second = await face.ask(answerer, [*QUESTION, first.native, result], tools=[ADD, SWITCH])
    assert second.text == "It is 7." and second.calls == ()
    called, returned = heard.prompts[1][1:]
    assert called["tool_calls"][0]["id"] == returned["tool_call_id"] == first.call_ids[0]
    assert called["tool_calls"][0]["function"]["name"] == "add"
    assert (returned["role"], returned["content"]) == ("tool", "7")


@each_face
@pytest.mark.parametrize("choice", ["required", "switch"])
async def test_a_forced_call_fits_its_schema_whatever_the_model_knows(
    face: Face, backend: Backend, tiny: MakeModel, choice: str
) -> None:
    llm = face.make(backend, tiny(), temperature=1.0, seed=3)
    answer = await face.ask(llm, QUESTION, tools=[SWITCH], tool_choice=choice, parallel=False)
    ((name, arguments),) = answer.calls
    assert name == "switch"
    assert set(arguments) == {"on"} and isinstance(arguments["on"], bool)


@each_face
async def test_a_call_may_not_be_made_when_none_is_wanted(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    heard = Heard(backend)
    model = scripted("It is 7.", tools=True)
    llm = face.make(heard, model)
    answer = await face.ask(llm, QUESTION, tools=[ADD], tool_choice="none")
    assert answer.calls == () and answer.text == "It is 7."
    assert answer.usage[0] == len(backend.tokens(model, QUESTION))  # it did not see the tool


@each_face
async def test_several_calls_in_one_answer(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    both = call("add", '{"a": 1, "b": 2}') + "\n" + call("switch", '{"on": true}')
    llm = face.make(backend, scripted(both, tools=True))
    answer = await face.ask(llm, QUESTION, tools=[ADD, SWITCH], parallel=True)
    assert answer.calls == (("add", {"a": 1, "b": 2}), ("switch", {"on": True}))
    assert len(set(answer.call_ids)) == 2


@each_face
async def test_a_call_that_cannot_be_read_is_never_a_call(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    bad = '<tool_call>\n{"name": "add", "arguments": {"a": 3,'
    model = scripted(bad, tools=True)
    faulty = Heard(backend)
    with pytest.raises(DegradedAnswer) as caught:
        await face.ask(face.make(faulty, model), QUESTION, tools=[ADD], max_tokens=8)
    assert "tool_call" in caught.value.reasons
    marking = face.make(faulty, model, on_degraded="mark")
    answer = await face.ask(marking, QUESTION, tools=[ADD], max_tokens=8)
    assert answer.calls == () and answer.unread == 1
    assert "tool_call" in answer.guard.degraded


@each_adapter
async def test_a_call_that_cannot_be_read_is_shown_to_the_model_as_it_wrote_it(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    heard = Heard(backend)
    model = scripted('So: <tool_call>\n{"name": "add", "arguments": {"a": "', tools=True)
    llm = face.make(heard, model, on_degraded="mark", max_retries=0, retry=None)
    first = await face.ask(llm, QUESTION, tools=[ADD], max_tokens=9)
    assert first.unread == 1 and first.calls == ()
    again = {"role": "user", "content": "Again, please."}
    await face.ask(llm, [*QUESTION, first.native, again], tools=[ADD], max_tokens=9)
    said = {"role": "assistant", "content": 'So: \n\n{"name": "add", "arg'}
    assert heard.prompts[-1] == [*QUESTION, said, again]


@each_library
async def test_a_choice_that_names_no_tool_is_an_error(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    llm = face.make(backend, scripted("It is 7.", tools=True))
    with pytest.raises(InvalidRequest, match="subtract"):
        await face.ask(llm, QUESTION, tools=[ADD], tool_choice="subtract")


@each_face
@pytest.mark.parametrize("name", ["clock.now", "uhr/größe"])
async def test_a_tool_is_called_by_its_own_name(
    face: Face, backend: Backend, tiny: MakeModel, name: str
) -> None:
    tool = {**SWITCH, "function": {**SWITCH["function"], "name": name}}
    llm = face.make(backend, tiny())
    for choice in ("required", name):
        answer = await face.ask(llm, QUESTION, tools=[tool], tool_choice=choice, parallel=False)
        assert [called for called, _ in answer.calls] == [name]


NODE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
        "on": {"type": "boolean"},
    },
    "required": ["next", "on"],
}
HARMLESS: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$comment": "by a program",
    "type": "object",
    "properties": {
        "free": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {}},
        "name": {"type": "string", "pattern": "^(?!x)", "format": "idn-email", "x-order": 1},
        "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "any": {"type": "any"},
    },
}


@each_library
async def test_no_tools_schema_stops_an_answer(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    tool = {**SWITCH, "function": {**SWITCH["function"], "parameters": HARMLESS}}
    llm = face.make(backend, scripted("It is 7.", tools=True))
    assert (await face.ask(llm, QUESTION, tools=[ADD, tool])).text == "It is 7."


@each_library
@pytest.mark.parametrize("types", [["null", "object"], ["object"], "object", None])
async def test_arguments_are_an_object_whatever_else_their_schema_may_be(
    face: Face, types: Any, backend: Backend, tiny: MakeModel
) -> None:
    parameters = {**ADD["function"]["parameters"], "type": types}
    tool = {**ADD, "function": {**ADD["function"], "parameters": parameters}}
    llm = face.make(backend, tiny(), max_tokens=100, seed=1)
    answer = await face.ask(llm, QUESTION, tools=[tool], tool_choice="add", parallel=False)
    assert [set(arguments) for _, arguments in answer.calls] == [{"a", "b"}]


@each_library
async def test_arguments_are_held_through_references_in_circles(
    face: Face, backend: Backend, tiny: MakeModel
) -> None:
    function = {**SWITCH["function"], "parameters": {**NODE, "$defs": {"Node": NODE}}}
    llm = face.make(backend, tiny(), temperature=1.0, max_tokens=300)
    tools = [{"type": "function", "function": function}]
    answer = await face.ask(llm, QUESTION, tools=tools, tool_choice="required", parallel=False)
    ((_, node),) = answer.calls
    while node is not None:
        assert isinstance(node["on"], bool)
        node = node["next"]


class Tree(BaseModel):
    """A tree."""

    on: bool
    below: list[Tree]


@each_adapter
async def test_a_class_that_refers_to_itself_is_a_tool_with_all_that_it_says(face: Face) -> None:
    heard = Heard(answers={"m": "A tree."})
    await face.ask(face.make(heard, "m"), QUESTION, tools=[Tree])
    ((_, options),) = heard.calls
    parameters = options["tools"][0]["function"]["parameters"]
    assert mismatch({"on": True, "below": [{"on": False, "below": []}]}, parameters) == ""
    assert mismatch({"on": True, "below": [{"on": 3, "below": []}]}, parameters)


@each_library
@pytest.mark.parametrize("choice", ["required", "switch"])
async def test_a_call_that_must_be_made_needs_a_tool(
    face: Face, backend: Backend, scripted: MakeModel, choice: str
) -> None:
    llm = face.make(backend, scripted("It is 7.", tools=True))
    with pytest.raises(InvalidRequest, match="tool"):
        await face.ask(llm, QUESTION, tools=[], tool_choice=choice)
