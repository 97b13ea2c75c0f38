"""From LangChain's messages to OpenAI-style ones."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)

from langchain_mlx_guarded.messages import to_openai
from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.request import PromptRequest

CALL = {"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"}
SENT = {
    "type": "function",
    "id": "c1",
    "function": {"name": "add", "arguments": '{"a": 1}'},
}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (SystemMessage("Be brief."), {"role": "system", "content": "Be brief."}),
        (HumanMessage("Hi"), {"role": "user", "content": "Hi"}),
        (HumanMessage("Hi", name="ann"), {"role": "user", "content": "Hi", "name": "ann"}),
        (AIMessage("Yes."), {"role": "assistant", "content": "Yes."}),
        (AIMessageChunk(content="Yes."), {"role": "assistant", "content": "Yes."}),
        (
            AIMessage("", tool_calls=[CALL]),
            {"role": "assistant", "content": "", "tool_calls": [SENT]},
        ),
        (
            ToolMessage("3", tool_call_id="c1"),
            {"role": "tool", "content": "3", "tool_call_id": "c1"},
        ),
        (
            ToolMessage("no b", tool_call_id="c1", name="add", status="error"),
            {"role": "tool", "content": "Error: no b", "name": "add", "tool_call_id": "c1"},
        ),
        (
            ToolMessage("Error: no b", tool_call_id="c1", status="error"),
            {"role": "tool", "content": "Error: no b", "tool_call_id": "c1"},
        ),
        (
            FunctionMessage(content="3", name="add"),
            {"role": "tool", "content": "3", "name": "add", "tool_call_id": "add"},
        ),
        (ChatMessage(content="Hi", role="developer"), {"role": "developer", "content": "Hi"}),
        (ChatMessage(content="Hi", role="human"), {"role": "user", "content": "Hi"}),
    ],
    ids=lambda value: value.type if isinstance(value, BaseMessage) else "",
)
def test_each_kind_of_message_has_a_translation(message: BaseMessage, expected: Any) -> None:
    assert to_openai([message]) == [expected]
    PromptRequest(to_openai([message]))  # the backend takes it


def test_a_developer_message_of_openai_keeps_its_role() -> None:
    messages = convert_to_messages([{"role": "developer", "content": "Be brief."}])
    assert to_openai(messages) == [{"role": "developer", "content": "Be brief."}]


def test_text_blocks_are_joined_and_thoughts_left_out() -> None:
    message = AIMessage(
        [
            {"type": "thinking", "thinking": "hm", "signature": "x"},
            {"type": "reasoning", "reasoning": "hm"},
            {"type": "text", "text": "So "},
            "it is.",
        ]
    )
    assert to_openai([message]) == [{"role": "assistant", "content": "So it is."}]


def test_reasoning_and_provenance_never_enter_the_prompt() -> None:
    message = AIMessage(
        "Paris.",
        additional_kwargs={"reasoning_content": "SECRET"},
        response_metadata={"guard": {"served_model": "SECRET"}, "model_name": "SECRET"},
    )
    assert "SECRET" not in json.dumps(to_openai([message]))


def test_a_tool_call_is_sent_once_whether_in_blocks_or_beside_them() -> None:
    blocks: list[Any] = [
        {"type": "text", "text": "Let me add."},
        {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}},
    ]
    both = AIMessage(copy.deepcopy(blocks), tool_calls=[CALL])
    blocks_only = AIMessage(copy.deepcopy(blocks))
    standard = AIMessage([{"type": "text", "text": "Let me add."}, CALL], tool_calls=[CALL])
    for message in (both, blocks_only, standard):
        assert to_openai([message]) == [
            {"role": "assistant", "content": "Let me add.", "tool_calls": [SENT]}
        ]


def test_a_call_that_could_not_be_read_is_shown_as_it_was_written() -> None:
    broken = AIMessage(
        "Well.", invalid_tool_calls=[{"name": None, "args": "{oops", "id": None, "error": "x"}]
    )
    assert to_openai([broken]) == [{"role": "assistant", "content": "Well.\n{oops"}]


def test_tool_results_of_anthropics_form_become_messages_of_their_own() -> None:
    message = HumanMessage(
        [
            {
                "type": "tool_result",
                "tool_use_id": "c1",
                "content": [{"type": "text", "text": "green"}],
            },
            {"type": "tool_result", "tool_use_id": "c2", "content": "bad", "is_error": True},
            {"type": "text", "text": "And now?"},
        ]
    )
    assert to_openai([message]) == [
        {"role": "tool", "content": "green", "tool_call_id": "c1"},
        {"role": "tool", "content": "Error: bad", "tool_call_id": "c2"},
        {"role": "user", "content": "And now?"},
    ]
    alone = HumanMessage([{"type": "tool_result", "tool_use_id": "c1", "content": "green"}])
    assert [m["role"] for m in to_openai([alone])] == ["tool"]


def test_neighbours_of_one_role_become_one_message() -> None:
    messages = [
        SystemMessage("A"),
        SystemMessage("B"),
        HumanMessage("C"),
        HumanMessage("D"),
        AIMessage("E"),
        AIMessage(""),
        HumanMessage("F"),
    ]
    assert to_openai(messages) == [
        {"role": "system", "content": "A\n\nB"},
        {"role": "user", "content": "C\n\nD"},
        {"role": "assistant", "content": "E"},
        {"role": "user", "content": "F"},
    ]


def test_calls_results_and_named_speakers_are_not_joined() -> None:
    messages = [
        HumanMessage("C", name="ann"),
        HumanMessage("D", name="bob"),
        AIMessage("E"),
        AIMessage("", tool_calls=[CALL]),
        ToolMessage("1", tool_call_id="c1"),
        ToolMessage("2", tool_call_id="c2"),
    ]
    assert len(to_openai(messages)) == 6


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ([{"type": "image_url", "image_url": {"url": "data:..."}}], "image_url"),
        ([{"type": "text", "text": "Look"}, {"type": "image", "base64": "x"}], "image"),
        ([{"type": "audio", "base64": "x"}], "audio"),
        ([{"type": "text"}], "text"),
    ],
)
def test_what_is_no_text_is_refused_by_name_and_place(content: Any, word: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"messages\[1\].*'{word}'"):
        to_openai([SystemMessage("S"), HumanMessage(content)])


def test_a_message_for_the_graph_only_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="RemoveMessage"):
        to_openai([RemoveMessage(id="1")])


def test_the_callers_messages_are_not_changed() -> None:
    messages: list[BaseMessage] = [
        HumanMessage("C"),
        HumanMessage([{"type": "text", "text": "D"}]),
        AIMessage([{"type": "thinking", "thinking": "hm"}], tool_calls=[CALL]),
        ToolMessage("x", tool_call_id="c1", status="error"),
    ]
    before = [message.model_dump() for message in messages]
    dialogue = to_openai(messages)
    dialogue[0]["content"] = "changed"
    assert [message.model_dump() for message in messages] == before
    assert len(messages) == 4


def test_what_could_not_be_read_as_a_call_is_none_by_its_block_either() -> None:
    block = {"type": "tool_use", "name": "add", "input": {}, "id": "c1"}
    unread: Any = {"name": "add", "args": '{"a": ', "id": "c1", "error": None}
    answer = AIMessage([block], invalid_tool_calls=[{"type": "invalid_tool_call", **unread}])
    assert to_openai([answer]) == [{"role": "assistant", "content": '{"a": '}]
