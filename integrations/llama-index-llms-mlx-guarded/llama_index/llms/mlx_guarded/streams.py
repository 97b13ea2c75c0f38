"""Streams of responses that end their generation when they are left.

LlamaIndex wraps a stream in a generator that calls its callback handlers with each response.
A handler may keep the exception of a stream that was left early, and with its traceback the
stream itself. So ending a generation here does not depend on the garbage collector.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any, TypeVar

from llama_index.core.base.llms.types import ChatResponse

from mlx_guarded_llm.fallback import AsyncGuardedStream, GuardedStream

from .responses import Cumulative
from .watch import WatchedCall

T = TypeVar("T")


def responses(chunks: GuardedStream) -> Iterator[ChatResponse]:
    """What a stream has said so far, after each of its pieces."""
    return _responses(chunks, WatchedCall(is_stream=True))


def aresponses(chunks: AsyncGuardedStream) -> AsyncIterator[ChatResponse]:
    """As `responses`, for `async for`."""
    return _aresponses(chunks, WatchedCall(is_stream=True))


def with_callback(
    callback: Callable[[Any], Any],
    open_: Callable[[dict[str, Any]], GuardedStream],
    shaped: Callable[[GuardedStream], Iterator[T]],
) -> Callable[..., Generator[T, None, None]]:
    """A method that streams, with LlamaIndex's callback around it.

    Args:
        callback: `llm_chat_callback()` or `llm_completion_callback()`.
        open_: makes the stream of the method's options.
        shaped: a generator of its responses.
    """

    def method(llm: Any, subject: Any, **kwargs: Any) -> Generator[T, None, None]:
        opened: list[GuardedStream] = []

        @callback
        def method_with_callback(llm: Any, subject: Any, **kwargs: Any) -> Iterator[T]:
            opened.append(open_(kwargs))
            return shaped(opened[0])

        return _closing(method_with_callback(llm, subject, **kwargs), opened[0])

    return method


def awith_callback(
    callback: Callable[[Any], Any],
    open_: Callable[[dict[str, Any]], AsyncGuardedStream],
    shaped: Callable[[AsyncGuardedStream], AsyncIterator[T]],
) -> Callable[..., Awaitable[AsyncGenerator[T, None]]]:
    """As `with_callback`, for `async for`."""

    async def method(llm: Any, subject: Any, **kwargs: Any) -> AsyncGenerator[T, None]:
        opened: list[AsyncGuardedStream] = []

        @callback
        async def method_with_callback(llm: Any, subject: Any, **kwargs: Any) -> AsyncIterator[T]:
            opened.append(open_(kwargs))
            return shaped(opened[0])

        return _aclosing(await method_with_callback(llm, subject, **kwargs), opened[0])

    return method


def _responses(chunks: GuardedStream, call: WatchedCall) -> Iterator[ChatResponse]:
    whole = Cumulative()
    with call.noting_errors():
        for chunk in chunks:
            call.answered(chunk.guard)
            yield whole.add(chunk)


async def _aresponses(chunks: AsyncGuardedStream, call: WatchedCall) -> AsyncIterator[ChatResponse]:
    whole = Cumulative()
    with call.noting_errors():
        async for chunk in chunks:
            call.answered(chunk.guard)
            yield whole.add(chunk)


def _closing(wrapped: Generator[T, None, None], stream: GuardedStream) -> Generator[T, None, None]:
    try:
        yield from wrapped
    finally:
        stream.close()


async def _aclosing(
    wrapped: AsyncGenerator[T, None], stream: AsyncGuardedStream
) -> AsyncGenerator[T, None]:
    try:
        async for response in wrapped:
            yield response
    finally:
        await wrapped.aclose()
        await stream.aclose()
