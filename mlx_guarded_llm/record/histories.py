"""The history of each request and of each job, put together from the events.

Every view of the record (story, chart, trace) is made from these, so the views agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from . import phrases
from .events import Event
from .log import cancelled

Outcome = Literal["finished", "failed", "cancelled", "interrupted"]


@dataclass
class Pause:
    """A time in which a started generation stood still; `end` is None while it still does.

    Attributes:
        job_id: the job that the generation made way for, or None.
        cut_off: an engine lost the generation, which had to start again.
        died: that engine died.
        emitted: how many tokens the generation had by then, if known.
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
    """Why a job had to wait from `time` on, and for what."""

    time: float
    cause: str
    waiting_for: tuple[tuple[str, str], ...]


@dataclass
class RequestHistory:
    """What the record says about one request. A time is None if the record does not have it.

    Attributes:
        seen: time of its first event in the record.
        waiting_for: what it was queued behind, as (request or job id, model).
        emitted: tokens of its answer that another server had given by then.
        details: the numbers of its last event.
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
    emitted: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def partial(self) -> bool:
        """Whether its first events were dropped from the record."""
        return self.queued is None

    @property
    def pausing(self) -> bool:
        return bool(self.pauses) and self.pauses[-1].end is None

    def pause(self, time: float, cause: str, job_id: str | None = None) -> None:
        if self.started is not None and self.ended is None and not self.pausing:
            self.pauses.append(Pause(time, cause=cause, job_id=job_id))

    def cut_off(self, time: float, cause: str, *, died: bool = False) -> None:
        """An engine lost the request. `engine.died` comes before what that engine lost."""
        if not (self.pausing and self.pauses[-1].cut_off):
            self.go_on(time)
            self.pause(time, cause)
            if self.pausing:
                self.pauses[-1].cut_off, self.pauses[-1].died = True, died

    def go_on(self, time: float) -> None:
        if self.pausing:
            self.pauses[-1].end = time

    def speed(self, tokens: int | None = None, now: float | None = None) -> float | None:
        """Tokens per second from the first token on, without pauses and further prefills.

        Args:
            tokens: that it has by now; None takes the number that its end told.
            now: seconds of `time.monotonic()`, while it has not ended.
        """
        count = phrases.number(self.details, "completion_tokens") if tokens is None else tokens
        first, until = self.first_token, now if self.ended is None else self.ended
        if count is None or count < 2 or first is None or until is None:
            return None
        still = sum(clip(pause.start, pause.end, first, until) for pause in self.pauses)
        decoding = until - first - still - self._prefill_again(first, until)
        return (count - 1) / decoding if decoding > 0 else None

    def _prefill_again(self, first: float, until: float) -> float:
        """How long the last engine took to prefill what an earlier one had generated."""
        cuts = [pause.end for pause in self.pauses if pause.cut_off and pause.start >= first]
        took = phrases.number(self.details, "prefill")
        if not cuts or cuts[-1] is None or took is None:
            return 0.0
        begin, end = cuts[-1], min(cuts[-1] + took, until)
        still = sum(clip(pause.start, pause.end, begin, end) for pause in self.pauses)
        return end - begin - still

    def add(self, verb: str, event: Event, first: float) -> None:
        """Add the next event; `first` is the time at which the record begins."""
        time = event.time
        if self.partial and self.started is None and _implies_start(verb):
            # It began before the record does. A resumed request must have been paused.
            self.started = first
            if verb == "resumed":
                self.pause(first, event.cause, event.job_id)
        match verb:
            case "queued":
                self.queued = time if self.queued is None else self.queued
                self.waiting_for += event.waiting_for
                self.emitted = phrases.count(event.details, "emitted")
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
                    self.pauses[-1].emitted = phrases.count(event.details, "emitted")
            case "finished" | "failed":
                self.go_on(time)
                self.ended = time
                self.outcome = _outcome(verb, event)
                self.cause, self.details = event.cause, event.details


@dataclass
class JobHistory:
    """What the record says about one load, unload or user's function.

    Attributes:
        subject: "load", "unload" or "run".
        request_id: the request that asked for it, if one did.
        again: it is another try of a load that was interrupted.
        deferrals: what deferred it, in order; each names what the job found in its way.
        evict: models that were unloaded to make room for it.
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
        """When it was first deferred."""
        return self.deferrals[0].time if self.deferrals else None

    @property
    def waiting_for(self) -> tuple[tuple[str, str], ...]:
        """Everything that deferred it, as (request or job id, model)."""
        return tuple(dict.fromkeys(pair for d in self.deferrals for pair in d.waiting_for))

    @property
    def name(self) -> str:
        return f"{self.subject} of {self.model}" if self.model else f"{self.subject} {self.job_id}"

    def add(self, verb: str, event: Event, first: float) -> None:
        """Add the next event; `first` is the time at which the record begins."""
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
        # A failure may be reported after the death of the engine that ended the job.
        self.ended = time if self.ended is None else self.ended
        self.outcome, self.cause = outcome, cause or self.cause


@dataclass
class Histories:
    """All histories in the record.

    Attributes:
        requests: by id, in order of their first event.
        jobs: in order of their first event.
        engine: the engine's own events, and those of quarantined models.
        first: time of the first event.
        last: time of the last event.
    """

    requests: dict[str, RequestHistory] = field(default_factory=dict)
    jobs: list[JobHistory] = field(default_factory=list)
    engine: list[Event] = field(default_factory=list)
    first: float = 0.0
    last: float = 0.0
    _latest: dict[str, JobHistory] = field(default_factory=dict)

    def job(self, job_id: str | None) -> JobHistory | None:
        """The latest job with this id. Ids may repeat after the engine was replaced."""
        return self._latest.get(job_id or "")

    def jobs_of(self, request: RequestHistory) -> list[JobHistory]:
        """What the request waited for: loads of its model, and jobs it was queued behind."""
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

    def jobs_behind(self, pause: Pause, request_id: str) -> list[JobHistory]:
        """The jobs for which a request was paused, as far as the record goes."""
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
                history = self.requests.get(event.request_id)
                if history is None:
                    history = RequestHistory(event.request_id, event.model or "?", event.time)
                    self.requests[event.request_id] = history
                history.add(verb, event, self.first)
        else:
            job_id = event.job_id or f"{subject} of {event.model}"
            job = self._latest.get(job_id)
            again = verb in ("queued", "deferred", "started")
            if job is None or (job.ended is not None and again):
                job = self._latest[job_id] = JobHistory(job_id, subject, event.model, event.time)
                self.jobs.append(job)
            job.add(verb, event, self.first)
            if verb == "interrupted":
                self._try_again(job, event.time)

    def _try_again(self, job: JobHistory, time: float) -> None:
        """An interrupted load is pending again: the history of its next try begins."""
        again = JobHistory(job.job_id, job.subject, job.model, time, job.request_id)
        again.again, again.queued = True, time
        self._latest[job.job_id] = again
        self.jobs.append(again)

    def _cut_off(self, event: Event) -> None:
        """The engine died. Its requests go on in the next one; jobs have their own events."""
        for request in self.requests.values():
            request.cut_off(event.time, event.cause or "the engine died", died=True)

    def _stand_still(self, event: Event) -> None:
        """The engine is gone, so nothing generates or loads."""
        cause = event.cause or event.kind.replace(".", " ")
        for request in self.requests.values():
            request.pause(event.time, cause)
        for job in self.jobs:
            if job.ended is None:
                job.end(event.time, "failed", cause)


def read(events: Iterable[Event]) -> Histories:
    """Put the histories together from the events of a record."""
    # Threads wait for the lock of the record, so events may be slightly out of order.
    ordered = sorted(events, key=lambda event: event.time)
    histories = Histories(first=ordered[0].time if ordered else 0.0)
    for event in ordered:
        histories.add(event)
    return histories


def clip(start: float | None, end: float | None, low: float, high: float) -> float:
    """The length of start..end within low..high; an open end reaches to `high`."""
    if start is None:
        return 0.0
    return max(0.0, min(high if end is None else end, high) - max(start, low))


def _implies_start(verb: str) -> bool:
    return verb in ("first_token", "paused", "resumed", "interrupted", "finished")


def _outcome(verb: str, event: Event) -> Outcome:
    if cancelled(event):
        return "cancelled"
    return "finished" if verb == "finished" else "failed"
