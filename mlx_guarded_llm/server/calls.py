"""Asking models for a client, for as long as it is there.

`whole` gives whole answers, `Pieces` the pieces of answers as they come. Both end their
requests when the client goes away or the server ends, on every path.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Self, cast, get_args

from starlette.requests import Request

from ..guard import Priority
from ..models import Progress
from ..results import Chunk, Result
from .context import Context
from .ending import shutting_down
from .errors import refused
from .guard import asked_headers, expected_headers
from .models import ServedModel
from .observing import Seen, observed
from .presence import while_there
from .waiting import Waiting

DEADLINE = "x-guard-deadline"  # seconds
PRIORITY = "x-guard-priority"  # "interactive" or "batch"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One prompt for one model.

    Attributes:
        prompt: as `GuardedLLM.generate` takes it.
        options: as well.
        request_id: its name in the record.
        timeout: seconds for everything; None leaves it to the settings.
    """

    model: ServedModel
    prompt: str | Sequence[Mapping[str, Any] | int]
    request_id: str
    options: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "timeout": self.timeout,
            "request_id": self.request_id,
            **self.options,
        }


def deadline(request: Request) -> float | None:
    """How long the client is ready to wait, in seconds, if it says so.

    Raises:
        HTTPError: its header is no number.
    """
    text = request.headers.get(DEADLINE)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise refused(f"{DEADLINE} is {text[:80]!r}; it must be seconds.", param=DEADLINE)
    return seconds


def priority(request: Request) -> Priority | None:
    """Whether the client lets others go first, if it says so.

    Raises:
        HTTPError: its header is no priority.
    """
    text = request.headers.get(PRIORITY)
    for known in get_args(Priority):
        if text == known:
            return cast(Priority, known)
    if text is None:
        return None
    raise refused(
        f"{PRIORITY} is {text[:80]!r}; it must be {' or '.join(get_args(Priority))}.",
        param=PRIORITY,
    )


async def whole(request: Request, questions: Sequence[Question]) -> list[Result]:
    """The answers to some questions, or the first error.

    Raises:
        GuardedLLMError: as `GuardedLLM.generate` raises it.
        HTTPError: the server ends.
        ClientDisconnect: nobody is there to be answered.
    """
    return await while_there(request, _together(request, questions, priority(request)))


class Pieces:
    """The pieces of the answers to some questions, each with the place of its question.

    Args:
        request: of the client.
        questions: at least one.
    """

    def __init__(self, request: Request, questions: Sequence[Question]) -> None:
        first, goes = questions[0], priority(request)
        self._context = Context.of(request)
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[tuple[int, Chunk] | Progress | BaseException | None]
        self._items = asyncio.Queue()
        self._first: tuple[int, Chunk] | Progress | BaseException | None = None
        self._open = len(questions)
        self._asked = asked_headers(first.request_id, first.model.name)
        self.waiting = Waiting(self._context.backend, first.request_id, first.model.name)
        streams = [
            question.model.llm.astream(
                **question.arguments, priority=goes, on_progress=self._progress
            )
            for question in questions
        ]
        self._waits = True
        self._tasks: set[asyncio.Task[None]] = set()
        for place, (question, stream) in enumerate(zip(questions, streams, strict=True)):
            task = asyncio.ensure_future(self._pump(place, question, stream))
            self._tasks.add(task)
            # A task keeps the error that cancelled it, whose frames keep this object. Kept here
            # in turn, all of it would wait for a collection that holds up every stream.
            task.add_done_callback(self._tasks.discard)
        self._context.ending.when_over(self._end)

    async def begin(self) -> None:
        """Wait a little for an error that has a status of its own.

        Not while a model is fetched or loaded: then the client is to see that it waits.

        Raises:
            GuardedLLMError: there is one.
            ClientDisconnect: nobody is there to be answered.
        """
        patience = self._context.settings.early_errors
        try:
            self._first = await while_there(self._request, self._early(patience))
            if self._first is None or isinstance(self._first, Progress):
                await self.waiting.look()
        except BaseException:
            self.close()
            raise
        if isinstance(self._first, BaseException):
            self.close()
            raise self._first

    @property
    def headers(self) -> Mapping[str, str]:
        """What is known when the stream begins."""
        left = self.waiting.left
        return self._asked if left is None else self._asked | expected_headers(left)

    async def words(self) -> str:
        """What a heartbeat tells."""
        if self._waits:
            await self.waiting.look()
        return self.waiting.words()

    @property
    def over(self) -> bool:
        """The last piece, or an error, has been taken."""
        return not self._open

    async def __aiter__(self) -> AsyncIterator[tuple[int, Chunk]]:
        item, self._first = self._first, None
        while True:
            if isinstance(item, BaseException):
                self._open = 0
                raise item
            if isinstance(item, tuple):
                self._waits = False
                self._open -= item[1].finish_reason is not None
                yield item
                if self.over:
                    return
            item = await self._items.get()

    def close(self) -> None:
        """Stop what still runs. Harmless when it has ended."""
        for task in self._tasks:
            task.cancel()
        self._context.ending.forget(self._end)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    async def _early(self, patience: float) -> Any:
        try:
            async with asyncio.timeout(patience):
                return await self._items.get()
        except TimeoutError:
            return None

    async def _pump(self, place: int, question: Question, stream: Any) -> None:
        try:
            async with stream:
                with _observed(self._request, question) as seen:
                    async for chunk in stream:
                        self._items.put_nowait((place, chunk))
                        seen.answered(chunk.guard, chunk.usage, chunk.finish_reason)
        except Exception as error:
            self._items.put_nowait(error)

    def _end(self) -> None:
        """The server ends."""
        self._items.put_nowait(shutting_down())

    def _progress(self, progress: Progress) -> None:
        """From another thread."""
        self.waiting.note(progress)
        if not progress.over:
            try:
                self._loop.call_soon_threadsafe(self._items.put_nowait, progress)
            except RuntimeError:  # the loop is closed, so nobody listens
                pass


def _observed(request: Request, question: Question) -> AbstractContextManager[Seen]:
    return observed(
        Context.of(request).tally,
        operation="text_completion" if question.options.get("raw") else "chat",
        model=question.model.name,
        request_id=question.request_id,
        options=question.options,
        headers=request.headers,
    )


async def _answer(request: Request, question: Question, goes: Priority | None) -> Result:
    with _observed(request, question) as seen:
        result = await question.model.llm.agenerate(**question.arguments, priority=goes)
        seen.answered(result.guard, result.usage, result.finish_reason)
        return result


async def _together(
    request: Request, questions: Sequence[Question], goes: Priority | None
) -> list[Result]:
    if len(questions) == 1:
        return [await _answer(request, questions[0], goes)]
    tasks = [asyncio.ensure_future(_answer(request, question, goes)) for question in questions]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
