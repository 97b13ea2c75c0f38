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


# What each kind tells, in Markdown. The names of its numbers, in `details`, stand in backquotes.
KINDS: Mapping[Kind, str] = {
    "request.queued": "The request was accepted. `waiting_for` names the load that it needs or the "
    "requests that it stands behind; `prompt_tokens` counts its prompt.",
    "request.started": "Its prefill began, after `queued` seconds. In a new engine, which goes on "
    "with an answer after a crash, there are the seconds `recovering` instead.",
    "request.first_token": "Its prefill ended after `seconds`; `cached_tokens` of the prompt came "
    "from the prefix cache.",
    "request.paused": "It stands still between two tokens, while other work runs. `cause` names "
    "that.",
    "request.resumed": "It goes on after a pause.",
    "request.interrupted": "Its engine died, or its batch ran out of memory, when it had `emitted` "
    "tokens. It goes on from there: a second `request.started` tells when.",
    "request.finished": "It ended, and `cause` is its finish reason. The seconds are `prefill` and "
    "`decode`; the tokens are `prompt_tokens`, `cached_tokens`, `completion_tokens`, "
    "`reasoning_tokens`, `drafted_tokens` and `accepted_tokens`.",
    "request.failed": "It ended with the error in `cause`, or was cancelled. `held_by` has other "
    "programs whose memory it lacked; `hint` says what to do.",
    "load.queued": "A load is wanted. `cause` is `requested`, `asked`, or `recovery` after a "
    "crash.",
    "load.deferred": "It waits: `waiting_for` names the generations or the models that it waits "
    "for.",
    "load.started": "It began after it had `waited` seconds. `evict` lists the models that go out "
    "of memory for it, `paused` the requests that stand still meanwhile.",
    "load.interrupted": "It was cut off by a death of the engine, or failed for lack of memory, "
    "and is tried again.",
    "load.finished": "It ended after `seconds`: `bytes` are in memory now, and `freed` went out. "
    "`undrafted` says why the model's draft is not used.",
    "load.failed": "It ended after `seconds` with the error in `cause`; `held_by` has other "
    "programs whose memory it lacked.",
    "load.cancelled": "Nobody wants it any more.",
    "unload.queued": "An unload is wanted.",
    "unload.deferred": "It waits for the model's own requests, in `waiting_for`.",
    "unload.started": "It began after it had `waited` seconds; `evict` and `paused` as in "
    "`load.started`.",
    "unload.finished": "It ended after `seconds` and gave `freed` bytes back.",
    "unload.failed": "It ended after `seconds` with the error in `cause`.",
    "unload.cancelled": "The model is wanted again.",
    "run.queued": "A function of `Backend.run` is to run alone.",
    "run.deferred": "It waits for the generations in `waiting_for`.",
    "run.started": "It began after it had `waited` seconds; `evict` and `paused` as in "
    "`load.started`.",
    "run.finished": "It ended after `seconds`.",
    "run.failed": "It raised the error in `cause`, after `seconds`.",
    "run.cancelled": "It was given up before it began.",
    "engine.started": "An engine works, in the process `pid`. Seconds of its start: `spawn`, "
    "`import`, and `ready` for all of it. `device` names its hardware. Bytes: `budget` for models "
    "and requests, `wired` of those that Metal keeps wired, and `wirable` that it could.",
    "engine.failed": "No engine can be started. Everybody who waits gets the error in `cause`.",
    "engine.died": "The process `pid` exited with `code`, or was killed because it made no "
    "progress. `how` is that in a word, `work` what it was doing; it had `lived` seconds, and "
    "`stderr` has the end of what it wrote there.",
    "engine.stopped": "It has stopped because it was asked to.",
    "model.quarantined": "The model is not loaded any more, because engines died of it.",
    "model.forgiven": "It may be loaded again.",
}


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
