"""What the guard knows: requests, models and jobs. Values only."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal

from ..errors import GuardedLLMError

JobKind = Literal["load", "unload", "run"]
Pairs = tuple[tuple[str, str], ...]  # (request or job id, model)


@dataclass(slots=True)
class Timing:
    """Seconds one request spent in each place; see `results.Provenance`.

    The first three count until its first start.
    """

    queued: float = 0.0
    deferred: float = 0.0
    loading: float = 0.0
    paused: float = 0.0
    recovering: float = 0.0


@dataclass(slots=True)
class RequestState:
    """A request from its acceptance until its end.

    Attributes:
        order: place in the order of arrival, shared with jobs; of one that an engine
            lost, before all that have not begun.
        expires: when its own deadline passes, or None.
        started_at: when the engine got it; None while it waits.
        interrupted_at: when an engine lost it, while it waits to start again.
        stopping: it was told to stop and has not ended yet.
        stop_error: what its caller gets then; None for a plain cancel.
    """

    id: str
    model: str
    order: int
    asked_at: float
    expires: float | None
    started_at: float | None = None
    interrupted_at: float | None = None
    stopping: bool = False
    stop_error: GuardedLLMError | None = None
    timing: Timing = field(default_factory=Timing)


@dataclass(slots=True)
class JobState:
    """One piece of exclusive work: a load, an unload or foreign work.

    Attributes:
        model: the model, or the label of foreign work.
        order: place in the order of arrival, shared with requests; less than any of
            them for what goes before everything else.
        callers: who settles with it, and whether they pin the model. None are left of
            a load that only requests want, or of an eviction: such a job is dropped
            when it loses its point.
        wanted_by: the request for whose KV cache this unload makes room, or None.
        urgent: MLX ran out of memory, so this unload waits for nobody.
        recovers: this load brings back a model that an engine had before it died.
        pinned: that model was pinned, so it comes back although nobody waits for it.
        deferrals: why it had to wait, as far as it is on record.
        deferred_at: when it first had to wait for others; None if it has not.
        started_at: when it began; None while it is pending.
        evict: the models it unloads first.
    """

    id: str
    kind: JobKind
    model: str
    order: int
    asked_at: float
    cause: str
    callers: dict[str, bool] = field(default_factory=dict)
    wanted_by: str | None = None
    urgent: bool = False
    recovers: bool = False
    pinned: bool = False
    deferrals: set[str] = field(default_factory=set)
    deferred_at: float | None = None
    started_at: float | None = None
    evict: tuple[str, ...] = ()

    @property
    def pin(self) -> bool:
        """The model is to be kept once it is loaded."""
        return self.pinned or any(self.callers.values())

    @property
    def leaving(self) -> tuple[str, ...]:
        """The models that are gone when it has ended."""
        return (self.model,) if self.kind == "unload" else self.evict


@dataclass(slots=True)
class ModelState:
    """One model, resident or wanted.

    Attributes:
        active: its running requests.
        waiting: its waiting requests in order of arrival (an ordered set; unlike a
            dict's, its first item is found at once however many went before).
        last_used: when its last request ended, or its load.
        load: id of its pending or running load, if any.
        unload: id of its pending or running unload, if any.
        loads: its loads that somebody waiting now has seen, as the times
            (first deferred, began, ended).
    """

    name: str
    resident: bool = False
    pinned: bool = False
    last_used: float = 0.0
    active: dict[str, None] = field(default_factory=dict)
    waiting: OrderedDict[str, None] = field(default_factory=OrderedDict)
    load: str | None = None
    unload: str | None = None
    loads: list[tuple[float, float, float]] = field(default_factory=list)

    @property
    def idle(self) -> bool:
        return self.resident and not self.active

    @property
    def forgotten(self) -> bool:
        """Nothing is left to know about it."""
        return not (self.resident or self.active or self.waiting or self.load or self.unload)
