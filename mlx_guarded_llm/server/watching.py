"""What happens here, for who may know, and an end to it.

`/metrics`, `/guard/events`, `/guard/requests/{id}` and `/guard/cancel`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..errors import GuardedLLMError, InvalidRequest
from ..record import Event, explain
from ..record.events import as_dict, is_attempt
from .api import Api
from .bodies import read_body
from .context import Context, check_admin
from .errors import HTTPError, refused
from .events import OpenStream, compact
from .following import follow, mark_of, position_of
from .openai.errors import OpenAIError, error_body


class Cancel(BaseModel):
    """The body: a request."""

    request_id: str


async def metrics(request: Request) -> Response:
    """The metrics in Prometheus' text format."""
    check_admin(request)
    context = Context.of(request)
    try:
        context.tally.show(await context.backend.ahealth())
    except GuardedLLMError:
        pass  # nothing decides any more: the gauges stay as they were, and /health tells
    context.tally.catch_up()
    return Response(generate_latest(context.tally.registry), media_type=CONTENT_TYPE_LATEST)


async def events(request: Request) -> Response:
    """The record as it grows. One who comes back with `Last-Event-ID` misses nothing."""
    check_admin(request)
    context = Context.of(request)
    _, now = context.backend.record.since(-1)
    position = _position(request, context, now)
    return OpenStream(
        _events(context, position), context.ending, heartbeat=context.settings.heartbeat
    )


async def story(request: Request) -> Response:
    """One request's story in words, with those of its further attempts."""
    check_admin(request)
    name = request.path_params["id"]
    context = Context.of(request)
    told = await asyncio.to_thread(_story, context, name)
    wait = await context.backend.aexpected_wait(name)
    expected = {} if wait is None else {"expected_wait_seconds": round(wait, 1)}
    return JSONResponse({"request_id": name, "story": told, **expected})


async def cancel(request: Request) -> Response:
    """Stop a request, whoever asked for it."""
    check_admin(request)
    context = Context.of(request)
    body = await read_body(request, Cancel, context.settings.limits)
    attempts = await asyncio.to_thread(lambda: _attempts(context.backend.events(), body.request_id))
    for name in attempts:  # those that have ended are ignored
        context.backend.cancel(name)
    return JSONResponse({"success": True})


async def _events(context: Context, position: int) -> AsyncIterator[ServerSentEvent]:
    async for batch, after in follow(context.backend.record, position):
        for number, event in enumerate(batch, after - len(batch) + 1):
            yield ServerSentEvent(
                data=compact(as_dict(event)),
                event=event.kind,
                id=mark_of(context.run_id, number),
                sep="\n",
            )


def _position(request: Request, context: Context, now: int) -> int:
    """After which event to go on."""
    given = request.headers.get("last-event-id")
    if given is None:
        return 0 if request.query_params.get("from") == "start" else now
    position = position_of(context.run_id, given)
    if position is None:
        raise refused(f"last-event-id is {given[:80]!r}; it is none of this server's.")
    return position


def _story(context: Context, name: str) -> str:
    try:
        return explain(context.backend.events(), name)
    except InvalidRequest:
        raise _unknown(name) from None


def _attempts(record: Iterable[Event], name: str) -> Sequence[str]:
    """The ids of all attempts of a call.

    Raises:
        HTTPError: 404.
    """
    ids = (event.request_id for event in record if event.request_id is not None)
    attempts = list(dict.fromkeys(one for one in ids if is_attempt(one, name)))
    if not attempts:
        raise _unknown(name)
    return attempts


def _unknown(name: str) -> HTTPError:
    return HTTPError(
        404,
        "request_not_found",
        f"the record has no request {name[:200]!r}.",
        hint="It may be mistyped (the header x-guard-request-id has it), or too long ago.",
    )


API = Api(
    routes=[
        Route("/metrics", metrics),
        Route("/guard/events", events),
        Route("/guard/requests/{id:path}", story),
        Route("/guard/cancel", cancel, methods=["POST"]),
    ],
    error=error_body,
    error_body=OpenAIError,
    prefixes=("/metrics", "/guard/"),
    bodies={"/guard/cancel": Cancel},
)
