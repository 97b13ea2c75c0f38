"""What goes over the wire between a `RemoteBackend` and its server.

A call is a POST to `PATH` with its name, whose body is a `Call` as JSON. The reply is a line of
JSON, a `Frame`, for each piece of an answer, for progress, and at the end for the value or the
error. Empty lines show that the server is still there.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, TypeAdapter

from ...errors import GuardedLLMError, MemoryRefused, rebuild
from ...holder import Holder
from ...models import ModelCard, Progress
from ...record import Event
from ...results import Chunk, Embeddings, Provenance, Usage
from ..health import Health
from ..model_info import ModelInfo
from ..request_status import RequestStatus
from ..shared_server import ServerEntry

PATH = "/guard/call/"
MEDIA_TYPE = "application/x-ndjson"
VERSION = 2  # of all this; both ends must have the same


class Call(BaseModel):
    """What is asked. Each call reads the fields that it needs.

    Attributes:
        options: those of `Backend.generate` and `Backend.load` that were given.
        timeout: seconds.
        request_id: of the request; for "cancel", "expected_wait" and "status", of the one meant.
        emitted: tokens of the answer that the client has from a server that went away. The reply
            goes on behind them.
        fingerprint: of the model that they are of.
        mark: see `News`.
        most: events, where there is no mark.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = ""
    prompt: str | list[StrictInt] | list[dict[str, Any]] = ""
    texts: list[str | list[int]] = []
    options: dict[str, Any] = {}
    timeout: float | None = None
    request_id: str | None = None
    truncate: bool = False
    special_tokens: bool = True
    pin: bool = False
    emitted: list[Annotated[StrictInt, Field(ge=0)]] = []
    fingerprint: str = ""
    now: bool = False
    mark: str = ""
    most: Annotated[StrictInt, Field(ge=1)] = 1


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An error of ours.

    Attributes:
        kinds: names of its class and of that class's bases, the nearest first. A client that
            is older than the server takes the first that it knows.
        attributes: what it has beside message and hint.
    """

    kinds: tuple[str, ...]
    message: str
    hint: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """`Embeddings`. The numbers are little-endian float32 in base64, row by row."""

    data: str
    shape: tuple[int, int]
    usage: Usage
    guard: Provenance


@dataclass(frozen=True, kw_only=True)
class News:
    """A part of the record.

    Attributes:
        events: oldest first.
        mark: stands behind them; the next news begin there.
        now: the server's `time.monotonic()`, by which the events are timed.
    """

    events: list[Event]
    mark: str
    now: float


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model that a server serves.

    Attributes:
        state: as `ModelInfo.state`; "unloaded" and "not fetched" if it is not in memory, and
            "remote" if another server runs it.
        context_window: in tokens; None if that is unknown, as is `weight_bytes`.
        memory_bytes: promised to its weights and KV caches.
    """

    name: str
    state: str
    context_window: int | None = None
    weight_bytes: int | None = None
    memory_bytes: int = 0
    pinned: bool = False


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One line of a reply; one of its fields is given.

    Attributes:
        fingerprint: of the model that answers. It comes after the first chunk, unless that is the
            last, so that another server can go on with the answer.
        value: of the call; what it is depends on the call, see `VALUES`.
        done: there is a value, which may be None.
    """

    chunk: Chunk | None = None
    fingerprint: str = ""
    progress: Progress | None = None
    error: Failure | None = None
    value: Any = None
    done: bool = False


# What the calls return that have one value.
VALUES: Mapping[str, Any] = {
    "hello": int,
    "embed": Vectors,
    "tokens": list[int],
    "full_name": str,
    "card": ModelCard | None,
    "load": ModelInfo,
    "unload": bool,
    "models": list[ModelInfo],
    "memory": tuple[int, int],
    "unpin": bool,
    "forgive": bool,
    "health": Health,
    "expected_wait": float | None,
    "status": RequestStatus | None,
    "requests": list[RequestStatus],
    "events": list[Event],
    "news": News,
    "served": list[Served],
    "cancel": None,
    "server": ServerEntry,
    "end": None,
}


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """Writes and reads values of a type."""
    return TypeAdapter(kind)


def write_frame(frame: Frame) -> bytes:
    """A frame as one line, without its end."""
    return adapter(Frame).dump_json(frame, exclude_defaults=True, fallback=str)


def read_frame(line: str | bytes) -> Frame:
    """The frame that a line is.

    Raises:
        ValueError: it is none.
    """
    frame: Frame = adapter(Frame).validate_json(line)
    return frame


def read_value(call: str, value: Any) -> Any:
    """The value of a call, as the call returns it.

    Raises:
        ValueError: it is none that this call returns.
    """
    found = adapter(VALUES[call]).validate_python(value)
    return _embeddings(found) if isinstance(found, Vectors) else found


def vectors(embeddings: Embeddings) -> Vectors:
    """Embeddings as they are sent."""
    data = embeddings.vectors.astype("<f4").tobytes()
    rows, size = embeddings.vectors.shape
    return Vectors(
        data=base64.b64encode(data).decode(),
        shape=(rows, size),
        usage=embeddings.usage,
        guard=embeddings.guard,
    )


def _embeddings(sent: Vectors) -> Embeddings:
    import numpy as np

    flat = np.frombuffer(base64.b64decode(sent.data), dtype="<f4").astype(np.float32)
    return Embeddings(vectors=flat.reshape(sent.shape), usage=sent.usage, guard=sent.guard)


def failure(error: GuardedLLMError) -> Failure:
    """An error as it is sent."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, GuardedLLMError)]
    own = vars(error).keys() - {"message", "hint", "guard"}
    return Failure(
        kinds=tuple(kinds),
        message=error.message,
        hint=error.hint,
        attributes={name: vars(error)[name] for name in own},
    )


def raised(sent: Failure) -> GuardedLLMError:
    """The error that was sent."""
    kind: type[GuardedLLMError] = next(
        (_ERRORS[name] for name in sent.kinds if name in _ERRORS), GuardedLLMError
    )
    attributes = {name: _tuples(value) for name, value in sent.attributes.items()}
    if issubclass(kind, MemoryRefused) and "held_by" in attributes:
        attributes["held_by"] = tuple(Holder(*fields) for fields in attributes["held_by"])
    return rebuild(
        kind,
        (sent.message, sent.hint),
        {"message": sent.message, "hint": sent.hint, **attributes},
    )


def _all(kind: type[GuardedLLMError]) -> Iterator[type[GuardedLLMError]]:
    yield kind
    for sub in kind.__subclasses__():
        yield from _all(sub)


# The errors of this library; a caller's own subclasses are made later.
_ERRORS = {kind.__name__: kind for kind in _all(GuardedLLMError)}


def _tuples(value: Any) -> Any:
    """Attributes of errors have tuples where JSON has lists."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def options_of(call: Call) -> dict[str, Any]:
    """The options, with what JSON could not say."""
    bias = call.options.get("logit_bias")
    if not isinstance(bias, Mapping):
        return dict(call.options)
    ids = {int(key) if str(key).isdecimal() else key: value for key, value in bias.items()}
    return {**call.options, "logit_bias": ids}


def call_of(body: Mapping[str, Any]) -> bytes:
    """The body of a call."""
    return adapter(dict[str, Any]).dump_json(dict(body))


__all__: Sequence[str] = [
    "MEDIA_TYPE",
    "PATH",
    "VALUES",
    "VERSION",
    "Call",
    "Frame",
    "News",
    "Served",
    "call_of",
    "failure",
    "options_of",
    "raised",
    "read_frame",
    "read_value",
    "vectors",
    "write_frame",
]
