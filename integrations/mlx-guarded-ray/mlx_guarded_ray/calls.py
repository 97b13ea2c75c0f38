"""Calls that go to replicas by a handle of Ray Serve, as those to a server go over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import Context
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from ray.exceptions import ObjectLostError, RayActorError, RpcError, WorkerCrashedError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from mlx_guarded_llm.backend.remote import frames
from mlx_guarded_llm.backend.remote.calls import Calls, Reply
from mlx_guarded_llm.errors import GuardedLLMError, ServerUnavailable
from mlx_guarded_llm.models import LOAD_OPTIONS, ModelCard

from .book import Book, Report
from .gathering import GATHERED, Gathered
from .routing import ROOM, Wanted

ROUTED = ("generate", "embed", "load")  # the calls that need the model in memory
PERIOD = 1.0  # seconds between two gatherings of the record
BEATS = 3  # heartbeats that do not come, after which a replica is taken for gone
PATIENCE = 20.0  # seconds in which a replica must say what it knows


class RayCalls(Calls):
    """Sends calls to replicas.

    Args:
        handle: of the deployment of `replica.Replica`, with `router.GuardedRouter`.
        book: which its router writes.
        full_name: of a model and its options.
        gathered: the record that its replicas' events go to.
        heartbeat: seconds between two signs of life in a reply.
    """

    # `ServerUnavailable` of a replica that ends is added by `Calls`.
    broken = (
        RayActorError,
        ObjectLostError,
        RpcError,
        WorkerCrashedError,
        RayServeException,
        TimeoutError,
    )

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        book: Book,
        full_name: Callable[..., str],
        gathered: Gathered,
        heartbeat: float,
    ) -> None:
        self._handle = handle
        self._stream = handle.options(stream=True, method_name="stream")
        self._book = book
        self._full_name = full_name
        self._gathered = gathered
        self._silence = BEATS * heartbeat
        self._sizes: dict[str, int] = {}
        self._failed: WeakKeyDictionary[Reply, set[str]] = WeakKeyDictionary()
        self._gathering = asyncio.Lock()
        super().__init__(f"the deployment {handle.deployment_name}")

    def send(self, *arguments: Any, **options: Any) -> Callable[[], None]:
        """See `Calls`.

        Ray Serve takes all calls of one HTTP request for one, by a variable of the context, and
        its router then loses those that are made at the same time. So each has its own context.
        """
        return Context().run(super().send, *arguments, **options)

    def catch_up(self, timeout: float) -> None:
        """Have the record of every replica by now. From any other thread."""
        asyncio.run_coroutine_threadsafe(self._gather_news(), self._loop).result(timeout)

    def _open(self) -> None:
        self._following = self._loop.create_task(self._follow())

    async def _shut(self) -> None:
        self._following.cancel()

    async def _attempt(self, call: str, content: bytes, reply: Reply) -> None:
        if call in GATHERED:
            reply.end(GATHERED[call](await self._all(call, content)))
            return
        failed = self._failed.setdefault(reply, set())
        wanted = await self._wanted(call, reply.body, frozenset(failed), reply.request_id)
        replica = ""
        parts = self._stream.remote(wanted, call, content)
        try:
            while True:
                async with asyncio.timeout(self._silence):
                    part = await anext(parts, None)
                if part is None:
                    break
                reply.heard = time.monotonic()
                match part:
                    case str():
                        replica = part
                    case dict():
                        if part:
                            self._book.report(Report.from_dict(part))
                    case _:
                        for line in filter(None, part.split(b"\n")):
                            reply.take(_placed(frames.read_frame(line), replica))
                        if reply.over:  # the next request comes at once
                            self._book.answered(wanted.request_id, replica)
        except (*self.broken, ServerUnavailable):
            failed.add(replica)
            raise
        finally:
            parts.cancel()
        if not reply.over:
            raise ServerUnavailable(f"the reply of replica {replica} broke off.")

    async def _wanted(
        self, call: str, body: Mapping[str, Any], failed: frozenset[str], request_id: str
    ) -> Wanted:
        """What the router is to know."""
        if call not in ROUTED:
            return Wanted("", avoid=failed)
        given = {name: body["options"].get(name) for name in LOAD_OPTIONS}
        options = {name: value for name, value in given.items() if value is not None}
        model = self._full_name(body["model"], **options)
        size = self._book.size(model) or await self._size(model)
        return Wanted(model, size, failed, request_id)

    async def _size(self, model: str) -> int:
        """Bytes that a model is expected to take; 0 where no replica knows."""
        if model not in self._sizes:
            with suppress(Exception):
                body = frames.call_of({"model": model})
                found = self._handle.options(method_name="ask").remote(Wanted(""), "card", body)
                card: ModelCard | None = _value("card", (await found)[1])
                if card is not None and card.weight_bytes:
                    self._sizes[model] = int(card.weight_bytes * ROOM)
        return self._sizes.get(model, 0)

    async def _all(self, call: str, content: bytes) -> list[Any]:
        """What every replica says; those that are just dying are left out."""
        try:
            found = await self._handle.broadcast("ask", Wanted(""), call, content).results_async(
                timeout_s=PATIENCE, return_exceptions=True
            )
        except DeploymentUnavailableError:
            found = []
        values, errors = [], []
        for one in found:
            try:
                if isinstance(one, BaseException):
                    raise one
                values.append(_value(call, one[1]))
            except (GuardedLLMError, *self.broken) as error:
                errors.append(error)
        if errors and not values:
            raise errors[0]
        return values

    async def _follow(self) -> None:
        while True:
            with suppress(Exception):  # there may be no replica
                await self._gather_news()
            await asyncio.sleep(PERIOD)

    async def _gather_news(self) -> None:
        async with self._gathering:  # or two would gather the same events
            found = await self._handle.broadcast("news", self._gathered.positions).results_async(
                timeout_s=PATIENCE, return_exceptions=True
            )
            self._gathered.add([one for one in found if not isinstance(one, BaseException)])


def _value(call: str, lines: bytes) -> Any:
    """The value in a whole reply.

    Raises:
        GuardedLLMError: it is an error.
    """
    for line in filter(None, lines.split(b"\n")):
        frame = frames.read_frame(line)
        if frame.error is not None:
            raise frames.raised(frame.error)
        if frame.done:
            return frames.read_value(call, frame.value)
    raise ServerUnavailable("a replica's reply broke off.")


def _placed(frame: frames.Frame, replica: str) -> frames.Frame:
    """A frame whose guard says where the answer comes from."""
    if frame.chunk is not None and frame.chunk.guard is not None:
        guard = replace(frame.chunk.guard, replica=replica)
        return replace(frame, chunk=frame.chunk.with_guard(guard))
    return frame
