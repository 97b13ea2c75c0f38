"""Answers of the backend as LlamaIndex's responses.

The blocks of a message are in the order thinking, text, tool calls. `raw` has `model`
(which one answered), `finish_reason`, `usage` and `guard`, as plain values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.generic_utils import chat_response_to_completion_response
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from mlx_guarded_llm.results import Chunk, InvalidToolCall, Result, TokenLogprob, ToolCall, Usage

from .messages import call_to_openai


def chat_response(result: Result) -> ChatResponse:
    """A whole answer."""
    return ChatResponse(
        message=_message(
            result.reasoning, result.text, result.tool_calls, result.invalid_tool_calls
        ),
        raw=_raw(result, result.invalid_tool_calls),
        logprobs=_logprobs(result.logprobs),
    )


def completion(response: ChatResponse) -> CompletionResponse:
    """The same as the answer of a completion."""
    plain = chat_response_to_completion_response(response)
    plain.logprobs, plain.delta = response.logprobs, response.delta
    return plain


class Cumulative:
    """Turns the pieces of a stream into cumulative responses."""

    def __init__(self) -> None:
        self._reasoning = ""
        self._text = ""
        self._calls: tuple[ToolCall, ...] = ()
        self._invalid: tuple[InvalidToolCall, ...] = ()

    def add(self, chunk: Chunk) -> ChatResponse:
        """All so far, and in `delta` and `logprobs` what is new. The last one has `raw`."""
        self._reasoning += chunk.reasoning
        self._text += chunk.text
        self._calls += chunk.tool_calls
        self._invalid += chunk.invalid_tool_calls
        return ChatResponse(
            message=_message(self._reasoning, self._text, self._calls, self._invalid),
            delta=chunk.text,
            raw=_raw(chunk, self._invalid) if chunk.finish_reason else None,
            logprobs=_logprobs(chunk.logprobs),
            additional_kwargs={"thinking_delta": chunk.reasoning} if chunk.reasoning else {},
        )


def _message(
    reasoning: str, text: str, calls: Sequence[ToolCall], invalid: Sequence[InvalidToolCall]
) -> ChatMessage:
    blocks: list[ContentBlock] = []
    if reasoning:
        blocks.append(ThinkingBlock(content=reasoning))
    if text or not calls:
        blocks.append(TextBlock(text=text))
    blocks += [
        ToolCallBlock(tool_call_id=c.id, tool_name=c.name, tool_kwargs=dict(c.arguments))
        for c in calls
    ]
    extra: dict[str, Any] = {}
    if calls:  # parts of LlamaIndex still look here
        extra["tool_calls"] = [call_to_openai(c.id, c.name, c.arguments) for c in calls]
    if invalid:  # the message alone goes into the history, and the model is to see them
        extra["invalid_tool_calls"] = _as_dicts(invalid)
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=extra)


def _raw(end: Result | Chunk, invalid: Sequence[InvalidToolCall]) -> dict[str, Any]:
    assert end.usage and end.guard, "the end of an answer carries usage and guard"
    raw: dict[str, Any] = {
        "model": end.guard.served_model,
        "finish_reason": end.finish_reason,
        "usage": _usage(end.usage),
        "guard": end.guard.as_dict(),
    }
    if invalid:
        raw["invalid_tool_calls"] = _as_dicts(invalid)
    return raw


def _as_dicts(invalid: Sequence[InvalidToolCall]) -> list[dict[str, str]]:
    return [{"text": call.text, "error": call.error} for call in invalid]


def _usage(usage: Usage) -> dict[str, int] | None:
    if not usage.known:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
    }


def _logprobs(logprobs: Sequence[TokenLogprob]) -> list[list[LogProb]] | None:
    """For each token itself and then its alternatives, best first."""
    if not logprobs:
        return None
    return [
        [LogProb(token=p.text, logprob=p.logprob)]
        + [LogProb(token=text, logprob=value) for i, text, value in p.top if i != p.token]
        for p in logprobs
    ]
