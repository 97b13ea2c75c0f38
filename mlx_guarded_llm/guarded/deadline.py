"""A deadline for models that know none: what a `Candidate` of another library needs."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import TypeVar

from ..errors import RequestTimeout

T = TypeVar("T")


def within(seconds: float, who: str, ask: Callable[[], T]) -> T:
    """Call a blocking function in a thread of its own, and wait for it only so long.

    Args:
        seconds: to wait.
        who: is asked, for the error.
        ask: runs in a copy of the caller's context.

    Raises:
        RequestTimeout: it took longer; it runs on, and its answer is dropped.
    """
    future: Future[T] = Future()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            future.set_result(context.run(ask))
        except BaseException as error:  # it belongs to the caller's thread
            future.set_exception(error)

    threading.Thread(target=work, name=f"ask-{who}", daemon=True).start()
    try:
        return future.result(min(seconds, threading.TIMEOUT_MAX))
    except TimeoutError:
        if future.done():  # its own
            raise
    raise _late(seconds, who)


async def awithin(seconds: float, who: str, asked: Awaitable[T]) -> T:
    """As `within`, for a coroutine, which is cancelled when its time is over."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await asked
    except TimeoutError:
        if not limit.expired():  # its own
            raise
    raise _late(seconds, who)


def _late(seconds: float, who: str) -> RequestTimeout:
    return RequestTimeout(f"{who} gave no answer in {seconds:.1f} s.")
