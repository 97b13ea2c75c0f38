"""One replica: a guarded backend of its own, with its engine process and its memory budget."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import Any

from mlx_guarded_llm.backend import Backend
from mlx_guarded_llm.errors import GuardedLLMError
from mlx_guarded_llm.logs import get_logger
from mlx_guarded_llm.models import Progress
from mlx_guarded_llm.record.speeds import Rate
from mlx_guarded_llm.server import Settings, create_app, native, open_backend
from mlx_guarded_llm.server.context import Context
from mlx_guarded_llm.server.security import Client
from mlx_guarded_llm.server.warming import warm

from .book import Report
from .gathering import News
from .routing import ROOM, ModelAt, ReplicaView, Wanted

logger = get_logger("server")

OWNER = Client(admin=True, owner=True)  # the ingress, which has asked who its client is
WANTED = ("queued", "deferred", "loading")  # states of a model that is to be resident
MOST = 10_000  # events in one piece of news
KEPT = 3.0  # seconds for which each ingress can hear that a load has ended
RECENT = 32  # loads and answers that a speed is taken from


class Replica:
    """A backend, and the calls of the ingress.

    Args:
        settings: as values; of the server, without what only the ingress needs.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.name = _name()
        self._reports = 0
        self._open(Settings.model_validate(settings))

    def _open(self, settings: Settings, **options: Any) -> None:
        """Make the backend; options of `Backend` win over the settings."""
        self._backend: Backend = open_backend(settings, **options)
        context: Context = create_app(self._backend, settings).state.context
        self._context = context
        self._max_active = settings.guard.max_active
        self._learned = 0  # events of the record
        self._stages: dict[tuple[str, str], tuple[float, Progress]] = {}  # the last, and when
        self._loop = asyncio.get_running_loop()
        self._backend.follow_progress(self._moved)
        self._load_seconds, self._answers = Rate(RECENT), Rate(RECENT)
        self._started = asyncio.Event()
        self._warm = self._loop.create_task(self._begin())

    async def _begin(self) -> None:
        """Start the engine, and load what the settings say, before somebody has to wait for it."""
        try:
            await self._backend.arun(_nothing, label="start")
            self._started.set()
            async with warm(self._context.models, self._backend):
                await asyncio.Event().wait()
        except GuardedLLMError as error:
            logger.error("the engine of replica %s did not start: %s", self.name, error)
            self._started.set()

    # ---- calls ----------------------------------------------------------------------

    async def stream(
        self, wanted: Wanted, call: str, body: bytes
    ) -> AsyncGenerator[str | bytes | dict[str, Any]]:
        """The reply to a call: this replica's name, parts of lines, and a report at the end."""
        del wanted  # it was for the router
        yield self.name
        async with aclosing(native.reply_to(self._context, OWNER, call, body).parts()) as parts:
            async for part in parts:
                yield part
        yield await self.record_routing_stats()

    async def ask(self, wanted: Wanted, call: str, body: bytes) -> tuple[str, bytes]:
        """The whole reply to a call, with this replica's name."""
        del wanted
        async with aclosing(native.reply_to(self._context, OWNER, call, body).parts()) as parts:
            return self.name, b"".join([part async for part in parts])

    async def news(self, positions: Mapping[str, int]) -> News:
        """What has happened behind a position of the record."""
        record, now = self._backend.record, time.monotonic()
        events, after = record.since(positions.get(self.name, -MOST))
        self._stages = {
            subject: (since, progress)
            for subject, (since, progress) in self._stages.items()
            if not progress.over or now - since < KEPT
        }
        stages = [progress for _, progress in self._stages.values()]
        return News(self.name, list(events[-MOST:]), after, time.monotonic(), stages)

    def _moved(self, progress: Progress) -> None:
        """From another thread: a download or a load has come further."""
        if progress.request_id:  # a prompt
            return
        subject, item = (progress.model, progress.stage), (time.monotonic(), progress)
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._stages.__setitem__, subject, item)

    # ---- what Ray Serve asks ----------------------------------------------------------

    async def record_routing_stats(self) -> dict[str, Any]:
        """How it is, for routers."""
        self._reports += 1
        count = self._reports
        try:
            models, (used, budget), requests = await asyncio.to_thread(self._look)
        except GuardedLLMError:
            return {}
        self._learn()
        each = self._load_seconds.seconds()  # of a byte
        view = ReplicaView(
            name=self.name,
            budget=budget,
            models={
                info.identity: ModelAt(
                    bytes=info.memory_bytes or int(info.weight_bytes * ROOM),
                    resident=info.state not in WANTED,
                    active=info.active,
                    waiting=info.waiting,
                    pinned=info.pinned,
                    idle=info.idle_seconds or 0.0,
                )
                for info in models
                if info.state != "quarantined"
            },
            beside=max(used - sum(info.memory_bytes for info in models), 0),
            answer=self._answers.seconds() or 0.0,
            load_rate=1 / each if each else 0.0,
            max_active=self._max_active,
        )
        ids = frozenset(request.request_id for request in requests)
        return Report(self.name, count, view, ids).as_dict()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """How old its queue is, for the autoscaler."""
        now = await self._backend.ahealth()
        return {
            "oldest_waiting": now.oldest_waiting,
            "requests": float(now.running + now.waiting),
        }

    async def check_health(self) -> None:
        """Raise if nothing works here any more, so that Ray Serve starts another replica.

        It is asked first before any request comes, and waits for the engine then.
        """
        await self._started.wait()
        now = await self._backend.ahealth()
        if now.engine in ("failed", "closed"):
            raise RuntimeError(f"the backend of replica {self.name} is {now.engine}.")

    async def __del__(self) -> None:
        self._warm.cancel()
        await self._backend.aclose()

    def _look(self) -> tuple[Any, tuple[int, int], Any]:
        backend = self._backend
        return backend.models(), backend.memory(), backend.requests()

    def _learn(self) -> None:
        events, self._learned = self._backend.record.since(self._learned)
        for event in events:
            match event.kind:
                case "load.finished":
                    details = event.details
                    self._load_seconds.add(details.get("bytes") or 0, details.get("seconds", 0.0))
                case "request.finished":
                    took = event.details.get("prefill", 0.0) + event.details.get("decode", 0.0)
                    self._answers.add(1, took)


def _nothing() -> None:
    """What an engine is started with."""


def _name() -> str:
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)
