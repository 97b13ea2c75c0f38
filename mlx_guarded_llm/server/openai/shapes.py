"""Parts of responses that several of OpenAI's endpoints share."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

from sse_starlette import ServerSentEvent

from ...results import Chunk, FinishReason, Provenance, Result, TokenLogprob, ToolCall, Usage
from ..calls import Pieces
from ..events import event, until_error
from .errors import error_body

# Finish reasons unknown to OpenAI's API; `guard.degraded` has the real one.
_REASONS: Mapping[FinishReason, str] = {"cancelled": "stop", "other": "stop"}
DONE = ServerSentEvent(data="[DONE]", sep="\n")


def until_done(
    pieces: Pieces, events: AsyncIterator[ServerSentEvent]
) -> AsyncIterator[ServerSentEvent]:
    """The events of a stream, then `[DONE]`; or an error event if it fails."""
    return until_error(pieces, _done(events), lambda error: event(error_body(error)))


async def _done(events: AsyncIterator[ServerSentEvent]) -> AsyncIterator[ServerSentEvent]:
    async for one in events:
        yield one
    yield DONE


def finish_reason(reason: FinishReason) -> str:
    """The finish reason as OpenAI's API names it."""
    return _REASONS.get(reason, reason)


def provenance(guard: Provenance) -> dict[str, Any]:
    """Who answered, for the last chunk of a stream; the first say only who was asked."""
    return {
        "model": guard.served_model,
        "system_fingerprint": guard.fingerprint,
        "guard": guard.as_dict(),
    }


def usage_of(usages: Iterable[Usage], prompts: int = 1) -> dict[str, Any]:
    """The usage of the answers to some prompts.

    Args:
        usages: of all answers, grouped by prompt.
        prompts: how many there are; a prompt with several answers counts once.
    """
    each = list(usages)
    firsts = each[:: max(1, len(each) // prompts)]
    prompt = sum(usage.prompt_tokens for usage in firsts)
    completion = sum(usage.completion_tokens for usage in each)
    accepted = sum(usage.accepted_tokens for usage in each)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in firsts)},
        "completion_tokens_details": {
            "reasoning_tokens": sum(usage.reasoning_tokens for usage in each),
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": sum(usage.drafted_tokens for usage in each) - accepted,
        },
    }


def tool_call(call: ToolCall) -> dict[str, Any]:
    """A tool call as messages contain it."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def text_of(piece: Chunk | Result) -> str:
    """The text, with the text of invalid tool calls, which must not vanish."""
    return piece.text + "".join(call.text for call in piece.invalid_tool_calls)


def logprob_content(tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """Log probabilities in the format of chat completions."""
    if not tokens:
        return None
    return {
        "content": [
            {
                **_token(token.text, token.logprob),
                "top_logprobs": [_token(text, logprob) for _, text, logprob in token.top],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
