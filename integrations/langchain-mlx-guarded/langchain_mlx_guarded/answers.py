"""From results and chunks to LangChain's messages, and from those to results."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from mlx_guarded_llm.results import (
    Chunk,
    FinishReason,
    InvalidToolCall,
    Provenance,
    Result,
    TokenLogprob,
    ToolCall,
    Usage,
)

PROVIDER = "mlx_guarded"


def chat_result(result: Result) -> ChatResult:
    """A whole answer."""
    message = AIMessage(
        content=result.text,
        additional_kwargs=_reasoning(result.reasoning),
        tool_calls=[
            tool_call(name=call.name, args=dict(call.arguments), id=call.id)
            for call in result.tool_calls
        ],
        invalid_tool_calls=[
            invalid_tool_call(name=None, args=call.text, id=None, error=call.error)
            for call in result.invalid_tool_calls
        ],
        usage_metadata=_usage(result.usage),
        response_metadata=_metadata(result, result.logprobs),
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


class ChunkTranslator:
    """Translates the chunks of one stream, in order.

    Metadata and usage go on the last chunk alone: LangChain merges chunks by joining
    strings and refuses to merge numbers that differ.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._logprobs: list[TokenLogprob] = []

    def __call__(self, chunk: Chunk) -> ChatGenerationChunk:
        self._logprobs += chunk.logprobs
        message = AIMessageChunk(
            content=chunk.text,
            additional_kwargs=_reasoning(chunk.reasoning),
            tool_call_chunks=[
                *(self._call(c.name, dict(c.arguments), c.id) for c in chunk.tool_calls),
                # Its text as a JSON string: that of half a call would be repaired when
                # chunks are merged, and then pass for a call.
                *(self._call(None, c.text, None) for c in chunk.invalid_tool_calls),
            ],
        )
        if chunk.finish_reason is not None:
            message.usage_metadata = _usage(chunk.usage)
            message.response_metadata = _metadata(chunk, self._logprobs)
            message.chunk_position = "last"
        return ChatGenerationChunk(message=message)

    def _call(self, name: str | None, arguments: object, call_id: str | None) -> Any:
        self._calls += 1
        text = json.dumps(arguments, ensure_ascii=False)
        return tool_call_chunk(name=name, args=text, id=call_id, index=self._calls - 1)


def result_of(message: AIMessage, *, model: str, request_id: str) -> Result:
    """The answer of any chat model as a result.

    Args:
        message: what it answered.
        model: the name it goes by.
        request_id: of the attempt.
    """
    metadata = message.response_metadata
    usage = message.usage_metadata or UsageMetadata(input_tokens=0, output_tokens=0, total_tokens=0)
    known = metadata.get("guard")
    guard = Provenance(request_id=request_id, requested_model=model, served_model=model)
    thoughts = (b.get("reasoning", "") for b in message.content_blocks if b["type"] == "reasoning")
    return Result(
        text=str(message.text),
        reasoning="".join(str(thought) for thought in thoughts),
        tool_calls=tuple(
            ToolCall(call["id"] or "", call["name"], call["args"]) for call in message.tool_calls
        ),
        invalid_tool_calls=tuple(
            InvalidToolCall(call["args"] or "", call["error"] or "it cannot be read")
            for call in message.invalid_tool_calls
        ),
        logprobs=(),
        finish_reason=_finish_reason(message),
        usage=Usage(
            prompt_tokens=usage["input_tokens"],
            completion_tokens=usage["output_tokens"],
            cached_tokens=usage.get("input_token_details", {}).get("cache_read", 0),
        ),
        guard=Provenance.from_dict(known) if known else guard,
    )


def _finish_reason(message: AIMessage) -> FinishReason:
    """As OpenAI, Anthropic, Google and Ollama spell it."""
    metadata = message.response_metadata
    names = ("finish_reason", "stop_reason", "stopReason", "done_reason")
    said = next((str(metadata[name]) for name in names if metadata.get(name)), "stop")
    if said.lower() in ("length", "max_tokens", "max_output_tokens"):
        return "length"
    if said == "cancelled":
        return "cancelled"
    return "tool_calls" if message.tool_calls else "stop"


def _reasoning(text: str) -> dict[str, Any]:
    # LangChain makes a reasoning block of this key.
    return {"reasoning_content": text} if text else {}


def _usage(usage: Usage | None) -> UsageMetadata | None:
    if usage is None:
        return None
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
    )


def _metadata(answer: Result | Chunk, logprobs: Iterable[TokenLogprob]) -> dict[str, Any]:
    assert answer.guard is not None, "the last chunk carries its guard"
    metadata: dict[str, Any] = {
        "model_name": answer.guard.served_model,
        "model_provider": PROVIDER,
        "finish_reason": answer.finish_reason,
        "guard": answer.guard.as_dict(),
    }
    if content := [_logprob(token) for token in logprobs]:
        metadata["logprobs"] = {"content": content}
    return metadata


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    """In OpenAI's form, with the token's id besides."""
    return {
        "token": token.text,
        "token_id": token.token,
        "logprob": token.logprob,
        "top_logprobs": [
            {"token": text, "token_id": number, "logprob": logprob}
            for number, text, logprob in token.top
        ],
    }
