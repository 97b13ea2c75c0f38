"""What has happened so far, counted from the record: for `/metrics` and `/health`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

from ..backend import Health
from ..record import Event, Record
from ..record.log import cancelled
from ..results import Provenance

# They would double the series: each has one that tells when it began. It holds for the process.
disable_created_metrics()  # type: ignore[no-untyped-call]

PERIOD = 5.0  # seconds; a record holds what happens in far more
OTHER = "other"  # the label of a model that is not served under its name
_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600)  # seconds


class Tally:
    """Reads the record on from where it stopped. Belongs to the event loop.

    Args:
        record: of the backend.
        models: names that may be labels.

    Attributes:
        registry: the metrics, of this server alone.
        deaths: how often the engine has died.
        last_death: the event that told of it.
    """

    def __init__(self, record: Record, models: Collection[str]) -> None:
        self.deaths = 0
        self.last_death: Event | None = None
        self._record = record
        self._position = 0
        self._models = frozenset(models)
        self._deferred: dict[str, float] = {}  # since when, by job
        self.registry = made = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"mlx_guarded_{name}", what, labels, registry=made)

        def histogram(name: str, what: str) -> Histogram:
            return Histogram(
                f"mlx_guarded_{name}", what, ("model",), buckets=_BUCKETS, registry=made
            )

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(f"mlx_guarded_{name}", what, labels, registry=made)

        self._requests = counter("requests", "Requests that ended.", "model", "outcome")
        self._tokens = counter("tokens", "Tokens of prompts and answers.", "model", "kind")
        self._queued = histogram("queue_seconds", "From a request's arrival to its start.")
        self._prefill = histogram("prefill_seconds", "From a request's start to its first token.")
        self._decode = histogram("decode_seconds", "From the first token to the last.")
        self._loads = histogram("load_seconds", "From a load's start to its end.")
        self._deferrals = histogram(
            "load_deferral_seconds", "That a load waited for generations or memory."
        )
        self._load_failures = counter("load_failures", "Loads that failed.", "model")
        self._pauses = counter("pauses", "Generations that stood still for a load.", "model")
        self._resumed = counter("resumed", "Answers that went on in a new engine.", "model")
        self._starts = counter("engine_starts", "Engines that began to work.")
        self._died = counter("engine_deaths", "Engines that died.", "how")
        self._fallbacks = counter("fallbacks", "Answers of another model than asked.", "model")
        self._degraded = counter("degraded", "Answers that are no full ones.", "model", "reason")
        self._lost = counter("events_lost", "Events that were dropped before they were counted.")
        self._waiting = gauge("queue_requests", "Requests that wait to start.")
        self._oldest = gauge("queue_oldest_seconds", "That the oldest of them has waited.")
        self._running = gauge("running_requests", "Requests that the engine has.")
        self._stalled = gauge("stalled_seconds", "Without progress of the engine.")
        self._memory = gauge("memory_bytes", "Promised to models and requests.")
        self._budget = gauge("memory_budget_bytes", "That may be promised.")

    @asynccontextmanager
    async def counting(self) -> AsyncIterator[None]:
        """Read the record often enough that nothing is dropped unseen."""

        async def count() -> None:
            while True:
                self.catch_up()
                await asyncio.sleep(PERIOD)

        task = asyncio.create_task(count())
        try:
            yield
        finally:
            task.cancel()

    def catch_up(self) -> None:
        """Count what is new in the record."""
        events, position = self._record.since(self._position)
        self._lost.inc(position - self._position - len(events))
        self._position = position
        for event in events:
            self._count(event)

    def show(self, health: Health) -> None:
        """How it is now."""
        self._waiting.set(health.waiting)
        self._oldest.set(health.oldest_waiting)
        self._running.set(health.running)
        self._stalled.set(health.stalled)
        self._memory.set(health.memory_bytes)
        self._budget.set(health.budget_bytes)

    def answered(self, guard: Provenance) -> None:
        """An answer that a client gets, or that was refused in its name."""
        model = self._label(guard.requested_model)
        if guard.fallback:
            self._fallbacks.labels(model).inc()
        for reason in guard.degraded:
            self._degraded.labels(model, reason).inc()

    def _count(self, event: Event) -> None:
        model, details = self._label(event.model), event.details
        match event.kind:
            case "request.started" if "recovering" in details:
                self._resumed.labels(model).inc()
            case "request.started":
                self._queued.labels(model).observe(details.get("queued", 0.0))
            case "request.paused":
                self._pauses.labels(model).inc()
            case "request.finished":
                self._requests.labels(model, "finished").inc()
                self._prefill.labels(model).observe(details.get("prefill", 0.0))
                self._decode.labels(model).observe(details.get("decode", 0.0))
                for kind in ("prompt", "completion", "cached"):
                    self._tokens.labels(model, kind).inc(details.get(f"{kind}_tokens") or 0)
            case "request.failed":
                outcome = "cancelled" if cancelled(event) else "failed"
                self._requests.labels(model, outcome).inc()
            case "load.deferred":
                self._deferred.setdefault(event.job_id or "", event.time)
            case "load.started" | "load.cancelled" | "load.failed":
                since = self._deferred.pop(event.job_id or "", None)
                if since is not None:
                    self._deferrals.labels(model).observe(event.time - since)
                if event.kind == "load.failed":
                    self._load_failures.labels(model).inc()
            case "load.finished":
                self._loads.labels(model).observe(details.get("seconds", 0.0))
            case "engine.started":
                self._starts.inc()
            case "engine.died":
                self.deaths += 1
                self.last_death = event
                self._died.labels(str(details.get("how"))).inc()

    def _label(self, model: str | None) -> str:
        return model if model in self._models else OTHER
