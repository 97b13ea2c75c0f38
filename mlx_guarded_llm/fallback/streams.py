"""Streams of `GuardedLLM`: it retries until the first piece is passed on, and not after that."""

from __future__ import annotations

from typing import Self

from ..results import Chunk, Result
from .attempts import Attempts
from .candidate import as_chunk
from .drivers import adrive, drive


class GuardedStream:
    """The pieces of an answer, for `for`. The last one carries usage and guard.

    Leaving the loop, `close()`, the end of a `with` block and dropping the last
    reference stop the generation. Nothing that runs it holds the stream itself.
    """

    def __init__(self, attempts: Attempts, hold_back: float) -> None:
        self.request_id = attempts.call.request_id
        self._attempts = attempts
        self._pieces = drive(attempts, lambda candidate, call: candidate.stream(call), hold_back)
        self._over = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        if self._over:
            raise StopIteration
        try:
            return _chunk(next(self._pieces))
        except BaseException:
            self._over = True
            raise

    def close(self) -> None:
        """Stop at the next token. Harmless when it has ended."""
        self._over = True
        self._attempts.cancel()
        if self._attempts.stream is not None:
            self._attempts.stream.close()
        try:
            self._pieces.close()
        except ValueError:  # another thread is reading, and sees the end soon
            pass

    def cancel(self) -> None:
        """As `close`, but the stream still gives its last piece. From any thread."""
        self._attempts.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncGuardedStream:
    """The pieces of an answer, for `async for`; ends like `GuardedStream`.

    Cancelling the task that iterates stops the generation.
    """

    def __init__(self, attempts: Attempts, hold_back: float) -> None:
        self.request_id = attempts.call.request_id
        self._attempts = attempts
        self._pieces = adrive(attempts, lambda candidate, call: candidate.astream(call), hold_back)
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if self._over:
            raise StopAsyncIteration
        try:
            return _chunk(await anext(self._pieces))
        except BaseException:
            self._over = True
            raise

    async def aclose(self) -> None:
        """Stop at the next token. Harmless when it has ended."""
        self._over = True
        self._attempts.cancel()
        if self._attempts.stream is not None:
            await self._attempts.stream.aclose()
        try:
            await self._pieces.aclose()
        except RuntimeError:  # another task is reading, and sees the end soon
            pass

    def cancel(self) -> None:
        """As `aclose`, but the stream still gives its last piece. From any thread."""
        self._attempts.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()


def _chunk(piece: Chunk | Result) -> Chunk:
    """A piece of the stream; a whole answer is the only one."""
    return as_chunk(piece) if isinstance(piece, Result) else piece
