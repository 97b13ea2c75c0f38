"""Messages of LlamaIndex in the form that the backend takes, and back."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.llms.llm import ToolSelection
from llama_index.llms.mlx_guarded.messages import from_openai, to_openai

from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.request import PromptRequest

CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'},
}


class _Function(BaseModel):
    name: str = "add"
    arguments: str = '{"a": 1, "b": 2}'


class _OpenAICall(BaseModel):
    """As OpenAI's own package has it."""

    id: str = "c1"
    type: str = "function"
    function: _Function = _Function()


def one(message: ChatMessage) -> dict[str, Any]:
    return to_openai([message])[0]


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("system", "system"),
        ("developer", "developer"),
        ("user", "user"),
        ("assistant", "assistant"),
        ("chatbot", "assistant"),
        ("model", "assistant"),
    ],
)
def test_every_role_is_one_the_backend_knows(role: str, expected: str) -> None:
    assert one(ChatMessage(role=role, content="Hi")) == {"role": expected, "content": "Hi"}


@pytest.mark.parametrize("role", ["tool", "function"])
def test_the_answer_of_a_tool_names_its_call(role: str) -> None:
    message = ChatMessage(role=role, content="3", additional_kwargs={"tool_call_id": "c1"})
    assert one(message) == {"role": "tool", "content": "3", "tool_call_id": "c1"}


def test_an_answer_of_a_tool_without_its_call_is_refused_by_the_backend() -> None:
    with pytest.raises(InvalidRequest, match="without the tool_call_id"):
        PromptRequest(to_openai([ChatMessage(role="tool", content="3")]))


def test_the_older_role_of_a_result_has_a_name_where_ids_stand_now() -> None:
    message = ChatMessage(role="function", content="3", additional_kwargs={"name": "add"})
    assert one(message) == {"role": "tool", "content": "3", "tool_call_id": "add", "name": "add"}
    PromptRequest([{"role": "user", "content": "1 + 2?"}, one(message)])
    with pytest.raises(InvalidRequest, match="without the tool_call_id"):
        PromptRequest(to_openai([ChatMessage(role="function", content="3")]))


def test_a_call_that_could_not_be_read_is_shown_as_it_was_written() -> None:
    broken = {"invalid_tool_calls": [{"text": "{oops", "error": "cut off"}]}
    for text, said in (("Well.", "Well.\n{oops"), ("", "{oops"), (None, "{oops")):
        message = ChatMessage(role="assistant", content=text, additional_kwargs=broken)
        assert one(message) == {"role": "assistant", "content": said}


def test_text_blocks_are_joined_as_llama_index_joins_them() -> None:
    message = ChatMessage(role="user", blocks=[TextBlock(text="a"), TextBlock(text="b")])
    assert one(message)["content"] == message.content == "a\nb"


def test_thinking_and_metadata_never_enter_a_prompt() -> None:
    message = ChatMessage(
        role="assistant",
        blocks=[ThinkingBlock(content="hmm"), TextBlock(text="Yes.")],
        additional_kwargs={"guard": {"degraded": ["loop"]}, "thinking_delta": "hmm"},
    )
    assert one(message) == {"role": "assistant", "content": "Yes."}


def test_a_hint_about_caching_is_left_out() -> None:
    blocks = [TextBlock(text="Hi"), CachePoint(cache_control=CacheControl(type="ephemeral"))]
    assert one(ChatMessage(role="user", blocks=blocks))["content"] == "Hi"


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param([CALL], id="openai mapping"),
        pytest.param([{**CALL, "function": _Function().model_dump()}], id="mapping"),
        pytest.param([_OpenAICall()], id="openai object"),
        pytest.param(
            [ToolSelection(tool_id="c1", tool_name="add", tool_kwargs={"a": 1, "b": 2})],
            id="selection",
        ),
    ],
)
def test_tool_calls_of_older_agents_are_understood(calls: list[Any]) -> None:
    message = ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": calls})
    assert one(message)["tool_calls"] == [CALL]


def test_arguments_of_older_calls_may_be_a_mapping() -> None:
    call = {"id": "c1", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    message = ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": [call]})
    assert one(message)["tool_calls"] == [CALL]


def test_blocks_of_tool_calls_count_for_more_than_the_older_form() -> None:
    message = ChatMessage(
        role="assistant",
        blocks=[
            ToolCallBlock(tool_call_id="c1", tool_name="add", tool_kwargs={"a": 1, "b": 2}),
        ],
        additional_kwargs={"tool_calls": [{**CALL, "id": "other"}]},
    )
    assert one(message) == {"role": "assistant", "content": None, "tool_calls": [CALL]}


def test_arguments_that_are_text_stay_as_they_are() -> None:
    block = ToolCallBlock(tool_call_id="c1", tool_name="add", tool_kwargs='{"a": 1, "b": 2}')
    assert one(ChatMessage(role="assistant", blocks=[block]))["tool_calls"] == [CALL]


def test_an_older_call_without_a_function_is_refused() -> None:
    message = ChatMessage(
        role="assistant", content="", additional_kwargs={"tool_calls": [{"id": "c1"}]}
    )
    with pytest.raises(InvalidRequest, match="a tool call that is a dict"):
        to_openai([message])


@pytest.mark.parametrize(
    ("block", "kind"),
    [(ImageBlock(image=b"x"), "image"), (AudioBlock(audio=b"x"), "audio")],
)
def test_a_block_that_is_no_text_is_refused_by_name(block: Any, kind: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"messages\[1\] has a block of type '{kind}'"):
        to_openai([ChatMessage("Hi"), ChatMessage(role="user", blocks=[block])])


@pytest.mark.parametrize("messages", ["Hi", None, 3])
def test_what_is_no_list_of_messages_is_refused(messages: Any) -> None:
    with pytest.raises(InvalidRequest, match="it must be a list of ChatMessages"):
        to_openai(messages)


def test_an_item_that_is_no_message_is_refused() -> None:
    mapping: Any = {"role": "user", "content": "Hi"}
    with pytest.raises(InvalidRequest, match=r"messages\[0\] is a dict"):
        to_openai([mapping])


def test_the_callers_messages_are_only_read() -> None:
    messages = [
        ChatMessage(role="user", content="Hi"),
        ChatMessage(
            role="assistant",
            blocks=[ThinkingBlock(content="hmm"), TextBlock(text="Yes.")],
            additional_kwargs={"tool_calls": [dict(CALL)]},
        ),
    ]
    before = [message.model_dump_json() for message in messages]
    plain = to_openai(messages)
    plain[1]["tool_calls"][0]["function"]["name"] = "changed"
    assert [message.model_dump_json() for message in messages] == before


def test_there_and_back_is_the_same_conversation() -> None:
    messages = [
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content="1 + 2?"),
        ChatMessage(
            role="assistant",
            blocks=[
                TextBlock(text="I add."),
                ToolCallBlock(tool_call_id="c1", tool_name="add", tool_kwargs={"a": 1, "b": 2}),
            ],
        ),
        ChatMessage(role="tool", content="3", additional_kwargs={"tool_call_id": "c1"}),
    ]
    plain = to_openai(messages)
    assert to_openai(from_openai(plain)) == plain
    assert [message.role for message in from_openai(plain)] == [m.role for m in messages]


def test_content_in_parts_comes_back_as_blocks() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    (message,) = from_openai([{"role": "user", "content": parts}])
    assert [block.text for block in message.blocks if isinstance(block, TextBlock)] == ["a", "b"]


def test_calls_come_back_once_and_by_name() -> None:
    """Services that want an object refuse a text, and some send both forms if there are two."""
    (message,) = from_openai([{"role": "assistant", "content": None, "tool_calls": [CALL]}])
    (block,) = message.blocks
    assert isinstance(block, ToolCallBlock)
    assert block.tool_kwargs == {"a": 1, "b": 2}
    assert not message.additional_kwargs


def test_neighbours_of_one_role_become_one_message() -> None:
    said = [("system", "A."), ("user", "B."), ("user", "C."), ("assistant", "D.")]
    messages = [ChatMessage(role=role, content=text) for role, text in said]
    assert [(m["role"], m["content"]) for m in to_openai(messages)] == [
        ("system", "A."),
        ("user", "B.\n\nC."),
        ("assistant", "D."),
    ]
    assert [message.content for message in messages] == ["A.", "B.", "C.", "D."]
