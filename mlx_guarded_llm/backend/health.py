"""How a backend is, at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..holder import Holder

EngineState = Literal["idle", "starting", "working", "failed", "closed"]


@dataclass(frozen=True, kw_only=True)
class Health:
    """See `Backend.health`.

    Attributes:
        engine: "idle" before its first use, "starting" (again, if one has died), "working",
            "failed" when nothing works any more, or "closed".
        stalled: seconds for which the engine's process has made no progress with what it
            does, or shown no sign of life; 0.0 in a thread, where nobody watches it.
        running: requests that the engine has.
        waiting: requests that have not started, or wait to go on after a crash.
        oldest_waiting: seconds that the oldest of them has waited.
        full: the next request would be refused.
        room: seconds after which the queue is expected to take it; None if that is unknown.
        memory_bytes: promised to models and requests.
        budget_bytes: 0 before the engine has worked.
        held_by: other programs that hold some of the budget, as of the last claim or `health`.
        tokens: that each running answer has by now, by request.
    """

    engine: EngineState
    stalled: float = 0.0
    running: int = 0
    waiting: int = 0
    oldest_waiting: float = 0.0
    full: bool = False
    room: float | None = 0.0
    memory_bytes: int = 0
    budget_bytes: int = 0
    held_by: tuple[Holder, ...] = ()
    tokens: Mapping[str, int] = field(default_factory=dict)
