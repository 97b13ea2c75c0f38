"""What the guard knows: requests, models and jobs, and questions about all of them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal, NamedTuple

from ..errors import GuardedLLMError
from .limits import Priority
from .memory_ledger import MemoryLedger

JobKind = Literal["load", "unload", "run"]
Pairs = tuple[tuple[str, str], ...]  # (request or job id, model)


class Status(Enum):
    """Where a request is, from its submission to its end.

        FETCHING -> PREPARING -> WAITING -> RUNNING <-> PAUSED
                                               |          |
                                               v          v
                                          INTERRUPTED, STOPPING -> FINISHED

    A request may finish from any status. An interrupted one runs again. A request stays
    PREPARING when an engine dies; the next engine prepares it.
    """

    FETCHING = "fetching its model"
    PREPARING = "being prepared"  # or waiting for an engine to prepare it
    WAITING = "waiting to start"  # for its model, for memory or for its turn
    RUNNING = "generating"
    PAUSED = "paused"  # not stepped while a job runs
    STOPPING = "stopping"  # the engine was told to stop it and still has it
    INTERRUPTED = "waiting to go on after a crash"  # the engine lost it
    FINISHED = "finished"

    @property
    def early(self) -> bool:
        """Whether the prompt is still unknown, so that the request is in no queue."""
        return self in _EARLY

    @property
    def started(self) -> bool:
        """Whether the engine has the request."""
        return self in _STARTED


_EARLY = frozenset({Status.FETCHING, Status.PREPARING})
_STARTED = frozenset({Status.RUNNING, Status.PAUSED, Status.STOPPING})
_NEXT = {
    Status.FETCHING: {Status.PREPARING, Status.FINISHED},
    Status.PREPARING: {Status.WAITING, Status.FINISHED},
    Status.WAITING: {Status.RUNNING, Status.FINISHED},
    Status.RUNNING: {Status.PAUSED, Status.STOPPING, Status.INTERRUPTED, Status.FINISHED},
    Status.PAUSED: {Status.RUNNING, Status.STOPPING, Status.INTERRUPTED, Status.FINISHED},
    Status.STOPPING: {Status.FINISHED},
    Status.INTERRUPTED: {Status.RUNNING, Status.FINISHED},
    Status.FINISHED: set(),
}


@dataclass(slots=True)
class Timing:
    """The seconds that one request spent waiting, by reason; see `results.Provenance`.

    The first three count until its first start.
    """

    queued: float = 0.0
    deferred: float = 0.0
    loading: float = 0.0
    paused: float = 0.0
    recovering: float = 0.0


class Place(NamedTuple):
    """A place in the one order of requests and jobs; the lesser goes first.

    Attributes:
        rank: 0 for jobs that make the engine ready to go on, 1 for interrupted requests, 2
            for everything else.
        arrival: see `RequestState`; within rank 0 only the number counts.
        number: counts arrivals, and so orders what arrived at the same time.
    """

    rank: int
    arrival: float
    number: int


END = Place(3, 0.0, 0)  # behind everything


@dataclass(slots=True)
class RequestState:
    """A request from its submission until its end.

    Attributes:
        submitted_at: when the caller asked.
        expires: its own deadline, or None.
        status: see `Status`; only `become` changes it.
        priority: a batch request lets interactive ones pass, for a time.
        place: in the order of arrival, shared with jobs. An interrupted request comes
            before all that have not begun.
        asked_at: when it began to wait for its turn.
        arrival: when it counts as having begun to wait: `asked_at`, or, for a batch request,
            `batch_wait` seconds later. So nobody who comes after that passes it.
        started_at: when an engine last got it.
        interrupted_at: when an engine last lost it.
        stop_error: the error its caller gets once it has stopped; None for a plain cancel.
    """

    id: str
    model: str
    submitted_at: float
    expires: float | None
    priority: Priority = "interactive"
    status: Status = Status.FETCHING
    place: Place = END
    asked_at: float = 0.0
    arrival: float = 0.0
    started_at: float = 0.0
    interrupted_at: float = 0.0
    stop_error: GuardedLLMError | None = None
    timing: Timing = field(default_factory=Timing)

    def become(self, status: Status) -> None:
        """Go on to the next status."""
        assert status in _NEXT[self.status], f"{self.id}: {self.status} to {status}"
        self.status = status


@dataclass(slots=True)
class JobState:
    """One piece of exclusive work: a load, an unload or a function of the user's.

    Attributes:
        model: the model, or the label of the function.
        place: in the order of arrival, shared with requests.
        asked_at: when it was asked for.
        arrival: likewise, or when the request that it is for counts as having arrived.
        callers: the ids of those who wait for it, and whether each pins the model. A
            load for requests and an eviction have none; such a job is dropped when
            nobody wants it any more.
        wanted_by: the request whose KV cache needs the memory this unload frees, or None.
        urgent: MLX ran out of memory, so this unload waits for nothing.
        recovers: this load brings back a model that an engine held when it died.
        pinned: that model was pinned, so it comes back even if nobody waits for it.
        deferrals: the reasons for its waiting that have been recorded.
        deferred_at: when it first had to wait for something; None if it has not.
        started_at: when it began; None while it is pending.
        evict: the models it unloads first.
    """

    id: str
    kind: JobKind
    model: str
    place: Place
    asked_at: float
    arrival: float
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
        """Whether the model will be pinned once it is loaded."""
        return self.pinned or any(self.callers.values())

    def copy(self) -> JobState:
        """Another one like it."""
        return replace(self, callers=dict(self.callers), deferrals=set(self.deferrals))

    @property
    def leaving(self) -> tuple[str, ...]:
        """The models that are out of memory when this job has ended."""
        return (self.model,) if self.kind == "unload" else self.evict


@dataclass(slots=True)
class ModelState:
    """One model, resident or wanted.

    Attributes:
        active: its running requests.
        waiting: its waiting requests in order of arrival. It is an ordered set whose
            first item is found in constant time, which a dict does not give after many
            deletions.
        last_used: when its last request ended, or its load.
        load: id of its pending or running load, if any.
        unload: id of its pending or running unload, if any.
        loads: the loads that a waiting request has lived through, each as the times
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

    def copy(self) -> ModelState:
        """Another one like it."""
        return replace(
            self,
            active=dict(self.active),
            waiting=OrderedDict(self.waiting),
            loads=list(self.loads),
        )

    @property
    def idle(self) -> bool:
        return self.resident and not self.active

    @property
    def forgotten(self) -> bool:
        """Whether there is nothing left to know about this model."""
        return not (self.resident or self.active or self.waiting or self.load or self.unload)


class State:
    """Requests, models and jobs as they are now. Only `Transitions` changes them.

    Attributes:
        ledger: counts memory.
        now: the time of the current input, in seconds.
        requests: every request that has not finished.
        early: the requests whose prompt is not known yet.
        models: every model that is resident or wanted.
        residents: the resident models. There are few, because memory bounds them.
        jobs: pending jobs, oldest first.
        callers: the job that each caller waits for.
        fresh: jobs added during the current input.
        running: the job that the engine has, or None.
        held: models whose load is not prepared, so that it lets others pass.
        active: requests that the engine has, in the order they started.
        paused: the active requests that are not stepped while jobs run.
        pause_began: when they were paused.
        next_pause: when they may be paused again.
    """

    def __init__(self, ledger: MemoryLedger) -> None:
        self.ledger = ledger
        self.now = 0.0
        self.requests: dict[str, RequestState] = {}
        self.early: dict[str, None] = {}
        self.models: dict[str, ModelState] = {}
        self.residents: dict[str, ModelState] = {}
        self.jobs: OrderedDict[str, JobState] = OrderedDict()
        self.callers: dict[str, JobState] = {}
        self.fresh: list[JobState] = []
        self.running: JobState | None = None
        self.held: dict[str, None] = {}
        self.active: dict[str, None] = {}
        self.paused: dict[str, None] = {}
        self.pause_began = 0.0
        self.next_pause = 0.0

    def take_over(self, other: State) -> None:
        """Become a copy of another, which shares nothing with it that changes."""
        self.ledger = other.ledger.copy()
        self.now = other.now
        self.requests = {name: copy.copy(request) for name, request in other.requests.items()}
        for request in self.requests.values():
            request.timing = copy.copy(request.timing)
        self.early = dict(other.early)
        self.models = {name: model.copy() for name, model in other.models.items()}
        self.residents = {name: self.models[name] for name in other.residents}
        running = [other.running] if other.running is not None else []
        jobs = {job.id: job.copy() for job in (*other.jobs.values(), *running)}
        self.jobs = OrderedDict((name, jobs[name]) for name in other.jobs)
        self.callers = {caller: jobs[job.id] for caller, job in other.callers.items()}
        self.running = jobs[other.running.id] if other.running is not None else None
        self.active = dict(other.active)
        self.paused = dict(other.paused)
        self.pause_began, self.next_pause = other.pause_began, other.next_pause

    def head(self) -> JobState | None:
        """The oldest pending job that its own model does not block."""
        for job in self.jobs.values():
            if not self.busy(job):
                return job
        return None

    def busy(self, job: JobState) -> bool:
        """Whether this job must wait for its own model: for its generations, or its preparation."""
        if job.kind == "load" and job.model in self.held:
            return True
        return job.kind != "run" and bool(self.models[job.model].active)

    def pending(self, job_id: str | None) -> JobState | None:
        return self.jobs.get(job_id) if job_id is not None else None

    def find(self, job_id: str | None) -> JobState | None:
        """A pending or running job."""
        if self.running is not None and self.running.id == job_id:
            return self.running
        return self.pending(job_id)

    def wanted(self, job: JobState) -> bool:
        """Whether anything still needs this load or unload."""
        if job.callers or job.wanted_by or job.urgent or job.pinned:
            return True
        return job.kind == "load" and bool(self.models[job.model].waiting)

    def idle(self) -> list[ModelState]:
        """Models that could be unloaded at once to free memory.

        A model that requests wait for is among them only if there are no others, as it
        would be loaded again. A model with interrupted requests counts as active.
        """
        leaving = self.running.leaving if self.running is not None else ()
        idle = [
            model
            for model in self.residents.values()
            if model.idle and not model.pinned and model.name not in leaving
            if not (model.waiting and self.first(model).status is Status.INTERRUPTED)
        ]
        return [model for model in idle if not model.waiting] or idle

    def evictable(self, keep: str, place: Place) -> list[str]:
        """Models that may be evicted so that `keep` fits, least recently used first.

        A model with a waiting request from before `place` stays.
        """
        idle = [
            model
            for model in self.residents.values()
            if not (model.active or model.pinned or model.name == keep)
            if not (model.waiting and self.first(model).place < place)
        ]
        idle.sort(key=lambda model: model.last_used)
        return [model.name for model in idle]

    def first(self, model: ModelState) -> RequestState:
        """The oldest of a model's waiting requests."""
        return self.requests[next(iter(model.waiting))]

    def holders(self, active: Iterable[str] | None = None) -> Pairs:
        """All active generations, or the given ones, as (request id, model)."""
        return tuple((r, self.requests[r].model) for r in (active or self.active))

    def queued_requests(self) -> int:
        """How many requests wait for their turn."""
        return len(self.requests) - len(self.active) - len(self.early)
