"""Answers as responses of LlamaIndex."""

from __future__ import annotations

import json
from typing import Any

from llama_index.core.base.llms.types import TextBlock, ThinkingBlock, ToolCallBlock
from llama_index.llms.mlx_guarded.responses import Cumulative, chat_response, completion

from mlx_guarded_llm import Chunk, Provenance, Result, ToolCall, Usage
from mlx_guarded_llm.results import InvalidToolCall, TokenLogprob

GUARD = Provenance(request_id="r", requested_model="big", served_model="small", fallback=True)
CALL = ToolCall("c1", "add", {"a": 1})


def result(**changes: Any) -> Result:
    fields: dict[str, Any] = {
        "text": "42",
        "reasoning": "",
        "tool_calls": (),
        "invalid_tool_calls": (),
        "logprobs": (),
        "finish_reason": "stop",
        "usage": Usage(7, 3, 0, 2),
        "guard": GUARD,
    }
    return Result(**(fields | changes))


def test_blocks_come_in_the_order_thinking_text_calls() -> None:
    response = chat_response(result(reasoning="hmm", tool_calls=(CALL,)))
    kinds = [type(block) for block in response.message.blocks]
    assert kinds == [ThinkingBlock, TextBlock, ToolCallBlock]
    assert response.message.content == "42"
    assert response.message.role == "assistant"


def test_an_empty_answer_has_empty_text_and_a_call_alone_has_none() -> None:
    assert chat_response(result(text="")).message.content == ""
    assert chat_response(result(text="", tool_calls=(CALL,))).message.content is None


def test_calls_are_there_in_the_older_form_too() -> None:
    message = chat_response(result(tool_calls=(CALL,))).message
    (call,) = message.additional_kwargs["tool_calls"]
    assert call == {
        "id": "c1",
        "type": "function",
        "function": {"name": "add", "arguments": '{"a": 1}'},
    }
    assert "tool_calls" not in chat_response(result()).message.additional_kwargs


def test_raw_tells_who_answered_and_at_what_cost() -> None:
    raw: Any = chat_response(result()).raw
    assert raw["model"] == "small"
    assert raw["finish_reason"] == "stop"
    assert raw["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "reasoning_tokens": 2,
    }
    assert raw["guard"]["fallback"] is True
    assert Provenance.from_dict(raw["guard"]) == GUARD
    json.dumps(raw)


def test_the_guard_is_not_in_the_message() -> None:
    # Some chat engines put a message's additional_kwargs into their prompts.
    assert chat_response(result(reasoning="hmm")).message.additional_kwargs == {}


def test_calls_that_cannot_be_read_are_told() -> None:
    raw: Any = chat_response(result(invalid_tool_calls=(InvalidToolCall("{", "cut off"),))).raw
    assert raw["invalid_tool_calls"] == [{"text": "{", "error": "cut off"}]


def test_the_history_keeps_calls_that_cannot_be_read() -> None:
    message = chat_response(result(invalid_tool_calls=(InvalidToolCall("{", "cut off"),))).message
    assert message.additional_kwargs["invalid_tool_calls"] == [{"text": "{", "error": "cut off"}]
    assert "invalid_tool_calls" not in chat_response(result()).message.additional_kwargs


def test_log_probabilities_begin_with_the_token_itself() -> None:
    top = ((5, "b", -0.1), (4, "a", -0.5))
    response = chat_response(result(logprobs=(TokenLogprob(4, "a", -0.5, top),)))
    assert response.logprobs is not None
    ((token, other),) = response.logprobs
    assert (token.token, token.logprob) == ("a", -0.5)
    assert (other.token, other.logprob) == ("b", -0.1)
    assert chat_response(result()).logprobs is None


def test_a_stream_grows_and_tells_what_is_new() -> None:
    growing = Cumulative()
    seen = [
        growing.add(chunk)
        for chunk in (
            Chunk(reasoning="hm"),
            Chunk(reasoning="m"),
            Chunk(text="4"),
            Chunk(text="2", tool_calls=(CALL,)),
            Chunk(finish_reason="tool_calls", usage=Usage(7, 3), guard=GUARD),
        )
    ]
    assert [response.message.content for response in seen] == ["", "", "4", "42", "42"]
    assert [response.delta for response in seen] == ["", "", "4", "2", ""]
    thinking = [response.additional_kwargs.get("thinking_delta") for response in seen]
    assert thinking == ["hm", "m", None, None, None]
    last = seen[-1]
    assert [type(b) for b in last.message.blocks] == [ThinkingBlock, TextBlock, ToolCallBlock]
    assert [response.raw for response in seen[:-1]] == [None] * 4
    assert isinstance(last.raw, dict) and last.raw["guard"]["served_model"] == "small"


def test_earlier_responses_of_a_stream_do_not_change_later() -> None:
    growing = Cumulative()
    first = growing.add(Chunk(text="4"))
    growing.add(Chunk(text="2"))
    assert first.message.content == "4"


def test_a_completion_keeps_what_the_answer_had() -> None:
    top = ((4, "a", -0.5),)
    response = completion(chat_response(result(logprobs=(TokenLogprob(4, "a", -0.5, top),))))
    assert response.text == "42"
    assert isinstance(response.raw, dict) and response.raw["usage"]["total_tokens"] == 10
    assert response.logprobs is not None
