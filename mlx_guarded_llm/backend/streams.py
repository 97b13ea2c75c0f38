"""What a caller waits on: a promise of one value, or a stream of chunks; sync and async."""

from __future__ import annotations

import asyncio
import queue
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Generic, Self, TypeVar, cast

from ..display import in_notebook
from ..errors import GuardedLLMError, RequestTimeout
from ..results import Chunk, Collector, Result

T = TypeVar("T")
Item = Chunk | GuardedLLMError
Put = Callable[[Any], None]  # of an item of a stream, or of what a promise is for
Cancel = Callable[[str], None]

STOP_DELAY = 0.3  # seconds, at most, until the stop button of a notebook ends an `await`


def is_last(item: Item) -> bool:
    """Whether it is the last item of its stream."""
    return not isinstance(item, Chunk) or item.finish_reason is not None


def stoppable() -> AbstractContextManager[None]:
    """Let a notebook's stop button end the cell that awaits in the block.

    ipykernel cancels the cell's task from a signal handler, which does not wake the event loop.
    So there the loop does not sleep for long. Elsewhere nothing is done: every token asks.
    """
    return _awake() if in_notebook() else _UNCHANGED


_UNCHANGED = nullcontext()


@contextmanager
def _awake() -> Iterator[None]:
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def wake() -> None:
        nonlocal timer
        timer = loop.call_later(STOP_DELAY, wake)

    wake()
    try:
        yield
    finally:
        timer.cancel()


class Promise(Generic[T]):
    """One value that one caller waits for. It is settled once, from any thread.

    It is not a `Future`: a KeyboardInterrupt may strike its caller between taking the lock of
    a condition and the block that releases it, and whoever settles it would wait forever.
    Here the threads share only queues, which wait in C and are intact after an interrupt.

    Make it where it is waited for: in an event loop, the one that is running there.

    Attributes:
        done: it is settled.
    """

    def __init__(self) -> None:
        self.done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._arrived: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._signal = asyncio.Event()
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None

    def put(self, item: Any) -> None:
        """Settle it: with an error if `item` is one of ours, otherwise with this value."""
        if isinstance(item, GuardedLLMError):
            self.fail(item)
        else:
            self.set(item)

    def set(self, value: T) -> None:
        """Settle it with a value. Only the first time counts."""
        self._settle(value, None)

    def fail(self, error: BaseException) -> None:
        """Settle it with an error. Only the first time counts."""
        self._settle(None, error)

    def wait(self, timeout: float | None = None, *, give_up: Callable[[], None]) -> T:
        """Wait until it is settled.

        Args:
            timeout: seconds; None for any number.
            give_up: called when the caller stops waiting before it is settled.

        Raises:
            RequestTimeout: it took longer than `timeout`.
        """
        try:
            if not self.done:
                self._arrived.get(timeout=timeout)
        except queue.Empty:
            pass
        except BaseException:  # KeyboardInterrupt
            if not self.done:
                give_up()
            raise
        return self._outcome(timeout, give_up)

    async def wait_async(self, timeout: float | None = None, *, give_up: Callable[[], None]) -> T:
        """As `wait`, in the event loop it was made in."""
        try:
            with stoppable():
                async with asyncio.timeout(timeout):
                    await self._signal.wait()
        except TimeoutError:
            pass
        except BaseException:  # CancelledError
            if not self.done:
                give_up()
            raise
        return self._outcome(timeout, give_up)

    def _settle(self, value: T | None, error: BaseException | None) -> None:
        if self.done:
            return
        self._value, self._error = value, error
        self.done = True
        self._arrived.put(None)
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._signal.set)
            except RuntimeError:
                pass  # the loop is closed, so nobody waits

    def _outcome(self, timeout: float | None, give_up: Callable[[], None]) -> T:
        """The value or the error, even if it came at the last moment."""
        if not self.done:
            give_up()
            raise RequestTimeout(
                f"it took longer than {timeout} s.",
                hint="backend.events() tells what it waited for; raise timeout.",
            )
        if self._error is not None:
            raise self._error
        return cast(T, self._value)


class GatheredAnswer(Promise[Result]):
    """A whole answer, collected from its chunks. Its caller wakes once, at the end."""

    def __init__(self) -> None:
        super().__init__()
        self._collector = Collector()

    def put(self, item: Item) -> None:
        """Take the next chunk, or the error that ends the answer."""
        if self.done:
            return
        if not isinstance(item, Chunk):
            self.fail(item)
            return
        self._collector.add(item)
        if is_last(item):
            self.set(self._collector.result())


class Mailbox:
    """What a stream and the backend share.

    The backend does not hold the stream itself, so dropping a stream can end its request.

    Attributes:
        ended: the last item has been put.
    """

    def __init__(self) -> None:
        self.items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self.ended = False

    def put(self, item: Item) -> None:
        """From any thread."""
        self.ended = self.ended or is_last(item)  # a chunk may come after it
        self.items.put(item)


class Postbag:
    """Takes items from other threads into an event loop.

    Waking a loop costs more than all that is done for a token, so the loop is woken once for
    the items that come until it looks: for all streams of a batch, mostly.

    Attributes:
        wakes: how often the loop was woken.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[tuple[asyncio.Queue[Item], Item]] = deque()
        self._woken = False
        self.wakes = 0

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Postbag:
        """The one of this loop. Call it there."""
        bag = _BAGS.get(loop)
        if bag is None:
            bag = _BAGS[loop] = cls(loop)
        return bag

    def put(self, queue: asyncio.Queue[Item], item: Item) -> None:
        """Put an item into a queue of the loop, soon. From any thread.

        Raises:
            RuntimeError: the loop is closed.
        """
        if self._loop.is_closed():
            raise RuntimeError("the event loop is closed")
        self._items.append((queue, item))
        if not self._woken:  # looked at after the item is there, as `_empty` does it the other way
            self._woken = True
            self.wakes += 1
            self._loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        self._woken = False
        while self._items:
            queue, item = self._items.popleft()
            queue.put_nowait(item)


# Lives as long as a mailbox of the loop does.
_BAGS: weakref.WeakValueDictionary[asyncio.AbstractEventLoop, Postbag]
_BAGS = weakref.WeakValueDictionary()


class AsyncMailbox:
    """As `Mailbox`, for the event loop that runs where it is made."""

    def __init__(self, give_up: Callable[[], None]) -> None:
        self._bag = Postbag.of(asyncio.get_running_loop())
        self._give_up = give_up
        self.items: asyncio.Queue[Item] = asyncio.Queue()
        self.ended = False

    def put(self, item: Item) -> None:
        """From any thread."""
        self.ended = self.ended or is_last(item)  # a chunk may come after it
        try:
            self._bag.put(self.items, item)
        except RuntimeError:  # the loop is closed, so nobody listens
            if not self.ended:
                self._give_up()


class Stream:
    """The chunks of an answer as they come.

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
            # The backend ends every request: with an answer, an error or at its deadline.
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
            if not self.mail.ended:  # by now another request may have its id
                self._cancel(self.request_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_over", True):
            self.close()


class AsyncStream:
    """The chunks of an answer as they come, without blocking the event loop.

    It ends like `Stream`. Cancelling the task that iterates cancels the generation.
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
            with stoppable():
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
            if not self.mail.ended:  # by now another request may have its id
                self._cancel(self.request_id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not getattr(self, "_over", True) and not self.mail.ended:
            self._cancel(self.request_id)
