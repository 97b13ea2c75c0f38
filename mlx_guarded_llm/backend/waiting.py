"""Waiting for a future, in a thread or in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from ..errors import RequestTimeout

T = TypeVar("T")


def wait(future: Future[T], give_up: Callable[[], None], timeout: float | None = None) -> T:
    """Wait for a future; when its caller goes away before it is done, `give_up`.

    Raises:
        RequestTimeout: it took longer than `timeout` seconds.
    """
    try:
        return future.result(timeout)
    except BaseException as error:  # KeyboardInterrupt and a timeout included
        if future.done():
            if isinstance(error, TimeoutError):
                return future.result()  # its own, or it came at the last moment
            raise
        give_up()
        if isinstance(error, TimeoutError):
            raise _too_long(timeout) from None
        raise


async def await_(future: Future[T], give_up: Callable[[], None], timeout: float | None = None) -> T:
    """As `wait`, for asyncio."""
    try:
        async with asyncio.timeout(timeout):
            return await asyncio.wrap_future(future)
    except BaseException as error:  # CancelledError and a timeout included
        if future.done():
            if isinstance(error, TimeoutError):
                return future.result()  # its own, or it came at the last moment
            raise
        give_up()
        if isinstance(error, TimeoutError):
            raise _too_long(timeout) from None
        raise


def _too_long(timeout: float | None) -> RequestTimeout:
    return RequestTimeout(
        f"it took longer than {timeout} s.",
        hint="backend.events() tells what it waited for; raise timeout.",
    )
