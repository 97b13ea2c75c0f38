"""Tool calls, from the choice to the result that goes back."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import DegradedAnswer, InvalidRequest
from tests.conftest import MakeModel

from ._each import each_face, each_library
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


@each_library
async def test_a_choice_that_names_no_tool_is_an_error(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    llm = face.make(backend, scripted("It is 7.", tools=True))
    with pytest.raises(InvalidRequest, match="subtract"):
        await face.ask(llm, QUESTION, tools=[ADD], tool_choice="subtract")
