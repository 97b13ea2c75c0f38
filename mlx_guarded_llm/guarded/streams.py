"""Streams of `GuardedLLM`: attempts until the first piece is passed on, then no more."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field, replace
from typing import Any, Self

from tenacity import AsyncRetrying, Retrying

from ..results import Chunk, Collector, Result
from .candidate import AsyncChunkStream, Call, ChunkStream, as_chunk
from .course import Course, Outcome, Turn


class Nap:
    """A pause between attempts that can be cut short from any thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self, seconds: float) -> None:
        self._event.wait(seconds)

    def end(self) -> None:
        self._event.set()


class AsyncNap:
    """The same for the event loop in which it is made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            pass

    def end(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:  # the loop is closed, so nobody naps
            pass


@dataclass(eq=False)
class Passage:
    """An attempt's answer on its way to the caller.

    Attributes:
        live: where the rest of it comes from.
        threshold: characters to hold back before the first piece is passed on.
    """

    turn: Turn
    call: Call
    live: Any
    threshold: float
    last: Chunk | None = None
    collector: Collector = field(default_factory=Collector)
    _characters: int = 0

    def add(self, chunk: Chunk) -> bool:
        """Keep a piece. Returns whether it is time to pass on what was held back."""
        self.collector.add(chunk)
        if chunk.finish_reason is not None:
            self.last = chunk
            return False
        arguments = sum(len(str(call.arguments)) for call in chunk.tool_calls)
        self._characters += len(chunk.text) + len(chunk.reasoning) + arguments
        return self._characters > self.threshold

    def held(self) -> list[Chunk]:
        """The pieces so far."""
        return list(self.collector.chunks)

    def result(self) -> Result:
        """The whole answer, once it has ended."""
        return self.collector.result()


class Interruptible:
    """A course, and the pauses between its attempts, that can be cut short together."""

    def __init__(self, course: Course, nap: Nap | AsyncNap) -> None:
        self.course = course
        self.nap: Any = nap

    def cancel(self) -> None:
        """Stop, from any thread."""
        self.course.cancel()
        self.nap.end()


class Passing(Interruptible):
    """What a stream and its generator share.

    The generator holds this and not the stream, so dropping a stream ends its request.
    """

    def __init__(self, course: Course, nap: Nap | AsyncNap, hold_back: float) -> None:
        super().__init__(course, nap)
        self.passage: Passage | None = None  # whose pieces go straight to the caller
        self.live: Any = None
        self._hold_back = hold_back

    def open(self, turn: Turn, call: Call, live: Any) -> Passage:
        """An attempt begins. Only what may be passed on as it is need not be whole."""
        self.live = live
        whole = not (turn.primary or self.course.may_pass_fallback)
        return Passage(turn, call, live, math.inf if whole else self._hold_back)

    def finish(self, passage: Passage) -> Chunk:
        """The last piece of an answer that was passed on, with its provenance."""
        outcome = self.course.judged(passage.turn, passage.call, passage.result())
        assert outcome.result is not None and passage.last is not None
        result = self.course.settle(outcome.result, full=outcome.full)
        return replace(passage.last, guard=result.guard)


class GuardedStream:
    """The pieces of an answer, for `for`. The last one carries usage and guard.

    Leaving the loop, `close()`, the end of a `with` block and dropping the last
    reference stop the generation.
    """

    def __init__(self, course: Course, hold_back: float) -> None:
        self.request_id = course.call.request_id
        self._passing = Passing(course, Nap(), hold_back)
        self._chunks = _chunks(self._passing)
        self._over = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        if self._over:
            raise StopIteration
        try:
            return next(self._chunks)
        except BaseException:
            self._over = True
            raise

    def close(self) -> None:
        """Stop at the next token. Harmless when it has ended."""
        self._over = True
        self._passing.cancel()
        if self._passing.live is not None:
            self._passing.live.close()
        try:
            self._chunks.close()
        except ValueError:  # another thread is reading, and sees the end soon
            pass

    def cancel(self) -> None:
        """As `close`, but the stream still tells its end. From any thread."""
        self._passing.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncGuardedStream:
    """The pieces of an answer, for `async for`; ends like `GuardedStream`.

    Cancelling the task that iterates stops the generation.
    """

    def __init__(self, course: Course, hold_back: float) -> None:
        self.request_id = course.call.request_id
        self._passing = Passing(course, AsyncNap(), hold_back)
        self._chunks = _achunks(self._passing)
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if self._over:
            raise StopAsyncIteration
        try:
            return await anext(self._chunks)
        except BaseException:
            self._over = True
            raise

    async def aclose(self) -> None:
        """Stop at the next token. Harmless when it has ended."""
        self._over = True
        self._passing.cancel()
        if self._passing.live is not None:
            await self._passing.live.aclose()
        try:
            await self._chunks.aclose()
        except RuntimeError:  # another task is reading, and sees the end soon
            pass

    def cancel(self) -> None:
        """As `aclose`, but the stream still tells its end. From any thread."""
        self._passing.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()


def _chunks(passing: Passing) -> Generator[Chunk, None, None]:
    course = passing.course
    for turn in course.turns():
        Retrying(sleep=passing.nap, **course.strategy(turn))(_attempt, passing, turn)
        passage = passing.passage
        if passage is None:
            continue
        yield from passage.held()
        live: ChunkStream = passage.live
        try:
            for chunk in live:
                passage.add(chunk)
                if passage.last is not None:
                    break
                yield chunk
        except turn.candidate.errors as error:
            course.failed(turn, passage.call, error)
            course.broken(error)
        yield passing.finish(passage)
        return
    yield as_chunk(course.conclude())


async def _achunks(passing: Passing) -> AsyncGenerator[Chunk, None]:
    course = passing.course
    for turn in course.turns():
        await AsyncRetrying(sleep=passing.nap, **course.strategy(turn))(_aattempt, passing, turn)
        passage = passing.passage
        if passage is None:
            continue
        for chunk in passage.held():
            yield chunk
        live: AsyncChunkStream = passage.live
        try:
            async for chunk in live:
                passage.add(chunk)
                if passage.last is not None:
                    break
                yield chunk
        except turn.candidate.errors as error:
            course.failed(turn, passage.call, error)
            course.broken(error)
        yield passing.finish(passage)
        return
    yield as_chunk(course.conclude())


def _attempt(passing: Passing, turn: Turn) -> Outcome:
    """Read an answer until it may be passed on, or has ended, or fails."""
    call = None
    try:
        call = passing.course.begin(turn)
        passage = passing.open(turn, call, turn.candidate.stream(call))
        for chunk in passage.live:
            if passage.add(chunk):
                passing.passage = passage
                return Outcome()
    except turn.candidate.errors as error:
        return passing.course.failed(turn, call, error)
    return passing.course.judged(turn, call, passage.result())


async def _aattempt(passing: Passing, turn: Turn) -> Outcome:
    """As `_attempt`."""
    call = None
    try:
        call = passing.course.begin(turn)
        passage = passing.open(turn, call, turn.candidate.astream(call))
        async for chunk in passage.live:
            if passage.add(chunk):
                passing.passage = passage
                return Outcome()
    except turn.candidate.errors as error:
        return passing.course.failed(turn, call, error)
    return passing.course.judged(turn, call, passage.result())
