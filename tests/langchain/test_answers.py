"""From results and chunks to messages, and back."""

from __future__ import annotations

from functools import reduce
from types import SimpleNamespace
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk

from langchain_mlx_guarded.answers import (
    ChunkTranslator,
    answer_of,
    chat_result,
    cut_off_by,
    result_of,
)
from mlx_guarded_llm.results import (
    Chunk,
    InvalidToolCall,
    Provenance,
    Result,
    TokenLogprob,
    ToolCall,
    Usage,
)

GUARD = Provenance(
    request_id="r1", requested_model="big", served_model="small", fallback=True, queued=0.25
)
LOGPROBS = (TokenLogprob(7, "Hi", -0.5, ((7, "Hi", -0.5), (8, "Ho", -1.5))),)


def whole(**changes: Any) -> Result:
    fields: dict[str, Any] = {
        "text": "Paris.",
        "reasoning": "France, so",
        "tool_calls": (ToolCall("c1", "add", {"a": "é"}),),
        "invalid_tool_calls": (InvalidToolCall('{"name": "add", "arguments": {"a', "cut off"),),
        "logprobs": LOGPROBS,
        "finish_reason": "tool_calls",
        "usage": Usage(10, 4, 6, 2),
        "guard": GUARD,
    }
    return Result(**{**fields, **changes})


def pieces() -> list[Chunk]:
    full = whole()
    return [
        Chunk(reasoning="France, "),
        Chunk(reasoning="so"),
        Chunk(text="Par", logprobs=LOGPROBS),
        Chunk(text="is.", tool_calls=full.tool_calls),
        Chunk(
            tool_calls=(ToolCall("c2", "add", {}),),
            invalid_tool_calls=full.invalid_tool_calls,
            finish_reason="tool_calls",
            usage=full.usage,
            guard=GUARD,
        ),
    ]


def merged() -> AIMessageChunk:
    translate = ChunkTranslator()
    message = reduce(lambda one, other: one + other, (translate(c).message for c in pieces()))
    assert isinstance(message, AIMessageChunk)
    return message


def test_a_whole_answer_has_everything() -> None:
    message = chat_result(whole()).generations[0].message
    assert isinstance(message, AIMessage)
    assert message.content == "Paris."
    assert message.additional_kwargs == {"reasoning_content": "France, so"}
    assert message.tool_calls == [
        {"name": "add", "args": {"a": "é"}, "id": "c1", "type": "tool_call"}
    ]
    assert message.invalid_tool_calls[0]["error"] == "cut off"
    assert message.usage_metadata == {
        "input_tokens": 10,
        "output_tokens": 4,
        "total_tokens": 14,
        "input_token_details": {"cache_read": 6},
        "output_token_details": {"reasoning": 2},
    }
    metadata = message.response_metadata
    assert metadata["model_name"] == "small"
    assert metadata["model_provider"] == "mlx_guarded"
    assert metadata["finish_reason"] == "tool_calls"
    assert metadata["guard"] == GUARD.as_dict()
    assert metadata["logprobs"]["content"][0]["top_logprobs"][1]["token"] == "Ho"
    assert [block["type"] for block in message.content_blocks] == ["reasoning", "text", "tool_call"]


def test_an_answer_without_extras_has_no_empty_ones() -> None:
    plain = whole(reasoning="", logprobs=(), tool_calls=(), invalid_tool_calls=())
    message = chat_result(plain).generations[0].message
    assert message.additional_kwargs == {}
    assert "logprobs" not in message.response_metadata


def test_merged_chunks_say_what_the_whole_answer_says() -> None:
    message, expected = merged(), chat_result(whole()).generations[0].message
    assert isinstance(expected, AIMessage)
    assert message.content == expected.content
    assert message.additional_kwargs == expected.additional_kwargs
    assert message.usage_metadata == expected.usage_metadata
    assert message.response_metadata == expected.response_metadata
    assert message.chunk_position == "last"
    assert [call["id"] for call in message.tool_calls] == ["c1", "c2"]
    assert message.tool_calls[0] == expected.tool_calls[0]


def test_half_a_call_in_a_stream_is_not_mended_into_a_call() -> None:
    message = merged()
    assert len(message.tool_calls) == 2
    assert len(message.invalid_tool_calls) == 1


def test_metadata_and_usage_are_on_the_last_chunk_alone() -> None:
    translate = ChunkTranslator()
    messages = [translate(chunk).message for chunk in pieces()]
    for message in messages[:-1]:
        assert isinstance(message, AIMessageChunk)
        assert message.response_metadata == {}
        assert message.usage_metadata is None
        assert message.chunk_position is None


def test_a_message_becomes_a_result_again() -> None:
    full = whole(logprobs=(), invalid_tool_calls=())
    message = chat_result(full).generations[0].message
    assert isinstance(message, AIMessage)
    assert result_of(message) == full
    assert result_of(AIMessage("x")) is None


def test_what_a_provider_did_not_count_is_told_as_none() -> None:
    message = chat_result(whole(usage=Usage(0, 0))).generations[0].message
    assert isinstance(message, AIMessage) and message.usage_metadata is None
    assert answer_of(message).usage is None


def test_an_object_that_a_client_found_cut_off_is_told_as_that() -> None:
    """OpenAI's raises where a form is cut off; the error holds the answer."""
    error = ValueError("the length limit was reached")
    assert cut_off_by(error) is None
    choice = SimpleNamespace(message=SimpleNamespace(content='{"a'), finish_reason="length")
    usage = SimpleNamespace(prompt_tokens=5, completion_tokens=3, total_tokens=8)
    error.completion = SimpleNamespace(choices=[choice], usage=usage)  # type: ignore[attr-defined]
    answer = cut_off_by(error)
    assert answer is not None and answer.text == '{"a'
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.usage_metadata is not None and answer.usage_metadata["total_tokens"] == 8
