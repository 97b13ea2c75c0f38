"""What reaches the model: all that was said, in order, and nothing else."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from mlx_guarded_llm import Backend
from tests.conftest import MakeModel

from ._each import each_adapter, each_face, each_library
from ._faces import Face, Heard

PARIS = "The capital is Paris."
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Lyon?"},
    {"role": "user", "content": "Think again."},
]
# Gemma and Mistral are like this: roles take turns, or it is an error.
STRICT = """\
{%- for m in messages if m.role != 'system' %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


@each_face
async def test_the_system_message_and_all_turns_reach_the_model_in_order(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    model = scripted(PARIS)
    heard = Heard(backend)
    answer = await face.ask(face.make(heard, model), TURNS)
    (prompt,) = heard.prompts
    assert [(m["role"], m["content"]) for m in prompt] == [(m["role"], m["content"]) for m in TURNS]
    assert answer.usage[0] == len(backend.tokens(model, TURNS))


@each_adapter
@pytest.mark.parametrize("names", [(), ("ann", "ann"), ("ann", "bob")])
async def test_neighbours_of_one_role_lose_nothing(
    face: Face, names: tuple[str, ...], backend: Backend, scripted: MakeModel
) -> None:
    model = scripted(PARIS, chat_template=STRICT)
    twice: list[dict[str, Any]] = [
        {"role": "user", "content": "First."},
        {"role": "user", "content": "Second."},
        {"role": "assistant", "content": "Third."},
        {"role": "assistant", "content": "Fourth."},
        {"role": "user", "content": "Fifth."},
    ]
    for i, name in enumerate(names):
        twice[i] |= {"name": name}
        twice[i + 2] |= {"name": name}
    heard = Heard(backend)
    assert (await face.ask(face.make(heard, model), twice)).text == PARIS
    said = json.dumps(heard.prompts[0])
    places = [said.index(m["content"]) for m in twice]
    assert places == sorted(places)
    assert {m["name"] for m in heard.prompts[0] if "name" in m} == {*names}


@each_adapter
async def test_a_call_of_another_model_that_cannot_be_read_is_text(face: Face) -> None:
    function = {"name": "add", "arguments": '{"a": '}
    unread = {"name": "add", "args": '{"a": ', "id": "c1", "error": None}
    answer: dict[str, Any] = {
        "langchain": AIMessage("", invalid_tool_calls=[{"type": "invalid_tool_call", **unread}]),
        "llama_index": {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
    }
    turns = [
        {"role": "user", "content": "Add."},
        answer[face.library],
        {"role": "tool", "tool_call_id": "c1", "content": "Error: no JSON."},
    ]
    heard = Heard(answers={"big": PARIS})
    assert (await face.ask(face.make(heard, "big"), turns)).text == PARIS
    assert heard.prompts[0][1] == {"role": "assistant", "content": '{"a": '}


@each_face
async def test_reasoning_and_guard_of_an_answer_are_never_sent_back(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    model = scripted(f"<think>France, so</think>{PARIS}", thinking=True)
    heard = Heard(backend)
    llm = face.make(heard, model)
    first = await face.ask(llm, "What is the capital of France?")
    assert first.reasoning == "France, so"
    turns: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
    second = await face.ask(llm, [*turns, first.native, {"role": "user", "content": "Sure?"}])
    said = json.dumps(heard.prompts[1])
    for word in ("France, so", "guard", "served_model", model, first.guard.request_id):
        assert word not in said
    plain = [
        *turns,
        {"role": "assistant", "content": PARIS},
        {"role": "user", "content": "Sure?"},
    ]
    assert second.usage[0] == len(backend.tokens(model, plain))


@each_face
async def test_nothing_of_the_caller_is_changed(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": 4}}\n</tool_call>'
    llm = face.make(backend, scripted(call, tools=True))
    messages = face.natives(TURNS)
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}}
    function = {"name": "add", "description": "Add.", "parameters": parameters}
    options: dict[str, Any] = {"tools": [{"type": "function", "function": function}]}
    before = copy.deepcopy((messages, options))
    await face.ask(llm, messages, **options)
    assert (messages, options) == before
    stop = ["Paris"]
    await face.ask(llm, messages, stop=stop)
    assert stop == ["Paris"] and messages == before[0]


@each_library
async def test_a_developers_message_is_taken(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    model = scripted(PARIS)
    turns = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    answer = await face.ask(face.make(backend, model), turns)
    assert answer.usage[0] == len(backend.tokens(model, turns))
