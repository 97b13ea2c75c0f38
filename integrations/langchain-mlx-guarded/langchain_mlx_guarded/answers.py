"""Results and chunks as LangChain's messages, and those as results."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from mlx_guarded_llm.fallback.external import ExternalAnswer
from mlx_guarded_llm.fallback.finish_reasons import has_finish_reason
from mlx_guarded_llm.results import (
    Chunk,
    InvalidToolCall,
    Provenance,
    Result,
    TokenLogprob,
    ToolCall,
    Usage,
)

PROVIDER = "mlx_guarded"
# The chat models of these providers always say why an answer ended. An answer that does not
# say it is from a stream that broke off.
_ALWAYS_GIVE_REASON = frozenset(
    {
        "anthropic",
        "azure",
        "deepseek",
        "google_genai",
        "groq",
        "mistral",
        "ollama",
        "openai",
        "xai",
    }
)


def chat_result(result: Result) -> ChatResult:
    """A whole answer."""
    return ChatResult(generations=[ChatGeneration(message=message_of(result))])


def message_of(result: Result) -> AIMessage:
    """A whole answer as a message."""
    return AIMessage(
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
        response_metadata=_metadata(result, result.logprobs, result.invalid_tool_calls),
    )


class ChunkTranslator:
    """Translates the chunks of one stream, in order.

    Metadata and usage go on the last chunk alone: LangChain merges chunks by joining
    strings and refuses to merge numbers that differ.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._logprobs: list[TokenLogprob] = []
        self._unread: list[InvalidToolCall] = []

    def __call__(self, chunk: Chunk) -> ChatGenerationChunk:
        self._logprobs += chunk.logprobs
        self._unread += chunk.invalid_tool_calls
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
            message.response_metadata = _metadata(chunk, self._logprobs, self._unread)
            message.chunk_position = "last"
        return ChatGenerationChunk(message=message)

    def _call(self, name: str | None, arguments: object, call_id: str | None) -> Any:
        self._calls += 1
        text = json.dumps(arguments, ensure_ascii=False)
        return tool_call_chunk(name=name, args=text, id=call_id, index=self._calls - 1)


def answer_of(message: AIMessage, provider: str = "") -> ExternalAnswer:
    """The answer of any chat model, for `ExternalModel.result`.

    Args:
        message: the answer.
        provider: whose it is, as LangChain's traces name it.
    """
    known = message.response_metadata.get("guard")
    sources: tuple[Any, ...] = (message.response_metadata, message.additional_kwargs, message)
    if (
        provider in _ALWAYS_GIVE_REASON
        and not known
        and not has_finish_reason(message.response_metadata)
    ):
        sources = (*sources, {"done": False})
    thoughts = (b.get("reasoning", "") for b in message.content_blocks if b["type"] == "reasoning")
    return ExternalAnswer(
        text=str(message.text),
        reasoning="".join(str(thought) for thought in thoughts),
        tool_calls=tuple(
            ToolCall(call["id"] or "", call["name"], call["args"]) for call in message.tool_calls
        ),
        invalid_tool_calls=tuple(
            InvalidToolCall(call["args"] or "", call["error"] or "it cannot be read")
            for call in message.invalid_tool_calls
        ),
        sources=sources,
        usage=_usage_of(message.usage_metadata),
        guard=Provenance.from_dict(known) if known else None,
    )


def cut_off_by(error: Exception) -> AIMessage | None:
    """The answer in an error of OpenAI's client, which raises when a schema's answer is cut off."""
    completion = getattr(error, "completion", None)
    choices = getattr(completion, "choices", None)
    if completion is None or not choices:
        return None
    counts = completion.usage
    usage = counts and UsageMetadata(
        input_tokens=counts.prompt_tokens,
        output_tokens=counts.completion_tokens,
        total_tokens=counts.total_tokens,
    )
    return AIMessage(
        choices[0].message.content or "",
        response_metadata={"finish_reason": choices[0].finish_reason},
        usage_metadata=usage,
    )


def result_of(message: AIMessage) -> Result | None:
    """The result that one of our own messages was made of; None for any other message."""
    said = answer_of(message)
    if said.guard is None:
        return None
    return Result(
        text=said.text,
        reasoning=said.reasoning,
        tool_calls=said.tool_calls,
        invalid_tool_calls=said.invalid_tool_calls,
        finish_reason=message.response_metadata.get("finish_reason", "stop"),
        usage=said.usage or Usage(0, 0),
        guard=said.guard,
    )


def _usage_of(usage: UsageMetadata | None) -> Usage | None:
    if usage is None:
        return None
    return Usage(
        prompt_tokens=usage["input_tokens"],
        completion_tokens=usage["output_tokens"],
        cached_tokens=usage.get("input_token_details", {}).get("cache_read", 0),
        reasoning_tokens=usage.get("output_token_details", {}).get("reasoning", 0),
    )


def _reasoning(text: str) -> dict[str, Any]:
    # LangChain makes a reasoning block of this key.
    return {"reasoning_content": text} if text else {}


def _usage(usage: Usage | None) -> UsageMetadata | None:
    if usage is None or not usage.known:
        return None
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
        output_token_details=OutputTokenDetails(reasoning=usage.reasoning_tokens),
    )


def _metadata(
    answer: Result | Chunk,
    logprobs: Iterable[TokenLogprob],
    unread: Iterable[InvalidToolCall],
) -> dict[str, Any]:
    assert answer.guard is not None, "the last chunk carries its guard"
    metadata: dict[str, Any] = {
        "model_name": answer.guard.served_model,
        "model_provider": PROVIDER,
        "finish_reason": answer.finish_reason,
        "guard": answer.guard.as_dict(),
    }
    if content := [_logprob(token) for token in logprobs]:
        metadata["logprobs"] = {"content": content}
    # Chunks, when they are merged, keep no reason for a call that cannot be read.
    if invalid := [{"text": call.text, "error": call.error} for call in unread]:
        metadata["invalid_tool_calls"] = invalid
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
