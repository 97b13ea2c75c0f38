"""What a caller holds while it waits: a future, a stream, or their async twins."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from ..errors import GuardedLLMError
from ..results import Chunk, Collector, Result

T = TypeVar("T")
Item = Chunk | GuardedLLMError
Put = Callable[[Any], None]  # of an item, or of what a `Whole` waits for
Cancel = Callable[[str], None]


def is_last(item: Item) -> bool:
    """Nothing comes after it."""
    return not isinstance(item, Chunk) or item.finish_reason is not None


class Gathered:
    """Collects a whole answer and wakes its caller once, at the end."""

    def __init__(self) -> None:
        self.future: Future[Result] = Future()
        self.future.set_running_or_notify_cancel()  # no cancel() may come between in `put`
        self._collector = Collector()

    def put(self, item: Item) -> None:
        if self.future.done():
            return
        if not isinstance(item, Chunk):
            self.future.set_exception(item)
            return
        self._collector.add(item)
        if is_last(item):
            self.future.set_result(self._collector.result())


class Whole(Generic[T]):
    """Waits for an answer that comes in one piece."""

    def __init__(self) -> None:
        self.future: Future[T] = Future()
        self.future.set_running_or_notify_cancel()  # as in `Gathered`

    def put(self, item: T | GuardedLLMError) -> None:
        if self.future.done():
            return
        if isinstance(item, GuardedLLMError):
            self.future.set_exception(item)
        else:
            self.future.set_result(item)


class Mailbox:
    """What a stream and the backend share. The backend does not hold the stream itself,
    so dropping a stream can end its request.

    Attributes:
        ended: the last item is in it.
    """

    def __init__(self) -> None:
        self.items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self.ended = False

    def put(self, item: Item) -> None:
        """From any thread."""
        self.ended = self.ended or is_last(item)  # a piece may come late
        self.items.put(item)


class AsyncMailbox:
    """The same, for the event loop that runs where it is made."""

    def __init__(self, give_up: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._give_up = give_up
        self.items: asyncio.Queue[Item] = asyncio.Queue()
        self.ended = False

    def put(self, item: Item) -> None:
        """From any thread."""
        self.ended = self.ended or is_last(item)  # a piece may come late
        try:
            self._loop.call_soon_threadsafe(self.items.put_nowait, item)
        except RuntimeError:  # the loop is closed, so nobody listens
            if not self.ended:
                self._give_up()


class Stream:
    """The pieces of an answer as they come.

    Leaving the loop, `close()`, the end of a `with` block and dropping the last
    reference cancel what has not been generated yet.
    """

    def __init__(self, request_id: str, cancel: Cancel) -> None:
        self.request_id = request_id
        self.mail = Mailbox()
        self._cancel = cancel
        self._over = False

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        if self._over:
            raise StopIteration
        try:
            # The backend always ends a request: by its answer, an error or its deadline.
            item = self.mail.items.get()
        except BaseException:  # KeyboardInterrupt: a notebook's stop button
            self.close()
            raise
        self._over = is_last(item)
        if isinstance(item, Chunk):
            return item
        raise item

    def close(self) -> None:
        """Stop the generation at its next token. Harmless when it has ended."""
        if not self._over:
            self._over = True
            if not self.mail.ended:  # its name may be another request's by now
                self._cancel(self.request_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_over", True):
            self.close()


class AsyncStream:
    """The pieces of an answer as they come, without blocking the event loop.

    Ends like `Stream`; cancelling the task that iterates cancels the generation.
    """

    def __init__(self, request_id: str, cancel: Cancel) -> None:
        self.request_id = request_id
        self.mail = AsyncMailbox(lambda: cancel(request_id))
        self._cancel = cancel
        self._over = False

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        if self._over:
            raise StopAsyncIteration
        try:
            item = await self.mail.items.get()
        except BaseException:  # CancelledError
            await self.aclose()
            raise
        self._over = is_last(item)
        if isinstance(item, Chunk):
            return item
        raise item

    async def aclose(self) -> None:
        """Stop the generation at its next token. Harmless when it has ended."""
        if not self._over:
            self._over = True
            if not self.mail.ended:  # its name may be another request's by now
                self._cancel(self.request_id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not getattr(self, "_over", True) and not self.mail.ended:
            self._cancel(self.request_id)
