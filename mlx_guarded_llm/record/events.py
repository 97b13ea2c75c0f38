"""The transitions that are recorded, each one a typed event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Kind = Literal[
    "request.queued",
    "request.started",
    "request.first_token",
    "request.paused",
    "request.resumed",
    "request.interrupted",
    "request.finished",
    "request.failed",
    "load.queued",
    "load.deferred",
    "load.started",
    "load.interrupted",
    "load.finished",
    "load.failed",
    "load.cancelled",
    "unload.queued",
    "unload.deferred",
    "unload.started",
    "unload.finished",
    "unload.failed",
    "unload.cancelled",
    "run.queued",
    "run.deferred",
    "run.started",
    "run.finished",
    "run.failed",
    "run.cancelled",
    "engine.started",
    "engine.failed",
    "engine.died",
    "engine.stopped",
    "model.quarantined",
    "model.forgiven",
]


class Event(NamedTuple):
    """One transition.

    A tuple, as it is made at each of them: a frozen dataclass takes more than twice as long.

    Attributes:
        kind: what happened, as "subject.verb".
        time: seconds of `time.monotonic()` in the backend's process.
        model: the model it concerns, or None.
        request_id: the request it concerns, or None.
        job_id: the load, unload or foreign work it concerns, or None.
        cause: why, in a few words.
        waiting_for: what it waits for, as (request or job id, model).
        details: numbers that belong to it, such as bytes or tokens.
    """

    kind: Kind
    time: float
    model: str | None = None
    request_id: str | None = None
    job_id: str | None = None
    cause: str = ""
    waiting_for: tuple[tuple[str, str], ...] = ()
    details: Mapping[str, Any] = {}
