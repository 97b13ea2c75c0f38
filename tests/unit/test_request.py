"""What a request may be, and what the refusals say."""

import copy
import enum
import json
import pickle
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.request import PromptRequest

UNHURRIED = settings(deadline=None)  # machines that build are busy

USER = {"role": "user", "content": "Hi"}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object"}},
}


def call(arguments: Any = "{}", **changes: Any) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}} | (
        changes
    )


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def assistant(*calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def test_a_string_is_one_user_message() -> None:
    request = PromptRequest("Hi")
    assert request.prompt == "Hi"
    assert request.messages == (USER,)


def test_parts_are_joined_and_arguments_parsed() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = PromptRequest(
        [
            {"role": "user", "content": parts, "name": "ann"},
            assistant(call('{"x": 1}'), call({"x": 2}), call(""), call(None)),
            {"role": "tool", "tool_call_id": "1", "content": []},
        ]
    )
    first, second, third = request.messages
    assert first == {"role": "user", "content": "ab", "name": "ann"}
    assert second["content"] == ""
    arguments = [call["function"]["arguments"] for call in second["tool_calls"]]
    assert arguments == [{"x": 1}, {"x": 2}, {}, {}]
    assert third["content"] == ""


def test_the_callers_objects_are_neither_changed_nor_kept() -> None:
    messages = [USER, assistant(call('{"x": [1]}')), {**USER}]
    tools = [copy.deepcopy(TOOL)]
    kwargs = {"documents": [{"a": 1}]}
    before = copy.deepcopy((messages, tools, kwargs))
    request = PromptRequest(messages, tools=tools, template_kwargs=kwargs)
    assert (messages, tools, kwargs) == before
    kept = copy.deepcopy(request)
    messages[2]["content"] = tools[0]["function"]["name"] = "changed"
    kwargs["documents"].clear()
    assert request == kept


def test_it_pickles_whatever_mappings_it_was_made_of() -> None:
    class Role(enum.StrEnum):
        USER = "user"

    message = MappingProxyType({"role": Role.USER, "content": "Hi"})
    request = PromptRequest([message], tools=(MappingProxyType(TOOL),), tool_choice="auto")
    assert pickle.loads(pickle.dumps(request)) == request
    assert type(request.messages[0]["role"]) is str
    json.dumps([request.messages, request.tools])


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "empty string"),
        ([], "empty list"),
        (None, "NoneType"),
        (b"Hi", "bytes"),
        ({"role": "user"}, "dict"),
        ([USER, "Hi"], r"messages\[1\] is a str"),
        ([USER, {"role": "bot", "content": "a"}], r"messages\[1\] has the role 'bot'.*'assistant'"),
        ([{"content": "a"}], "role None"),
        ([{"role": ["user"], "content": "a"}], r"role \['user'\]"),
        ([{"role": "user"}], r"messages\[0\] has no content"),
        ([{"role": "assistant", "content": None}], r"messages\[0\] has no content"),
        ([{"role": "user", "content": 3}], r"messages\[0\].content is a int"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"content\[0\].*'image_url'"),
        ([{"role": "user", "content": ["a"]}], r"content\[0\] is of type 'str'"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\] has no string"),
        ([{"role": "user", "content": "\ud800"}], "content is not valid Unicode"),
        ([{"role": "user", "content": "a", "x": object()}], r"messages\[0\].x is a object"),
        ([{"role": "user", "content": "a", 3: 1}], "key 3"),
        ([{"role": "tool", "content": "a"}], "tool_call_id"),
        ([{"role": "user", "content": "a", "tool_calls": [call()]}], "role is 'user'"),
        ([assistant("f")], r"messages\[0\].tool_calls\[0\]"),
        ([assistant(call(function={}))], "has no name"),
        ([assistant(call("{"))], "not JSON"),
        ([assistant(call("[" * 10**5))], "not JSON"),
        ([assistant(call('{"a": ' * 200 + "1" + "}" * 200))], "128 levels are the most"),
        ([assistant(call('{"a": "\\ud800"}'))], r"arguments.a is not valid Unicode"),
        ([{"role": "user", "content": "a", "x": {10**5000: 1}}], "has the key a int"),
        ([assistant(call("[1]"))], "no JSON object"),
        ([{"role": "assistant", "content": None, "tool_calls": "f"}], "tool_calls is a str"),
    ],
)
def test_wrong_prompts(prompt: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        PromptRequest(prompt)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"raw": True, "tools": [TOOL]}, "raw=True uses no chat template"),
        ({"raw": 1}, "raw is 1"),
        ({"thinking": "yes"}, "thinking is 'yes'"),
        ({"thinking": 1}, "thinking is 1"),
        ({"tools": TOOL}, "tools is a dict"),
        ({"tools": [TOOL, {"name": "f"}]}, r"tools\[1\] must have the form"),
        ({"tools": [{"type": "function", "function": {}}]}, r"tools\[0\].*no name"),
        ({"tools": [len]}, r"tools\[0\] is a builtin_function"),
        ({"tool_choice": "required"}, "no tools"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice is 'any'"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "mapping under 'function'"),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": "g"}}}, "names 'g'.*'f'"),
        ({"template_kwargs": None}, "template_kwargs is a NoneType"),
        ({"template_kwargs": {"tokenize": False}}, "must not set 'tokenize'"),
        ({"template_kwargs": {"continue_final_message": "content"}}, "is 'content'"),
        ({"template_kwargs": {"self": 1}}, "must not set 'self'"),
        ({"template_kwargs": {"f": len}}, "template_kwargs.f"),
        ({"template_kwargs": {"f": 10**5000}}, "f is an integer of 16610 bits; 14000 are"),
        ({"template_kwargs": {"f": nested(128)}}, "nested too deeply; 128 levels"),
        ({"template_kwargs": {"continue_final_message": True}}, "continue_final_message"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        PromptRequest("Hi", **options)


def test_nesting_is_bounded_wherever_it_is_asked_from() -> None:
    kwargs = {"f": nested(127)}
    request = PromptRequest("Hi", template_kwargs=kwargs)
    assert pickle.loads(pickle.dumps(request)).template_kwargs == kwargs
    assert request.characters == len("Hi" + "f")


def test_raw_wants_text() -> None:
    with pytest.raises(InvalidRequest, match="prompt must be a string"):
        PromptRequest([USER], raw=True)


def test_only_the_assistant_can_be_continued() -> None:
    options: dict[str, Any] = {"template_kwargs": {"continue_final_message": True}}
    assert PromptRequest([USER, {"role": "assistant", "content": "a"}], **options).continues_message
    with pytest.raises(InvalidRequest, match="continue_final_message"):
        PromptRequest([USER], **options)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    calling = {"role": "assistant", "content": "a", "tool_calls": [call]}
    with pytest.raises(InvalidRequest, match="ends with tool calls"):
        PromptRequest([USER, calling], **options)


def test_tool_choice() -> None:
    named: Mapping[str, Any] = {"type": "function", "function": {"name": "f"}}
    for choice in (None, "auto", "required", named):
        assert PromptRequest("Hi", tools=[TOOL], tool_choice=choice).offered_tools == (TOOL,)
    assert PromptRequest("Hi", tools=[TOOL], tool_choice="none").offered_tools == ()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.binary(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "tool_calls", "function", "arguments", "name", "type", "text"]
            ),
            inner | st.sampled_from(["user", "assistant", "tool", "text", "function", "{}"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@UNHURRIED
@given(ANYTHING | st.lists(st.integers()), ANYTHING, ANYTHING, st.booleans())
def test_whatever_comes_is_taken_or_refused(
    prompt: Any, tools: Any, choice: Any, raw: bool
) -> None:
    try:
        request = PromptRequest(prompt, tools=tools, tool_choice=choice, raw=raw)
    except InvalidRequest:
        return
    if request.ids:
        assert raw and list(request.ids) == prompt
    else:
        assert all(isinstance(message["content"], str) for message in request.messages)
    assert pickle.loads(pickle.dumps(request)) == request


def test_a_raw_prompt_may_be_token_ids() -> None:
    given: Any = [np.int64(3), 1]
    request = PromptRequest(given, raw=True)
    assert request.prompt == request.ids == (3, 1)
    assert request.characters == 2
    assert [type(token) for token in request.ids] == [int, int]
    assert PromptRequest("Hi").ids == PromptRequest([USER]).ids == ()


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        ([1, 2], {}, "Pass raw=True"),
        ([1, "a"], {"raw": True}, "prompt has 'a'; it must be ids of tokens"),
        ([True], {"raw": True}, "prompt has True"),
        ([-1], {"raw": True}, "prompt has -1"),
        ([2**31], {"raw": True}, "ids of tokens"),
        ([1, USER], {"raw": True}, "ids of tokens"),
        ([1], {"raw": True, "tools": [TOOL]}, "cannot offer tools"),
        ([1], {"raw": True, "continue_final_message": True}, "needs messages"),
    ],
)
def test_what_ids_cannot_be(prompt: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        PromptRequest(prompt, **options)
    assert said in f"{raised.value} {raised.value.hint}"
