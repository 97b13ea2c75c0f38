"""A deadline for models of other libraries, which have none of their own."""

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
    """Call a blocking function in a thread of its own, and wait a limited time for it.

    Args:
        seconds: how long to wait.
        who: the name of the model, for the error.
        ask: the function; it runs in a copy of the caller's context.

    Raises:
        RequestTimeout: it took longer. It runs on, and its answer is dropped.
    """
    future: Future[T] = Future()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            future.set_result(context.run(ask))
        except BaseException as error:  # raised in the caller's thread
            future.set_exception(error)

    threading.Thread(target=work, name=f"ask-{who}", daemon=True).start()
    try:
        return future.result(min(seconds, threading.TIMEOUT_MAX))
    except TimeoutError:
        if future.done():  # the function raised it
            raise
    raise _late(seconds, who)


async def awithin(seconds: float, who: str, asked: Awaitable[T]) -> T:
    """As `within`, for a coroutine, which is cancelled at the deadline."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await asked
    except TimeoutError:
        if not limit.expired():  # the coroutine raised it
            raise
    raise _late(seconds, who)


def _late(seconds: float, who: str) -> RequestTimeout:
    return RequestTimeout(f"{who} gave no answer in {seconds:.1f} s.")
