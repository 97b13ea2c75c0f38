"""The events of the record, and their kinds."""

from __future__ import annotations

import math
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

    It is a tuple because one is made at every transition, and making a frozen dataclass takes
    more than twice as long.

    Attributes:
        kind: what happened, as "subject.verb".
        time: seconds of `time.monotonic()` in the backend's process.
        model: the model it concerns, or None.
        request_id: the request it concerns, or None.
        job_id: the load, unload or user's function it concerns, or None.
        cause: the reason in a few words.
        waiting_for: what it waits for, as (request or job id, model).
        details: its numbers, such as bytes or tokens.
    """

    kind: Kind
    time: float
    model: str | None = None
    request_id: str | None = None
    job_id: str | None = None
    cause: str = ""
    waiting_for: tuple[tuple[str, str], ...] = ()
    details: Mapping[str, Any] = {}


def is_attempt(request_id: str, name: str) -> bool:
    """Whether a request is the one of this name, or a further attempt of that call.

    The attempts of a `GuardedLLM` end in ".2", ".3" and so on.
    """
    number = request_id.removeprefix(f"{name}.")
    return request_id == name or (number != request_id and number.isascii() and number.isdecimal())


def as_dict(event: Event) -> dict[str, Any]:
    """The fields of an event that have a value, as JSON can hold them."""
    return {
        name: _plain(value)
        for name, value in event._asdict().items()
        if value not in (None, "", (), {})
    }


def _plain(value: Any) -> Any:
    """A value as `json` can write it; what JSON does not know becomes text."""
    match value:
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
        case float() if not math.isfinite(value):
            return str(value)
        case None | bool() | int() | float() | str():
            return value
    return str(value)
