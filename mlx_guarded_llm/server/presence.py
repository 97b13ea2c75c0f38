"""Doing something for as long as a client is there, and the server goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from .context import Context
from .ending import Ending, shutting_down

T = TypeVar("T")
Beat = Callable[[], Awaitable[None]]


async def while_there(request: Request, work: Awaitable[T]) -> T:
    """Do something for as long as the client is there and the server goes on.

    Args:
        request: of the client; its body has been read.
        work: cancelled otherwise.

    Raises:
        ClientDisconnect: nobody is there to be answered.
        HTTPError: the server ends.
    """
    return await until_gone(request.receive, work, ending=Context.of(request).ending)


async def until_gone(
    receive: Receive,
    work: Awaitable[T],
    *,
    ending: Ending | None = None,
    heartbeat: float | None = None,
    beat: Beat | None = None,
) -> T:
    """Do something for as long as the client is there.

    The work runs in the caller's task, and one task beside it watches: with two hundred requests
    under way, each further task of a request adds to how long the garbage collector holds up all.

    Args:
        receive: of the client's request; its body has been read.
        work: cancelled when the client goes.
        ending: of the server, if that cancels it too.
        heartbeat: seconds from one beat to the next.
        beat: called then, beside the work.

    Raises:
        ClientDisconnect: the client went away.
        HTTPError: the server ends.
    """
    scope = asyncio.timeout(None)  # it is over as soon as there is a reason
    works = True

    def leave(_: object = None) -> None:
        if works and not scope.expired():
            scope.reschedule(0)

    watch = asyncio.create_task(_watch(receive, heartbeat, beat))
    try:
        async with scope:
            watch.add_done_callback(leave)
            if ending is not None:
                ending.when_over(leave)
            try:
                return await work
            finally:
                works = False  # what the watch has seen by now comes too late
                if ending is not None:
                    ending.forget(leave)
    except TimeoutError:
        if not scope.expired():  # it is the work's own
            raise
        if not watch.done():
            raise shutting_down() from None
        watch.result()  # raises what the beat raised
        raise ClientDisconnect from None
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def _watch(receive: Receive, heartbeat: float | None, beat: Beat | None) -> None:
    """Ends when the client goes away. Until then the heart beats."""
    while True:
        try:
            async with asyncio.timeout(heartbeat):
                while (await receive())["type"] != "http.disconnect":
                    pass
            return
        except TimeoutError:
            if beat is not None:
                await beat()
