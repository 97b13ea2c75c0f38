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
        if not future.done():
            give_up()
        if not isinstance(error, TimeoutError):
            raise
    return _late(future, timeout)


async def await_(future: Future[T], give_up: Callable[[], None], timeout: float | None = None) -> T:
    """As `wait`, for asyncio."""
    try:
        async with asyncio.timeout(timeout):
            return await asyncio.wrap_future(future)
    except BaseException as error:  # CancelledError and a timeout included
        if not future.done():
            give_up()
        if not isinstance(error, TimeoutError):
            raise
    return _late(future, timeout)


def _late(future: Future[T], timeout: float | None) -> T:
    """After a timeout: what came at the last moment, its own error, or ours."""
    if future.done():
        return future.result()
    raise RequestTimeout(
        f"it took longer than {timeout} s.",
        hint="backend.events() tells what it waited for; raise timeout.",
    )
