"""Calls on their way to whoever runs the models: one thread with an event loop, a task each."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import tenacity

from ...errors import (
    BackendClosed,
    GuardedLLMError,
    InvalidRequest,
    ModelError,
    ServerUnavailable,
)
from ...logs import THREAD_PREFIX
from ...models import Progress
from ..streams import Put
from . import frames

AGAIN = 10.0  # seconds in which a server that went away may come back
CLOSING = 5.0  # seconds for calls under way to end


class Calls(ABC):
    """Sends calls, and sends those again whose server went away. From any thread.

    A subclass says how one attempt is made.

    Args:
        place: where they go, for messages.

    Attributes:
        broken: errors of an attempt whose server went away.
    """

    broken: ClassVar[tuple[type[Exception], ...]]

    def __init__(self, place: str) -> None:
        self.place = place
        self._loop = asyncio.new_event_loop()
        self._loop.call_soon(self._open)
        self._outbox = Outbox(self._loop)
        self._under_way: set[Reply] = set()
        self._closed = False
        self._thread = threading.Thread(
            target=self._live, name=f"{THREAD_PREFIX}remote", daemon=True
        )
        self._thread.start()

    @abstractmethod
    def _open(self) -> None:
        """The first that the loop does."""

    @abstractmethod
    async def _shut(self) -> None:
        """The last that the loop does."""

    @abstractmethod
    async def _attempt(self, call: str, content: bytes, reply: Reply) -> None:
        """Send a call once, and have the reply take each frame of what comes.

        Args:
            call: its name.
            content: a `frames.Call`, as it is sent.
            reply: `reply.heard` must be set whenever something comes.

        Raises:
            Exception: one of `broken`, if what comes ended before its end; or an error of ours.
        """

    def _gone(self, why: str, text: str) -> ServerUnavailable:
        """The error of a call whose server went away, and did not come back.

        Args:
            why: in words.
            text: of the answer, as far as it came.
        """
        had = f" {len(text):,} characters of the answer had come." if text else ""
        return ServerUnavailable(
            f"the server at {self.place} does not answer: {why}.{had}",
            text=text,
            hint="Is it running? `mlx-guarded serve` starts one.",
        )

    def send(
        self,
        call: str,
        body: Mapping[str, Any],
        put: Put,
        progress: Callable[[Progress], None] | None = None,
        *,
        patient: bool = True,
        about: Any = None,
    ) -> Callable[[], None]:
        """Begin a call.

        Args:
            call: its name.
            body: fields of `frames.Call`.
            put: gets chunks, the value, or an error of ours that ends it. It gets an end.
            progress: gets that.
            patient: a server that is away may come back.
            about: what attempts are to know of it and nobody is sent; see `Reply.about`.

        Returns:
            What drops the call; the server then ends it, too.
        """
        reply = Reply(call, body, put, progress, self._outbox, about)
        begin = functools.partial(self._begin, call, frames.call_of(body), reply, patient)
        self._under_way.add(reply)
        if not self._soon(begin):
            self._ended(reply)
        return lambda: self._drop(reply)

    def fingerprint(self, request_id: str) -> str:
        """Of the model that answers a request under way; "" if that is not known (any more)."""
        found = (r.fingerprint for r in tuple(self._under_way) if r.request_id == request_id)
        return next(found, "")

    def forsake(self, request_id: str) -> None:
        """Do not send a request again, since nobody wants it any more."""
        for reply in tuple(self._under_way):
            if reply.request_id == request_id:
                reply.wanted = False

    def close(self, *, wait: bool) -> None:
        """End every call that waits.

        Args:
            wait: until the thread has ended.
        """
        self._closed = True
        if self._soon(self._loop.stop) and wait:
            self._thread.join(CLOSING)

    def _live(self) -> None:
        self._loop.run_forever()  # until `close`
        self._loop.run_until_complete(self._end())
        self._outbox.hand_over()
        self._loop.close()
        for reply in tuple(self._under_way):  # the loop has not come to these
            self._ended(reply)

    async def _end(self) -> None:
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        await self._shut()

    def _soon(self, do: Callable[[], object]) -> bool:
        """Have the loop do something, from any thread. Whether it still runs."""
        try:
            self._loop.call_soon_threadsafe(do)
        except RuntimeError:  # it is closed
            return False
        return True

    def _begin(self, call: str, body: bytes, reply: Reply, patient: bool) -> None:
        if self._closed:
            self._ended(reply)
            return
        reply.task = self._loop.create_task(self._work(call, body, reply, patient))
        reply.task.add_done_callback(lambda _: self._ended(reply))

    def _drop(self, reply: Reply) -> None:
        """End a call, which the loop has begun by then."""
        self._soon(lambda: reply.task is not None and reply.task.cancel())

    def _ended(self, reply: Reply) -> None:
        self._under_way.discard(reply)
        reply.end(_closed())

    async def _work(self, call: str, body: bytes, reply: Reply, patient: bool) -> None:
        """One call, sent again where a server went away: it ends those whose client is gone."""
        away = (*self.broken, ServerUnavailable)  # the latter is of one that is about to end
        again = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, away) and reply.can_go_on
            ),
            stop=lambda _: not patient or time.monotonic() - reply.away > AGAIN,
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=1.0),
            reraise=True,
        )
        try:
            await again(self._once, call, body, reply)
        except ServerUnavailable as error:  # it said so itself
            told = ServerUnavailable(error.message, text=reply.text, hint=error.hint)
            told.retry_after = error.retry_after
            reply.end(told)
        except GuardedLLMError as error:
            reply.end(error)
        except self.broken as error:
            reply.end(self._gone(str(error) or type(error).__name__, reply.text))
        except Exception as error:  # a frame that cannot be read
            reply.end(self._gone(f"its reply cannot be read ({error})", reply.text))

    async def _once(self, call: str, first: bytes, reply: Reply) -> None:
        content = frames.call_of(reply.rest()) if reply.attempts else first
        reply.attempts += 1
        reply.moved = False
        try:
            await self._attempt(call, content, reply)
        finally:
            if reply.away < reply.heard:
                reply.away = time.monotonic()


class Outbox:
    """Pieces of answers on their way from the connection's thread to those that wait for them.

    A caller that wakes takes the interpreter's lock from this thread. So the pieces of all
    answers that have arrived together are read first, and then handed over together.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[tuple[Put, Any]] = deque()

    def put(self, put: Put, item: Any) -> None:
        """Hand an item over when all that has arrived is read. On the loop's thread."""
        if not self._items:
            self._loop.call_soon(self.hand_over)
        self._items.append((put, item))

    def hand_over(self) -> None:
        """Hand over what is there. From any thread."""
        while True:
            try:
                put, item = self._items.popleft()
            except IndexError:
                return
            put(item)


class Reply:
    """What has come of the reply to a call.

    Attributes:
        over: it has its end.
        wanted: nobody has cancelled it.
        heard: when the server was last heard, by `time.monotonic()`.
        away: when an attempt first failed since then.
        attempts: how often the call was sent.
        moved: something of the answer has come since it was sent last.
        fingerprint: of the model that answers, once it is known.
        call: its name.
        body: fields of the call.
        about: what else its sender knows of it.
        task: of the loop, once it has begun.
    """

    def __init__(
        self,
        call: str,
        body: Mapping[str, Any],
        put: Put,
        progress: Callable[[Progress], None] | None,
        outbox: Outbox,
        about: Any = None,
    ) -> None:
        self.about = about
        self.request_id = str(body.get("request_id") or "")
        self.over = False
        self.wanted = True
        self.heard = self._began = time.monotonic()
        self.away = 0.0
        self.attempts = 0
        self.moved = False
        self.task: asyncio.Task[None] | None = None
        self._texts: list[str] = []
        self._tokens: list[int] = [*body.get("emitted", ())]
        self._untold = False  # a piece has come without its tokens
        self.fingerprint = str(body.get("fingerprint") or "")
        self.call = call
        self.body = body
        self._put = put
        self._progress = progress
        self._outbox = outbox

    @property
    def text(self) -> str:
        """Of the answer so far."""
        return "".join(self._texts)

    @property
    def can_go_on(self) -> bool:
        """Another server can give what is missing."""
        begun = bool(self._tokens) or self._untold
        return self.wanted and not (self._untold or (begun and not self.fingerprint))

    def rest(self) -> dict[str, Any]:
        """The call for what is missing, in the time that is left."""
        body = dict(self.body)
        if body.get("timeout") is not None:
            body["timeout"] = max(0.0, body["timeout"] - (time.monotonic() - self._began))
        if self._tokens:
            body |= {"emitted": self._tokens, "fingerprint": self.fingerprint}
        return body

    def take(self, frame: frames.Frame) -> None:
        """The next frame.

        Raises:
            ServerUnavailable: the server says that it ends.
        """
        if frame.chunk is not None:
            chunk = frame.chunk
            self.moved = True
            self._texts.append(chunk.text)
            self._tokens += chunk.tokens
            self._untold = self._untold or not chunk.tokens
            self.over = chunk.finish_reason is not None
            self._outbox.put(self._put, chunk)
        elif frame.fingerprint:
            self.fingerprint = frame.fingerprint
        elif frame.progress is not None:
            if self._progress is not None:
                self._progress(frame.progress)
        elif frame.error is not None:
            error = frames.raised(frame.error)
            if isinstance(error, ServerUnavailable):
                raise error
            self.end(self._not_resumed(error) or error)
        elif frame.done:
            self.end(frames.read_value(self.call, frame.value))

    def end(self, item: Any) -> None:
        """The value, or the error that ends it. Only the first end counts."""
        if not self.over:
            self.over = True
            self._outbox.hand_over()  # what comes before it
            self._put(item)

    def _not_resumed(self, error: GuardedLLMError) -> ServerUnavailable | None:
        """What a refusal of another server means for an answer that one had begun."""
        if self.moved or not self._tokens or not isinstance(error, InvalidRequest | ModelError):
            return None
        return ServerUnavailable(
            f"the server went away in the middle of the answer, and cannot go on with it: "
            f"{error.message} {len(self.text):,} characters had come.",
            text=self.text,
            hint=error.hint,
        )


def _closed() -> BackendClosed:
    return BackendClosed("the backend is closed.", hint="Call Backend.connect(url) again.")
