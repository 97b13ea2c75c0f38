"""Calls that go to replicas by a handle of Ray Serve, as those to a server go over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, RpcError, WorkerCrashedError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from mlx_guarded_llm.backend.pending import in_use
from mlx_guarded_llm.backend.remote import frames
from mlx_guarded_llm.backend.remote.calls import Calls, Reply
from mlx_guarded_llm.backend.request_status import RequestStatus
from mlx_guarded_llm.backend.streams import Put
from mlx_guarded_llm.errors import GuardedLLMError, ServerUnavailable
from mlx_guarded_llm.models import ModelCard, Progress
from mlx_guarded_llm.record import Record
from mlx_guarded_llm.results import Provenance

from .book import Book, Report
from .gathering import GATHERED, Found, Gathered, models
from .names import ClusterNames, Meant
from .routing import ROOM, Wanted

ROUTED = ("generate", "embed", "load")  # the calls that need the model in memory
NAMED = ("generate", "embed")  # the calls whose requests have names
PERIOD = 1.0  # seconds between two gatherings of the record
BEATS = 3  # heartbeats that do not come, after which a replica is taken for gone
PATIENCE = 4.0  # seconds in which a replica must say what it knows, or the others do without


@dataclass
class About:
    """A call.

    Attributes:
        meant: the model that it means.
        failed: replicas that went away with it.
    """

    meant: Meant | None
    failed: set[str] = field(default_factory=set)


class RayCalls(Calls):
    """Sends calls to replicas.

    Args:
        handle: of the deployment of `replica.Replica`, with `router.GuardedRouter`.
        book: which its router writes.
        names: what models are called.
        record: that its replicas' events go to.
        tell: is told how far their downloads and loads are.
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
        names: ClusterNames,
        record: Record,
        tell: Callable[[Progress], None],
        heartbeat: float,
    ) -> None:
        self._handle = handle
        self._stream = handle.options(stream=True, method_name="stream")
        self._book = book
        self._names = names
        self._gathered = Gathered(record, names, lambda model: book.size(model) is not None, tell)
        self._silence = BEATS * heartbeat
        self._sizes: dict[str, int] = {}
        self._gathering = asyncio.Lock()
        super().__init__(f"the deployment {handle.deployment_name}")

    def send(
        self, call: str, body: Mapping[str, Any], put: Put, *arguments: Any, **options: Any
    ) -> Callable[[], None]:
        """See `Calls`. Names of models and requests mean here what they would to one backend.

        Ray Serve takes all calls of one HTTP request for one, by a variable of the context, and
        its router then loses those that are made at the same time. So each has its own context.
        """
        if call in NAMED and self._is_under_way(body["request_id"]):
            put(in_use(body["request_id"]))
            return lambda: None
        meant = self._names.meant(call, body)
        if meant is not None:
            body = {**body, **meant.fields}
            if call == "unload":
                self._names.unloads(meant)
        send = super().send
        return Context().run(send, call, body, put, *arguments, about=About(meant), **options)

    def _is_under_way(self, request_id: str) -> bool:
        """Whether a request of this name came by this ingress, and has no end yet."""
        same = (r for r in tuple(self._under_way) if r.request_id == request_id)
        return any(r.call in NAMED and r.wanted and not r.over for r in same)

    def catch_up(self, timeout: float) -> None:
        """Have the record of every replica by now that is not silent. From any other thread."""
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._gather_news(), self._loop).result(timeout)

    def _open(self) -> None:
        self._following = self._loop.create_task(self._follow())

    async def _shut(self) -> None:
        self._following.cancel()

    async def _attempt(self, call: str, content: bytes, reply: Reply) -> None:
        if call in GATHERED:
            reply.end(self._named(call, GATHERED[call](await self._all(call, content))))
            return
        about: About = reply.about
        wanted = await self._wanted(call, about, reply.request_id)
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
                            self._take(call, frames.read_frame(line), replica, reply)
                        if reply.over:  # the next request comes at once
                            self._book.answered(wanted.request_id, replica)
        except (*self.broken, ServerUnavailable):
            about.failed.add(replica)
            raise
        finally:
            parts.cancel()
        if not reply.over:
            raise ServerUnavailable(f"the reply of replica {replica} broke off.")

    async def _wanted(self, call: str, about: About, request_id: str) -> Wanted:
        """What the router is to know."""
        avoid, meant = frozenset(about.failed), about.meant
        if call not in ROUTED or meant is None:
            return Wanted("", avoid=avoid)
        model = meant.spec.identity
        size = self._book.size(model) or await self._size(meant)
        return Wanted(model, size, avoid, request_id)

    async def _size(self, meant: Meant) -> int:
        """Bytes that a model is expected to take; 0 where no replica knows."""
        model = meant.spec.identity
        if model not in self._sizes:
            with suppress(Exception):
                body = frames.call_of({"model": meant.spec.full_name})
                found = self._handle.options(method_name="ask").remote(Wanted(""), "card", body)
                card: ModelCard | None = _value("card", (await found)[1])
                if card is not None and card.weight_bytes:
                    self._sizes[model] = int(card.weight_bytes * ROOM)
        return self._sizes.get(model, 0)

    def _take(self, call: str, frame: frames.Frame, replica: str, reply: Reply) -> None:
        """Take what a replica says, by the names of here."""
        meant = reply.about.meant
        if frame.done:
            value = frames.read_value(call, frame.value)
            if call == "load":
                if meant is not None:
                    self._names.loaded(meant)
                (value,) = self._named("models", models({replica: [value]}))
            elif call == "embed":
                value = replace(value, guard=self._guard(value.guard, replica, meant))
            reply.end(value)
            return
        chunk = frame.chunk
        if chunk is not None and chunk.guard is not None:
            chunk = chunk.with_guard(self._guard(chunk.guard, replica, meant))
        reply.take(replace(frame, chunk=chunk))

    def _guard(self, guard: Provenance, replica: str, meant: Meant | None) -> Provenance:
        """Where an answer comes from."""
        guard = replace(guard, replica=replica)
        return guard if meant is None else self._names.guard(guard, meant)

    def _named(self, call: str, value: Any) -> Any:
        """What replicas say, by the names of here."""
        match call:
            case "models":
                return sorted(map(self._names.info, value), key=attrgetter("name"))
            case "requests":
                return [self._status(one) for one in value]
            case "status" if value is not None:
                return self._status(value)
        return value

    def _status(self, status: RequestStatus) -> RequestStatus:
        replies = (r for r in tuple(self._under_way) if r.request_id == status.request_id)
        meant = next((r.about.meant for r in replies if r.about.meant is not None), None)
        if meant is None:  # it came by another ingress
            return status
        return replace(status, model=self._names.shown(meant.spec))

    async def _all(self, call: str, content: bytes) -> Found[Any]:
        """What every replica says; those that are just dying are left out."""
        values, errors = {}, []
        for one in await self._of_each("ask", Wanted(""), call, content):
            try:
                if isinstance(one, BaseException):
                    raise one
                replica, lines = one
                values[replica] = _value(call, lines)
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
            found = await self._of_each("news", self._gathered.positions)
            self._gathered.add([one for one in found if not isinstance(one, BaseException)])

    async def _of_each(self, method: str, *arguments: Any) -> list[Any]:
        """What a method of each replica returns, or its error, as `TimeoutError` of a silent one.

        `DeploymentBroadcastResponse.results_async` returns nothing of any if one is silent.
        """
        asked = self._handle.broadcast(method, *arguments)
        try:
            answers = await asyncio.wait_for(asked._fetch_replica_results_async(), PATIENCE)
        except DeploymentUnavailableError:
            return []
        each = (asyncio.wait_for(answer.get_async(), PATIENCE) for answer in answers)
        return await asyncio.gather(*each, return_exceptions=True)


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
