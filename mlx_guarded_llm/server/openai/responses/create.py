"""`POST /v1/responses`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...bodies import read_body
from ...calls import Pieces, Question, deadline, whole
from ...context import Context, client_of, new_id
from ...conversations import Conversation, Item
from ...errors import http_error, refused
from ...events import EventStream, until_error
from ...guard import guard_headers
from ...models import ServedModel
from ...reasoning import effort_options
from ...sizes import check_sizes
from .answer import Answer, fails_in_stream
from .prompt import as_messages
from .requests import ResponseRequest

LONGEST = 2000  # characters of a header; more than some of 8 KiB in all are too much for clients


async def create_response(request: Request) -> Response:
    """Answer a conversation, and keep it for the next turn."""
    context = Context.of(request)
    context.ending.check()
    body = await read_body(request, ResponseRequest, context.settings.limits)
    body.check()
    client = client_of(request).name
    model = context.models.find(body.model, client_of(request))
    earlier = _earlier(context, client, body)
    turn = [_named(context, client, item) for item in body.items]
    left_out = list(body.left_out())
    options = _options(body)
    if body.reasoning is not None and body.reasoning.effort is not None:
        if await _reasons(model):
            options |= effort_options(body.reasoning.effort)
        elif body.reasoning.effort != "none":
            left_out.append("reasoning.effort")
    prompt = as_messages(body.instructions, (*(earlier.items if earlier else ()), *turn))
    check_sizes(
        context.settings.limits,
        messages=len(prompt),
        tools=body.functions(),
        schema=body.schema_of(),
    )
    question = Question(
        model=model,
        prompt=prompt,
        request_id=new_id("resp"),
        options=options,
        timeout=deadline(request),
    )
    answer = Answer(body, question, left_out)
    named = quote(", ".join(left_out), safe=" ,.")[:LONGEST]
    headers = {"x-guard-left-out": named} if left_out else {}

    def keep() -> None:
        if body.store is not False:
            context.conversations.keep(client, earlier, turn, answer.response)

    if not body.stream:
        [result] = await whole(request, [question])
        response = answer.whole(result)
        keep()
        return JSONResponse(response, headers=headers | guard_headers(result.guard))
    pieces = Pieces(request, [question])
    try:
        await pieces.begin()
    except Exception as error:
        if not fails_in_stream(http_error(error)):
            raise
    return EventStream(
        until_error(pieces, _events(answer, pieces, keep), answer.fail),
        pieces,
        heartbeat=context.settings.heartbeat,
        headers={**headers, **pieces.headers},
        beat=answer.beat,
    )


def _options(body: ResponseRequest) -> dict[str, Any]:
    """The options for `GuardedLLM`; None means not given."""
    return {
        "max_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "schema": body.schema_of(),
        "tools": body.functions() or None,
        "tool_choice": body.choice(),
        "parallel_tool_calls": body.parallel_tool_calls,
    }


async def _reasons(model: ServedModel) -> bool:
    card = await model.card()
    return card is None or card.thinking


def _earlier(context: Context, client: str, body: ResponseRequest) -> Conversation | None:
    """The conversation that the request continues, if any."""
    name = body.previous_response_id
    if name is None:
        return None
    earlier = context.conversations.find(name, client)
    if earlier is None:
        raise refused(
            f"there is no response {name[:200]!r}, or it is no longer kept.",
            hint="Send the whole conversation.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return earlier


def _named(context: Context, client: str, item: Item) -> Item:
    """The item; looked up where the client sends only its id."""
    if item.get("type") != "item_reference":
        return item
    name = str(item.get("id"))
    found = context.conversations.item(name, client)
    if found is None:
        raise refused(
            f"there is no item {name[:200]!r}, or it is no longer kept.",
            hint="Send the item itself.",
            param="input",
            code="item_not_found",
        )
    return found


async def _events(
    answer: Answer, pieces: Pieces, keep: Callable[[], None]
) -> AsyncIterator[ServerSentEvent]:
    for one in answer.begin():
        yield one
    async for _, chunk in pieces:
        told_of = list(answer.add(chunk))
        if chunk.finish_reason is not None:
            keep()  # before the client sees the end and continues the conversation
        for one in told_of:
            yield one
