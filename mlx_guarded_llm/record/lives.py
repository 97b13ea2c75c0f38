"""Events put together again: the life of each request and of each job.

Every view of the record (story, chart, trace) is drawn from these, so they agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from . import words
from .events import Event
from .log import cancelled

Outcome = Literal["finished", "failed", "cancelled", "interrupted"]


@dataclass
class Pause:
    """A time in which a started generation stood still; `end` is None while it does.

    Attributes:
        job_id: the exclusive work it made way for, or None.
        cut_off: an engine lost it, and it had to start again.
        died: that engine died.
        emitted: tokens it had by then, if known.
    """

    start: float
    end: float | None = None
    cause: str = ""
    job_id: str | None = None
    cut_off: bool = False
    died: bool = False
    emitted: int | None = None


@dataclass(frozen=True)
class Deferral:
    """Why and for whom a job had to wait from `time` on."""

    time: float
    cause: str
    waiting_for: tuple[tuple[str, str], ...]


@dataclass
class RequestLife:
    """What the record tells of one request. Times are None where it tells nothing.

    Attributes:
        seen: time of its first event in the record.
        waiting_for: (request or job id, model) of what it was queued behind.
        details: numbers of its end.
    """

    request_id: str
    model: str
    seen: float
    queued: float | None = None
    started: float | None = None
    first_token: float | None = None
    ended: float | None = None
    pauses: list[Pause] = field(default_factory=list)
    outcome: Outcome | None = None
    cause: str = ""
    waiting_for: tuple[tuple[str, str], ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def partial(self) -> bool:
        """Its first events were dropped from the record."""
        return self.queued is None

    @property
    def pausing(self) -> bool:
        return bool(self.pauses) and self.pauses[-1].end is None

    def pause(self, time: float, cause: str, job_id: str | None = None) -> None:
        if self.started is not None and self.ended is None and not self.pausing:
            self.pauses.append(Pause(time, cause=cause, job_id=job_id))

    def cut_off(self, time: float, cause: str, *, died: bool = False) -> None:
        """An engine lost it. The death of an engine is told before what it lost."""
        if not (self.pausing and self.pauses[-1].cut_off):
            self.go_on(time)
            self.pause(time, cause)
            if self.pausing:
                self.pauses[-1].cut_off, self.pauses[-1].died = True, died

    def go_on(self, time: float) -> None:
        if self.pausing:
            self.pauses[-1].end = time

    def add(self, verb: str, event: Event, first: float) -> None:
        """Take in the next event; `first` is the time at which the record begins."""
        time = event.time
        if self.partial and self.started is None and _implies_start(verb):
            # It began before the record does. Only a paused one can be resumed.
            self.started = first
            if verb == "resumed":
                self.pause(first, event.cause, event.job_id)
        match verb:
            case "queued":
                self.queued = time if self.queued is None else self.queued
                self.waiting_for += event.waiting_for
            case "started" if self.started is None:
                self.started = time
            case "started" | "resumed":  # started again: it goes on in a new engine
                self.go_on(time)
            case "first_token" if self.first_token is None:
                self.first_token = time
            case "paused":
                self.pause(time, event.cause, event.job_id)
            case "interrupted":
                self.cut_off(time, event.cause)
                if self.pausing:
                    self.pauses[-1].emitted = words.count(event.details, "emitted")
            case "finished" | "failed":
                self.go_on(time)
                self.ended = time
                self.outcome = _outcome(verb, event)
                self.cause, self.details = event.cause, event.details


@dataclass
class JobLife:
    """What the record tells of one load, unload or piece of foreign work.

    Attributes:
        subject: "load", "unload" or "run".
        request_id: the request that asked for it, if one did.
        again: it is the next try of a load that was cut off.
        deferrals: what deferred it, in order; a later one names what it found next.
        evict: models unloaded to make room for it.
        paused: requests that stood still for it.
    """

    job_id: str
    subject: str
    model: str | None
    seen: float
    request_id: str | None = None
    again: bool = False
    queued: float | None = None
    started: float | None = None
    ended: float | None = None
    deferrals: list[Deferral] = field(default_factory=list)
    outcome: Outcome | None = None
    cause: str = ""
    evict: tuple[str, ...] = ()
    paused: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def deferred(self) -> float | None:
        """Since when it was deferred."""
        return self.deferrals[0].time if self.deferrals else None

    @property
    def waiting_for(self) -> tuple[tuple[str, str], ...]:
        """(request or job id, model) of all that deferred it."""
        return tuple(dict.fromkeys(pair for d in self.deferrals for pair in d.waiting_for))

    @property
    def name(self) -> str:
        return f"{self.subject} of {self.model}" if self.model else f"{self.subject} {self.job_id}"

    def add(self, verb: str, event: Event, first: float) -> None:
        """Take in the next event; `first` is the time at which the record begins."""
        self.request_id = self.request_id or event.request_id
        match verb:
            case "queued" if self.deferred is None and self.started is None:
                self.queued = event.time if self.queued is None else self.queued
            case "deferred" if self.started is None:
                self.deferrals.append(Deferral(event.time, event.cause, event.waiting_for))
            case "started" if self.started is None:
                self.started = event.time
                self.evict = tuple(event.details.get("evict") or ())
                self.paused = tuple(event.details.get("paused") or ())
            case "finished" | "failed" | "cancelled" | "interrupted":
                if self.queued is None and self.started is None and verb == "finished":
                    self.started = first
                self.end(event.time, verb, event.cause)
                self.details = event.details

    def end(self, time: float, outcome: Outcome, cause: str) -> None:
        # A failure may be reported after the death of the engine that ended the work.
        self.ended = time if self.ended is None else self.ended
        self.outcome, self.cause = outcome, cause or self.cause


@dataclass
class Lives:
    """Every life in the record.

    Attributes:
        requests: by id, in order of their first event.
        jobs: in order of their first event.
        engine: the engine's own events, and those of models that it is not to load.
        first: time of the first event.
        last: time of the last event.
    """

    requests: dict[str, RequestLife] = field(default_factory=dict)
    jobs: list[JobLife] = field(default_factory=list)
    engine: list[Event] = field(default_factory=list)
    first: float = 0.0
    last: float = 0.0
    _latest: dict[str, JobLife] = field(default_factory=dict)

    def job(self, job_id: str | None) -> JobLife | None:
        """The latest job of this id. A new engine counts them afresh."""
        return self._latest.get(job_id or "")

    def jobs_of(self, request: RequestLife) -> list[JobLife]:
        """What the request waited for: its model's loads, and work it was queued behind."""
        if request.queued is None:
            return []
        named = {name for name, _ in request.waiting_for}
        ends = (time for time in (request.started, request.ended, self.last) if time is not None)
        end = next(ends)
        return [
            job
            for job in self.jobs
            if (
                job.job_id in named
                or job.request_id == request.request_id
                or (job.subject == "load" and job.model == request.model)
            )
            and job.seen <= end
            and (job.ended is None or job.ended >= request.queued)
        ]

    def jobs_behind(self, pause: Pause, request_id: str) -> list[JobLife]:
        """The exclusive work for which a request was paused, as far as the record goes."""
        end = self.last if pause.end is None else pause.end
        return [
            job
            for job in self.jobs
            if (job.job_id == pause.job_id or request_id in job.paused)
            and job.started is not None
            and pause.start <= job.started <= end
        ]

    def add(self, event: Event) -> None:
        subject, _, verb = event.kind.partition(".")
        self.last = event.time
        if subject in ("engine", "model"):
            self.engine.append(event)
            if verb == "died":
                self._cut_off(event)
            elif verb in ("failed", "stopped"):
                self._stand_still(event)
        elif subject == "request":
            if event.request_id is not None:
                life = self.requests.get(event.request_id)
                if life is None:
                    life = RequestLife(event.request_id, event.model or "?", event.time)
                    self.requests[event.request_id] = life
                life.add(verb, event, self.first)
        else:
            job_id = event.job_id or f"{subject} of {event.model}"
            job = self._latest.get(job_id)
            again = verb in ("queued", "deferred", "started")
            if job is None or (job.ended is not None and again):
                job = self._latest[job_id] = JobLife(job_id, subject, event.model, event.time)
                self.jobs.append(job)
            job.add(verb, event, self.first)
            if verb == "interrupted":
                self._try_again(job, event.time)

    def _try_again(self, job: JobLife, time: float) -> None:
        """A load that was cut off is pending again: the life of its next try begins."""
        again = JobLife(job.job_id, job.subject, job.model, time, job.request_id)
        again.again, again.queued = True, time
        self._latest[job.job_id] = again
        self.jobs.append(again)

    def _cut_off(self, event: Event) -> None:
        """The engine died: what it did goes on in the next. Its jobs are told of apart."""
        for request in self.requests.values():
            request.cut_off(event.time, event.cause or "the engine died", died=True)

    def _stand_still(self, event: Event) -> None:
        """Nothing generates or loads in an engine that is gone."""
        cause = event.cause or event.kind.replace(".", " ")
        for request in self.requests.values():
            request.pause(event.time, cause)
        for job in self.jobs:
            if job.ended is None:
                job.end(event.time, "failed", cause)


def read(events: Iterable[Event]) -> Lives:
    """Put the events of a record together."""
    # Threads may append out of order by the time it takes to get the lock.
    ordered = sorted(events, key=lambda event: event.time)
    lives = Lives(first=ordered[0].time if ordered else 0.0)
    for event in ordered:
        lives.add(event)
    return lives


def _implies_start(verb: str) -> bool:
    return verb in ("first_token", "paused", "resumed", "interrupted", "finished")


def _outcome(verb: str, event: Event) -> Outcome:
    if cancelled(event):
        return "cancelled"
    return "finished" if verb == "finished" else "failed"
