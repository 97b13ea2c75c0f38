"""`/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...results import Chunk, FinishReason, InvalidToolCall, Result, Usage
from ..blocks import Block, Blocks, Step, blocks_of, flagged
from ..bodies import read_body
from ..calls import Pieces, Question, deadline, whole
from ..context import Context, client_of, new_id
from ..events import EventStream, event, until_error
from ..guard import guard_headers
from ..models import ServedModel
from ..presence import while_there
from ..reasoning import effort_options
from ..sizes import check_sizes
from .errors import error_body
from .prompt import as_messages
from .requests import CountRequest, MessageRequest

# The thinking is sent in full, so there is nothing to sign. But clients drop thinking blocks
# without a signature instead of sending them back.
_SIGNATURE = "mlx-guarded-llm"

_REASONS: Mapping[FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
    "cancelled": "end_turn",
    "other": "end_turn",
}


async def create_message(request: Request) -> Response:
    """Answer a conversation."""
    context = Context.of(request)
    context.ending.check()
    body = await read_body(request, MessageRequest, context.settings.limits)
    model = context.models.find(body.model, client_of(request))
    options = await _prompting(context, model, body) | body.sampling()
    question = Question(
        model=model,
        prompt=options.pop("prompt"),
        request_id=new_id("msg"),
        options=options,
        timeout=deadline(request),
    )
    if not body.stream:
        [result] = await whole(request, [question])
        return JSONResponse(_message(question, result), headers=guard_headers(result.guard))
    pieces = Pieces(request, [question])
    await pieces.begin()
    return EventStream(
        until_error(
            pieces, _events(question, pieces), lambda error: event(error_body(error), "error")
        ),
        pieces,
        heartbeat=context.settings.heartbeat,
        headers=pieces.headers,
        beat=lambda words: event({"type": "ping"}, "ping", comment=words),
    )


async def count_tokens(request: Request) -> Response:
    """Count the tokens of a conversation, with the model's own tokenizer and template."""
    context = Context.of(request)
    context.ending.check()
    body = await read_body(request, CountRequest, context.settings.limits)
    model = context.models.find(body.model, client_of(request))
    model.check_local("asked for the tokens of a prompt")
    options = await _prompting(context, model, body)
    options.pop("continue_final_message")  # the start of an answer counts like a whole one
    counting = context.backend.atokens(
        model.name, timeout=deadline(request), **{k: v for k, v in options.items() if v is not None}
    )
    return JSONResponse({"input_tokens": len(await while_there(request, counting))})


async def _prompting(context: Context, model: ServedModel, body: CountRequest) -> dict[str, Any]:
    """The prompt, and the options that shape it."""
    tools = body.functions()
    check_sizes(
        context.settings.limits, messages=len(body.messages), tools=tools, schema=body.schema_of
    )
    options: dict[str, Any] = {
        "prompt": as_messages(body.system, body.messages),
        "tools": tools or None,
        # The client has begun the answer, and the model continues it.
        "continue_final_message": body.messages[-1].get("role") == "assistant" or None,
    }
    if body.tool_choice is not None:
        options["tool_choice"] = body.tool_choice.as_choice()
        if body.tool_choice.disable_parallel_tool_use:
            options["parallel_tool_calls"] = False
    if body.effort is not None:
        card = await model.card()
        if card is None or card.thinking:
            options |= effort_options(body.effort)
    if body.thinking is not None:
        options["thinking"] = body.thinking.as_switch()
    return options


def _message(question: Question, result: Result) -> dict[str, Any]:
    """The body for a whole answer."""
    return {
        **_head(question, result.usage),
        "model": result.guard.served_model,
        "content": [_block(block) for block in blocks_of(result)],
        **_ending(result.finish_reason, result.stop_string),
        "guard": result.guard.as_dict(),
        **flagged(result.invalid_tool_calls),
    }


def _head(question: Question, usage: Usage) -> dict[str, Any]:
    return {
        "id": question.request_id,
        "type": "message",
        "role": "assistant",
        "model": question.model.name,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(usage),
    }


def _ending(reason: FinishReason, stop_string: str) -> dict[str, Any]:
    if stop_string and reason == "stop":
        return {"stop_reason": "stop_sequence", "stop_sequence": stop_string}
    return {"stop_reason": _REASONS[reason], "stop_sequence": None}


def _usage(usage: Usage) -> dict[str, Any]:
    """The usage as Anthropic counts it: cached prompt tokens are not input tokens."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def _block(block: Block) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": _SIGNATURE}
    if block.call is not None:
        call = block.call
        return {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments}
    return {"type": "text", "text": block.text}


async def _events(question: Question, pieces: Pieces) -> AsyncIterator[ServerSentEvent]:
    yield _event({"type": "message_start", "message": _head(question, pieces.waiting.counted())})
    blocks = Blocks()
    invalid: list[InvalidToolCall] = []
    async for _, chunk in pieces:
        for step in blocks.add(chunk):
            for data in _step(step):
                yield _event(data)
        invalid += chunk.invalid_tool_calls
        if chunk.finish_reason is not None:
            yield _event(_last(chunk, chunk.finish_reason) | flagged(invalid))
    yield _event({"type": "message_stop"})


def _step(step: Step) -> list[dict[str, Any]]:
    """The events for a step."""
    block, index = step.block, step.block.place
    if step.what == "begins":
        begun = _block(block)
        if block.call is not None:
            begun["input"] = {}  # the deltas carry it
        elif block.kind == "reasoning":
            begun["signature"] = ""
        return [{"type": "content_block_start", "index": index, "content_block": begun}]
    if step.what == "grows":
        kind, name = {
            "reasoning": ("thinking_delta", "thinking"),
            "text": ("text_delta", "text"),
            "call": ("input_json_delta", "partial_json"),
        }[block.kind]
        return [_delta(index, kind, name, step.text)]
    events = []
    if block.kind == "reasoning":
        events.append(_delta(index, "signature_delta", "signature", _SIGNATURE))
    return [*events, {"type": "content_block_stop", "index": index}]


def _delta(index: int, kind: str, name: str, text: str) -> dict[str, Any]:
    delta = {"type": kind, name: text}
    return {"type": "content_block_delta", "index": index, "delta": delta}


def _last(chunk: Chunk, reason: FinishReason) -> dict[str, Any]:
    data: dict[str, Any] = {
        "type": "message_delta",
        "delta": _ending(reason, chunk.stop_string),
        "usage": _usage(chunk.usage or Usage(0, 0)),
    }
    if chunk.guard is not None:
        data["guard"] = chunk.guard.as_dict()
    return data


def _event(data: Mapping[str, Any]) -> ServerSentEvent:
    return event(data, data["type"])
