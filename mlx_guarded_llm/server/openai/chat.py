"""`/v1/chat/completions`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...results import Chunk, Result, Usage
from ..blocks import flagged
from ..bodies import read_body
from ..calls import Pieces, Question, deadline, whole
from ..context import Context, client_of, new_id
from ..errors import refused
from ..events import EventStream, event
from ..guard import guard_headers
from ..models import ServedModel
from ..reasoning import effort_options
from ..sizes import check_sizes
from .requests import ChatRequest
from .shapes import (
    finish_reason,
    logprob_content,
    provenance,
    text_of,
    tool_call,
    until_done,
    usage_of,
)


async def chat(request: Request) -> Response:
    """Answer a conversation."""
    context = Context.of(request)
    context.ending.check()
    body = await read_body(request, ChatRequest, context.settings.limits)
    model = context.models.find(body.model, client_of(request))
    check_sizes(
        context.settings.limits,
        messages=len(body.messages),
        tools=body.tools or (),
        schema=body.response_format.schema_of() if body.response_format else None,
        choices=body.n or 1,
    )
    _check(body)
    questions = await _questions(request, body, model)
    if not body.stream:
        return _answer(questions, await whole(request, questions))
    pieces = Pieces(request, questions)
    await pieces.begin()
    return EventStream(
        until_done(pieces, _events(body, questions, pieces)),
        pieces,
        heartbeat=context.settings.heartbeat,
        headers=pieces.headers,
    )


async def _questions(request: Request, body: ChatRequest, model: ServedModel) -> list[Question]:
    """One question for each choice."""
    name = new_id("chatcmpl")
    options = body.options() | await _reasoning(body, model)
    prompt = [_message(message) for message in body.messages]
    return [
        Question(
            model=model,
            prompt=prompt,
            request_id=f"{name}-{place}" if place else name,
            options=options | {"seed": seed},
            timeout=deadline(request),
        )
        for place, seed in enumerate(body.seeds())
    ]


def _check(body: ChatRequest) -> None:
    """Refuse unsupported tools and contradictory parameters."""
    body.check_stream_options()
    body.check_beginning()
    for tool in body.tools or ():
        if tool.get("type") != "function":
            raise refused(
                f"tools of type {str(tool.get('type'))[:80]!r} are not taken.",
                hint="Only functions are.",
                param="tools",
                code="unsupported_parameter",
            )
    if body.top_logprobs is not None and not body.logprobs:
        raise refused("top_logprobs is given without logprobs.", param="top_logprobs")


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """A message without fields that are null; clients send them for absent values."""
    kept = {name: value for name, value in message.items() if value is not None}
    if "content" in message:
        kept["content"] = message["content"]
    return kept


async def _reasoning(body: ChatRequest, model: ServedModel) -> dict[str, Any]:
    """What an effort means to a model's template."""
    effort = body.reasoning_effort
    if effort is None:
        return {}
    card = await model.card()
    if effort != "none" and card is not None and not card.thinking:
        raise refused(
            f"reasoning_effort is {effort!r}, but {model.name} does not reason.",
            hint="Leave it out.",
            param="reasoning_effort",
            code="unsupported_parameter",
        )
    return effort_options(effort, body.chat_template_kwargs or {})


def _answer(questions: Sequence[Question], results: Sequence[Result]) -> Response:
    first = results[0].guard
    body = {
        "id": questions[0].request_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": first.served_model,
        "system_fingerprint": first.fingerprint,
        "choices": _choices(results),
        "usage": usage_of(result.usage for result in results),
        "guard": first.as_dict(),
    }
    return JSONResponse(body, headers=guard_headers(first))


def _choices(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The choices; if there are several, each has its own provenance."""
    choices = [_choice(place, result) for place, result in enumerate(results)]
    if len(results) > 1:
        for choice, result in zip(choices, results, strict=True):
            choice["guard"] = result.guard.as_dict()
    return choices


def _choice(place: int, result: Result) -> dict[str, Any]:
    text = text_of(result)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": text if text or not result.tool_calls else None,
        "refusal": None,
        **flagged(result.invalid_tool_calls),
    }
    if result.reasoning:
        message["reasoning_content"] = result.reasoning
    if result.tool_calls:
        message["tool_calls"] = [tool_call(call) for call in result.tool_calls]
    return {
        "index": place,
        "message": message,
        "logprobs": logprob_content(result.logprobs),
        "finish_reason": finish_reason(result.finish_reason),
    }


async def _events(
    body: ChatRequest, questions: Sequence[Question], pieces: Pieces
) -> AsyncIterator[ServerSentEvent]:
    head: dict[str, Any] = {
        "id": questions[0].request_id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": questions[0].model.name,
    }
    choices = [_ChoiceStream(place) for place in range(len(questions))]
    usages: dict[int, Usage] = {}
    async for place, chunk in pieces:
        for choice in choices[place].choices(chunk):
            data = {**head, "choices": [choice]}
            if choice["finish_reason"] is not None and chunk.guard is not None:
                data |= provenance(chunk.guard)
            if body.wants_usage:
                data["usage"] = None
            yield event(data)
        if chunk.usage is not None:
            usages[place] = chunk.usage
    if body.wants_usage:
        yield event({**head, "choices": [], "usage": usage_of(usages.values())})


class _ChoiceStream:
    """One choice of a stream."""

    def __init__(self, place: int) -> None:
        self._place = place
        self._begun = False
        self._calls = 0

    def choices(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """The entries of the events for a chunk; each has one tool call at most."""
        if not self._begun:
            self._begun = True
            yield self._choice({"role": "assistant", "content": ""})
        if chunk.reasoning:
            yield self._choice({"reasoning_content": chunk.reasoning})
        text = text_of(chunk)
        if text or chunk.logprobs:
            delta = {"content": text, **flagged(chunk.invalid_tool_calls)}
            yield {**self._choice(delta), "logprobs": logprob_content(chunk.logprobs)}
        for call in chunk.tool_calls:
            yield self._choice({"tool_calls": [{"index": self._calls, **tool_call(call)}]})
            self._calls += 1
        if chunk.finish_reason is not None:
            reason = finish_reason(chunk.finish_reason)
            yield {**self._choice({}), "finish_reason": reason}

    def _choice(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": self._place, "delta": delta, "logprobs": None, "finish_reason": None}
