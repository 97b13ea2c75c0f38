"""Server-sent events: headers at once, comments by the clock, an end on every path."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from sse_starlette import ServerSentEvent
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .calls import Pieces
from .ending import Ending
from .errors import HTTPError, http_error
from .presence import until_gone

HEADERS = {"cache-control": "no-store", "connection": "keep-alive", "x-accel-buffering": "no"}


def event(
    data: Mapping[str, Any], name: str | None = None, *, comment: str | None = None
) -> ServerSentEvent:
    """One event of a stream.

    Args:
        data: becomes JSON.
        name: of its kind, for the APIs that have one.
        comment: for people; clients do not see it.
    """
    return ServerSentEvent(data=compact(data), event=name, comment=comment, sep="\n")


def compact(data: Any) -> str:
    """JSON on one line."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


async def until_error(
    pieces: Pieces,
    events: AsyncIterator[ServerSentEvent],
    last: Callable[[HTTPError], ServerSentEvent],
) -> AsyncIterator[ServerSentEvent]:
    """A stream whose headers are sent: what is raised in it becomes its last event."""
    async with pieces:
        try:
            async for one in events:
                yield one
        except Exception as error:
            yield last(http_error(error))


def _comment(words: str) -> ServerSentEvent:
    return ServerSentEvent(comment=words, sep="\n")


class Events(Response):
    """A stream of events, and beats by the clock, until its end or that of its client.

    Args:
        events: what is sent.
        heartbeat: seconds from one beat to the next.
        headers: known at the beginning.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[ServerSentEvent],
        *,
        heartbeat: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(headers={**(headers or {}), **HEADERS})
        del self.headers["content-length"]
        self._events = events
        self._send: Send
        self._heartbeat = heartbeat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `Response`."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        if scope["method"] != "HEAD":  # its body is left out, but its end is waited for
            self._send = send
            await until_gone(
                receive, self._send_all(), heartbeat=self._heartbeat, beat=self._send_beat
            )
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self) -> None:
        async with aclosing(_generator(self._events)) as events:
            async for event in events:
                await self._send_event(event)

    async def _send_beat(self) -> None:
        event = await self._beat()
        if event is not None:
            await self._send_event(event)

    async def _send_event(self, event: ServerSentEvent) -> None:
        body = event.encode()
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _beat(self) -> ServerSentEvent | None:
        """Shows that it lives; None when there is no need any more."""
        return _comment("still here")


class EventStream(Events):
    """The response to a streamed request.

    Args:
        events: what is sent.
        pieces: what they are made of; closed at the end, however it ends.
        heartbeat: seconds between the beats that tell what it waits for.
        headers: known at the beginning.
        beat: makes an event of these words. Comments are for clients whose patience does
            not depend on events.
    """

    def __init__(
        self,
        events: AsyncIterator[ServerSentEvent],
        pieces: Pieces,
        *,
        heartbeat: float,
        headers: Mapping[str, str],
        beat: Callable[[str], ServerSentEvent] = _comment,
    ) -> None:
        super().__init__(events, heartbeat=heartbeat, headers=headers)
        self._pieces = pieces
        self._told = beat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `Response`."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._pieces.close()

    async def _beat(self) -> ServerSentEvent | None:
        words = await self._pieces.words()
        # Clients wait for the event that ends the answer, and nothing may follow it.
        return None if self._pieces.over else self._told(words)


class OpenStream(Events):
    """The response to somebody who watches, until he goes or the server begins to end.

    Args:
        events: what is sent.
        ending: of the server.
        heartbeat: seconds between the comments that show that it lives.
    """

    def __init__(
        self, events: AsyncIterator[ServerSentEvent], ending: Ending, *, heartbeat: float
    ) -> None:
        super().__init__(_until(events, ending.begins), heartbeat=heartbeat)


def _generator(events: AsyncIterator[ServerSentEvent]) -> AsyncGenerator[ServerSentEvent]:
    """They are all made by generators, which have an end to be closed at."""
    assert isinstance(events, AsyncGenerator)
    return events


async def _until(
    events: AsyncIterator[ServerSentEvent], over: asyncio.Event
) -> AsyncGenerator[ServerSentEvent]:
    stop = asyncio.ensure_future(over.wait())
    try:
        async with aclosing(_generator(events)):
            while not over.is_set():
                turn = asyncio.ensure_future(anext(events, None))
                try:
                    await asyncio.wait([turn, stop], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not turn.done():
                        turn.cancel()
                        await asyncio.wait([turn])
                if turn.cancelled():
                    return
                one = turn.result()
                if one is None:
                    return
                yield one
    finally:
        stop.cancel()
