"""What the guard promises about who may pass whom and for how long, checked as it happens."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_guarded_llm.guard.state import JobState, Place
from mlx_guarded_llm.record.events import Event

if TYPE_CHECKING:
    from tests.unit.guard.simulation import Simulation


START = Place(-1, 0.0, 0)  # before everything


@dataclass
class Ran:
    """One job that ran."""

    id: str
    began: float
    ended: float | None = None

    def within(self, begin: float, end: float) -> float:
        until = end if self.ended is None else min(end, self.ended)
        return max(0.0, until - max(begin, self.began))


class Promises:
    """Hears every event of a simulation.

    Attributes:
        pauses: seconds that each request has been paused, by what the events say.
        recovering: likewise, from each interruption until it started again.
        longest: seconds that any job waited past its deadline.
    """

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.state = sim.state
        self.window = sim.fairness_window
        self.max_active = sim.max_active
        self.paused_at: dict[str, float] = {}
        self.resumed_at: dict[str, float] = {}
        self.released: dict[str, float] = {}
        self.started: dict[str, float] = {}
        self.places: dict[str, Place] = {}
        self.pauses: dict[str, float] = {}
        self.begun: set[str] = set()
        self.urgent: set[str] = set()
        self.out_of_memory_at = 0.0
        self.last_busy: dict[str, float] = {}
        self.longest = 0.0
        self.interrupted_at: dict[str, float] = {}
        self.recovering: dict[str, float] = {}

    @property
    def now(self) -> float:
        return self.sim.now

    def hear(self, event: Event) -> None:
        """Check them at the moment something happens."""
        self.last_busy.update(
            {j.id: self.now for j in self.state.jobs.values() if self.state.busy(j)}
        )
        subject, verb = event.kind.split(".")
        request_id, job_id = event.request_id, event.job_id
        if event.kind == "request.queued":
            assert request_id is not None
            self.places[request_id] = self.state.requests[request_id].place
            self._release_load(event.model, self.places[request_id])
        elif event.kind == "request.started":
            assert request_id is not None
            self.started.setdefault(request_id, self.now)
            if request_id in self.interrupted_at:
                seconds = self.now - self.interrupted_at.pop(request_id)
                self.recovering[request_id] = self.recovering.get(request_id, 0.0) + seconds
            else:
                self._check_interrupted_first()
            self._check_nothing_passed(request_id)
        elif event.kind in ("request.finished", "request.failed"):
            assert request_id is not None
            self._add_pause(request_id)
            self.interrupted_at.pop(request_id, None)
            if request_id in self.places:  # else it never stood in anybody's way
                self._release(self.places[request_id], self.started.get(request_id))
                self._release_load(event.model, self.places[request_id])
        elif event.kind == "request.paused":
            assert request_id is not None
            last = self.resumed_at.get(request_id)
            assert last is None or self.now - last >= self.window, "no turn"
            self.paused_at[request_id] = self.now
        elif event.kind == "request.resumed":
            assert request_id is not None
            self._add_pause(request_id)
            self.resumed_at[request_id] = self.now
        elif event.kind == "request.interrupted":
            assert request_id is not None
            self._add_pause(request_id)
            self.resumed_at.pop(request_id, None)
            self.interrupted_at[request_id] = self.now
        elif verb == "queued":
            assert job_id is not None
            self.released[job_id] = self.now
        elif verb == "started":
            assert job_id is not None
            self.begun.add(job_id)
            if self.state.running is not None and self.state.running.urgent:
                self.urgent.add(job_id)
            self._check_turn(job_id)
        elif verb == "finished" and job_id in self.urgent:
            self._release(START, None)  # requests before a job lost their model and queue anew
        elif verb == "interrupted":
            assert job_id is not None
            self.begun.discard(job_id)
        elif subject != "request" and verb in ("cancelled", "failed"):
            assert job_id is not None
            if job_id not in self.begun:  # what was behind it may find it was fit to begin
                self._release(START, None)
            self.begun.discard(job_id)

    def _add_pause(self, request_id: str) -> None:
        if request_id in self.paused_at:
            seconds = self.now - self.paused_at.pop(request_id)
            self.pauses[request_id] = self.pauses.get(request_id, 0.0) + seconds

    def _release(self, place: Place, started: float | None) -> None:
        """What jobs may have waited for is over: a request that may hold them up."""
        for job in self.state.jobs.values():
            if place < job.place or (started is not None and started < self._held_from(job)):
                self.released[job.id] = self.now

    def _release_load(self, name: str | None, place: Place) -> None:
        """A load is planned with room for the first request for its model.

        That has ended, or another one came before it, and now the load may be fit to begin, and
        so may what is behind it.
        """
        model = self.state.models.get(name or "")
        load = self.state.pending(model.load) if model is not None else None
        if load is None or model is None:
            return
        waiting = [self.state.requests[request_id].place for request_id in model.waiting]
        if all(place <= other for other in waiting):
            behind = (job for job in self.state.jobs.values() if load.place <= job.place)
            self.released.update({job.id: self.now for job in behind})

    def _held_from(self, job: JobState) -> float:
        """When newcomers began to wait for it: not while its own model was generating."""
        window_ends = job.arrival + self.window
        return max(window_ends, self.last_busy.get(job.id, -1.0) + 0.5)

    def _check_interrupted_first(self) -> None:
        """A request starts afresh only when those that were cut off go on, if they can."""
        for name in self.interrupted_at:
            model = self.state.models[self.state.requests[name].model]
            assert not model.resident or len(model.active) >= self.max_active, "cut off for longer"

    def _check_nothing_passed(self, request_id: str) -> None:
        """After the window no newcomer passes what waits."""
        request = self.state.requests[request_id]
        for job in self.state.jobs.values():
            if request.place <= job.place or self.now < job.arrival + self.window:
                continue
            assert self.state.busy(job) and job.model != request.model, "a newcomer passed a job"
        for model in self.state.residents.values():
            if not model.waiting or len(model.active) >= self.max_active:
                continue
            first = self.state.first(model)
            if first.place < request.place and self.now >= first.arrival + self.window:
                unload = self.state.pending(model.unload)
                held = unload is not None and unload.place < first.place
                assert held, "a newcomer passed a request that lacks room"

    def _check_turn(self, job_id: str) -> None:
        """First come first served, and the bound of docs/concepts/scheduling.md."""
        job = self.state.running
        assert job is not None and job.id == job_id
        for other in self.state.jobs.values():
            assert job.place <= other.place or self.state.busy(other), "a job passed another"
        self.longest = max(self.longest, self._overdue(job))
        assert self._overdue(job) <= self.window, "a job waited too long"

    def _overdue(self, job: JobState) -> float:
        """Seconds it waited past its deadline while no job ran.

        Counted from the last end of a request that may have held its memory.
        """
        since = max(job.arrival + self.sim.load_wait, self.released[job.id])
        if job.urgent:
            pauses = self.sim.on_load_deadline == "pause"
            since = self.out_of_memory_at if pauses else max(since, self.out_of_memory_at)
        late = itertools.takewhile(
            lambda ran: ran.ended is None or ran.ended > since, reversed(self.sim.ran)
        )
        return self.now - since - sum(ran.within(since, self.now) for ran in late)

    def check_pending(self) -> None:
        """A job that waits longer waits for memory, of requests it may not pass.

        Those that were cut off keep their places.
        """
        active = [*self.sim.generations, *self.interrupted_at]
        for job in self.state.jobs.values():
            if self._overdue(job) > self.window:
                before = [r for r in active if self._counts(r, job)]
                assert before, "a job starves"
                assert self.sim.ledger is not None or self.state.busy(job), "a job starves"

    def _counts(self, request_id: str, job: JobState) -> bool:
        early = self.started[request_id] < self._held_from(job)
        return early or self.places[request_id] < job.place
