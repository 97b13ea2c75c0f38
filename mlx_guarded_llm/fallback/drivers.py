"""Doing what `Attempts.steps` says, in a thread or in an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator

from ..results import Chunk, Result
from .attempts import Ask, Attempts, Open, Pause


def drive(
    attempts: Attempts, open_: Open | None = None, hold_back: float = 0
) -> Generator[Chunk | Result, None, None]:
    """Make the attempts of a call, and give what its caller gets.

    Args:
        attempts: of the call.
        open_: opens a candidate's stream; None gives one `Result`, else there are `Chunk`s,
            and a `Result` in their place where nothing could be passed on before the end.
        hold_back: characters of a stream to keep before the first piece is passed on.

    Raises:
        GuardedLLMError: there is no answer that may be used; see `GuardedLLM`.
    """
    cancelled = threading.Event()
    attempts.wake = cancelled.set
    steps = attempts.steps(open_, hold_back)
    step = next(steps, None)
    while step is not None:
        if isinstance(step, (Chunk, Result)):
            yield step
            step = next(steps, None)
            continue
        try:
            reply = None
            if isinstance(step, Ask):
                reply = step.candidate.generate(step.call)
            elif isinstance(step, Pause):
                cancelled.wait(step.seconds)
            else:
                reply = next(step.stream, None)
        except Exception as error:
            step = steps.throw(error)
        else:
            step = steps.send(reply)


async def adrive(
    attempts: Attempts, open_: Open | None = None, hold_back: float = 0
) -> AsyncGenerator[Chunk | Result, None]:
    """As `drive`, without blocking the event loop."""
    loop, cancelled = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(cancelled.set)
        except RuntimeError:  # the loop is closed, so nobody pauses
            pass

    attempts.wake = wake
    steps = attempts.steps(open_, hold_back)
    step = next(steps, None)
    while step is not None:
        if isinstance(step, (Chunk, Result)):
            yield step
            step = next(steps, None)
            continue
        try:
            reply = None
            if isinstance(step, Ask):
                reply = await step.candidate.agenerate(step.call)
            elif isinstance(step, Pause):
                await _pause(cancelled, step.seconds)
            else:
                reply = await anext(step.stream, None)
        except Exception as error:
            step = steps.throw(error)
        else:
            step = steps.send(reply)


async def _pause(cancelled: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await cancelled.wait()
    except TimeoutError:
        pass
