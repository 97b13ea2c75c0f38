"""Streams of responses that end their generation when they are left.

LlamaIndex wraps a stream in a generator that tells callback handlers of each response.
A handler that keeps the exception of a stream that was left early keeps, by its
traceback, the stream too. So what ends a generation here does not wait for the garbage
collector.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any, TypeVar

from llama_index.core.base.llms.types import ChatResponse

from mlx_guarded_llm.guarded import AsyncGuardedStream, GuardedStream

from .responses import Growing
from .watch import note, noting_errors

T = TypeVar("T")


def responses(chunks: GuardedStream) -> Iterator[ChatResponse]:
    """What a stream has said so far, after each of its pieces."""
    whole = Growing()
    with noting_errors():
        for chunk in chunks:
            note(chunk.guard)
            yield whole.add(chunk)


async def aresponses(chunks: AsyncGuardedStream) -> AsyncIterator[ChatResponse]:
    """As `responses`, for `async for`."""
    whole = Growing()
    with noting_errors():
        async for chunk in chunks:
            note(chunk.guard)
            yield whole.add(chunk)


def tell(
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
        def told(llm: Any, subject: Any, **kwargs: Any) -> Iterator[T]:
            opened.append(open_(kwargs))
            return shaped(opened[0])

        return _closing(told(llm, subject, **kwargs), opened[0])

    return method


def atell(
    callback: Callable[[Any], Any],
    open_: Callable[[dict[str, Any]], AsyncGuardedStream],
    shaped: Callable[[AsyncGuardedStream], AsyncIterator[T]],
) -> Callable[..., Awaitable[AsyncGenerator[T, None]]]:
    """As `tell`, for `async for`."""

    async def method(llm: Any, subject: Any, **kwargs: Any) -> AsyncGenerator[T, None]:
        opened: list[AsyncGuardedStream] = []

        @callback
        async def told(llm: Any, subject: Any, **kwargs: Any) -> AsyncIterator[T]:
            opened.append(open_(kwargs))
            return shaped(opened[0])

        return _aclosing(await told(llm, subject, **kwargs), opened[0])

    return method


def _closing(told: Generator[T, None, None], stream: GuardedStream) -> Generator[T, None, None]:
    try:
        yield from told
    finally:
        stream.close()


async def _aclosing(
    told: AsyncGenerator[T, None], stream: AsyncGuardedStream
) -> AsyncGenerator[T, None]:
    try:
        async for response in told:
            yield response
    finally:
        await told.aclose()
        await stream.aclose()
