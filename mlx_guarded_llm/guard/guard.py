"""The inputs of the guard: what its owner may tell it and ask it.

No model loads while a generation is stepping. The guard decides when each may begin; its
owner carries that out.

The guard is pure: no threads, no clock, no MLX. Every input takes `now` (seconds of one
monotonic clock) and returns the actions that the owner must carry out, in order. The owner
makes one call at a time.

Two kinds of work share one engine:

- a *generation*: many may be active at once;
- a *job* (a load, an unload or a function of the user's): exclusive, one at a time, first
  come first served.

An input is applied to the `state` by the `transitions`; then the `rules` begin whatever may
begin.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace

from ..errors import BackendClosed, GuardedLLMError, InvalidRequest
from ..record.events import Event
from .actions import Action, Settle
from .errors import describe, queue_full
from .limits import GuardLimits, Priority
from .memory_ledger import MemoryLedger, UnlimitedMemory
from .rules import Rules
from .state import JobState, ModelState, State, Status, Timing
from .transitions import Transitions


class Guard:
    """Decides what may begin.

    Args:
        limits: how long work may wait, and how much is accepted.
        ledger: counts memory; without one everything fits.
        emit: receives every event.
        lost: there is no engine yet; nothing begins until `back`.
    """

    def __init__(
        self,
        limits: GuardLimits | None = None,
        *,
        ledger: MemoryLedger | None = None,
        emit: Callable[[Event], None] = lambda event: None,
        lost: bool = False,
    ) -> None:
        self._limits = limits or GuardLimits()
        self._state = State(ledger or UnlimitedMemory())
        self._transitions = Transitions(self._state, emit)
        self._rules = Rules(self._state, self._transitions, self._limits, lost=lost)

    # ---- what the owner may ask --------------------------------------------------

    @property
    def may_step(self) -> bool:
        """Whether generations may be stepped: no job is running."""
        return self._state.running is None

    @property
    def quiet(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not (self._state.requests or self._state.jobs or self._state.running)

    def status(self, request_id: str) -> Status:
        """The status of this request. One that the guard does not know has finished."""
        request = self._state.requests.get(request_id)
        return Status.FINISHED if request is None else request.status

    def running(self) -> int:
        """How many requests the engine has."""
        return len(self._state.active)

    def waiting(self, now: float) -> tuple[int, float]:
        """How many requests have not started, or wait to go on, and the age of the oldest."""
        ages = [
            now - (r.interrupted_at if r.status is Status.INTERRUPTED else r.submitted_at)
            for r in self._state.requests.values()
            if not r.status.started
        ]
        return len(ages), max(ages, default=0.0)

    def full(self) -> bool:
        """Whether the next request would find no place in the queue."""
        return self._state.queued_requests() >= self._limits.max_queue

    def models(self) -> list[ModelState]:
        """Every model that is resident or wanted. Read only."""
        return list(self._state.models.values())

    def stage(self, model: ModelState) -> str:
        """How far it is: "queued", "deferred", "loading", "resident" or "unloading".

        A load is deferred from when it first had to wait for something until it begins.
        """
        if model.resident:
            return "unloading" if model.unload else "resident"
        load = self._state.find(model.load)
        if load is None or load.started_at is None:
            return "queued" if load is None or load.deferred_at is None else "deferred"
        return "loading"

    def has(self, model: str) -> bool:
        """Whether this model is resident, or a load of it is pending or running."""
        state = self._state.models.get(model)
        return state is not None and (state.resident or state.load is not None)

    def idle(self) -> list[str]:
        """The models that `evict_idle` would unload now."""
        return [model.name for model in self._state.idle()]

    def next_deadline(self) -> float | None:
        """When `tick` must be called, if no other input comes before.

        It is never before the last input, but it may be the same time: with
        `fairness_window=0` one pause may follow another at once, and the owner may step
        once between them.
        """
        due = self._rules.next_deadline()
        return None if due == math.inf else due

    def fork(self) -> tuple[Guard, State]:
        """Another guard in the same state, and that state; see `forecast`.

        It tells nobody what it does, has any number of places, and its requests no deadlines.
        Nothing is held in it: nobody knows for how long.
        """
        fork = Guard(replace(self._limits, max_queue=sys.maxsize), lost=self._rules.lost)
        fork._rules.closed = self._rules.closed
        fork._transitions.go_on_from(self._transitions)
        fork._state.take_over(self._state)
        return fork, fork._state

    # ---- inputs: requests --------------------------------------------------------

    # From `submit` to its end a request has exactly one status; see `state.Status`.

    def submit(
        self,
        now: float,
        request_id: str,
        model: str,
        *,
        expires: float | None = None,
        priority: Priority = "interactive",
    ) -> None:
        """A new request. The files of its model are to be found.

        Raises:
            InvalidRequest: a request of this id has not ended yet.
            BackendClosed: nothing more is accepted.
        """
        state = self._at(now)
        if request_id in state.requests:
            raise InvalidRequest(f"a request {request_id!r} is already under way.")
        if self._rules.closed:
            raise BackendClosed("the backend is closed.")
        self._rules.watch(self._transitions.enter(request_id, model, expires, priority))

    def fetched(self, request_id: str) -> None:
        """The files of its model were found. Its prompt is to be prepared by an engine."""
        request = self._state.requests.get(request_id)
        if request is not None and request.status is Status.FETCHING:
            request.become(Status.PREPARING)

    def prepared(self, now: float, request_id: str, **details: object) -> list[Action]:
        """The prompt of this request is ready. The request starts, waits or fails.

        Args:
            details: for the record.
        """
        state = self._at(now)
        request = state.requests.get(request_id)
        if request is None or request.status is not Status.PREPARING:
            return self._rules.pump()
        if state.queued_requests() >= self._limits.max_queue:
            self._transitions.withdraw(
                request, queue_full(self._limits.max_queue, "requests"), "queue full"
            )
        else:
            self._transitions.accept(
                request,
                self._rules.ahead(self._transitions.model(request.model)),
                delay=self._limits.batch_wait if request.priority == "batch" else 0.0,
                details=details,
            )
        return self._rules.pump()

    def answered(self, request_id: str) -> None:
        """This request needed only its preparation, so it ends without a turn."""
        request = self._state.requests.get(request_id)
        if request is not None and request.status is Status.PREPARING:
            self._transitions.remove(request)

    def cancel(
        self, now: float, request_id: str, *, error: GuardedLLMError | None = None
    ) -> list[Action]:
        """End a request, whatever its status. A finished one is ignored."""
        state = self._at(now)
        request = state.requests.get(request_id)
        if request is not None:
            self._transitions.withdraw(request, error, cause="cancelled")
        return self._rules.pump()

    def ended(
        self,
        now: float,
        request_id: str,
        *,
        error: GuardedLLMError | None = None,
        cause: str = "",
        **details: object,
    ) -> tuple[Timing, list[Action]]:
        """The engine has finished a request. Returns where the time of the request went."""
        state = self._at(now)
        request = state.requests.get(request_id)
        if request is None or not request.status.started:
            return Timing(), self._rules.pump()
        self._transitions.end(request)
        self._transitions.note(
            "request.failed" if error else "request.finished",
            model=request.model,
            request_id=request_id,
            cause=describe(error) if error else cause,
            details=details,
        )
        return request.timing, self._rules.pump()

    def first_token(self, now: float, request_id: str, **details: object) -> None:
        """Record that the engine produced the first token of a request."""
        state = self._at(now)
        request = state.requests.get(request_id)
        if request is not None:
            self._transitions.note(
                "request.first_token", model=request.model, request_id=request_id, details=details
            )

    # ---- inputs: jobs ------------------------------------------------------------
    # A `job_id` stands for one caller. An id that is in use raises InvalidRequest.

    def ask_load(self, now: float, job_id: str, model: str, *, pin: bool = False) -> list[Action]:
        """A caller wants `model` resident. `pin` keeps it from eviction."""
        state = self._at(now)
        if not self._may_ask(job_id):
            return self._rules.pump()
        wanted = self._transitions.model(model)
        unload = state.pending(wanted.unload)
        leaving = state.running is not None and model in state.running.leaving
        going = unload is not None and (unload.callers or unload.urgent)
        if not wanted.resident or leaving or going:
            self._transitions.want_load(wanted, None, cause="asked", caller=job_id, pin=pin)
            return self._rules.pump()
        wanted.pinned = wanted.pinned or pin
        wanted.last_used = now
        if unload is not None:
            self._transitions.drop(unload, cause="wanted again")
        self._transitions.actions.append(Settle(job_id, ran=False))
        return self._rules.pump()

    def ask_unload(self, now: float, job_id: str, model: str) -> list[Action]:
        """A caller wants `model` out of memory. It leaves when it is idle."""
        self._at(now)
        if not self._may_ask(job_id):
            return self._rules.pump()
        unwanted = self._transitions.model(model)
        if unwanted.resident or unwanted.load:
            self._transitions.want_unload(unwanted, cause="asked", caller=job_id)
        else:
            self._transitions.actions.append(Settle(job_id, ran=False))
            self._transitions.forget(unwanted)
        return self._rules.pump()

    def unpin(self, now: float, model: str) -> list[Action]:
        """A model may be evicted again, and so may one that is being loaded to be pinned."""
        state = self._at(now)
        known = state.models.get(model)
        if known is not None:
            self._transitions.unpin(known)
        return self._rules.pump()

    def ask_run(self, now: float, job_id: str, label: str) -> list[Action]:
        """A caller wants to run a function of its own under the guard."""
        self._at(now)
        if self._may_ask(job_id):
            self._transitions.want_run(label, job_id)
        return self._rules.pump()

    def cancel_job(self, now: float, job_id: str) -> list[Action]:
        """A caller no longer waits for its job. A running job goes on all the same."""
        state = self._at(now)
        job = state.callers.pop(job_id, None)
        if job is not None:
            del job.callers[job_id]
            if job is not state.running and not state.wanted(job):
                self._transitions.drop(job, cause="cancelled")
        return self._rules.pump()

    def job_ended(
        self,
        now: float,
        job_id: str,
        *,
        error: GuardedLLMError | None = None,
        left: tuple[str, ...] | None = None,
        again: bool = False,
        **details: object,
    ) -> list[Action]:
        """The engine has finished the running job.

        Args:
            error: why it failed.
            left: the models that are out of memory now. None means all that were
                to leave or, after an error, those that were to be evicted first.
            again: try this failed load again, in its old place, for everybody who
                waits for it. If nobody does, it has failed.
        """
        state = self._at(now)
        job = state.running
        if job is not None and job.id == job_id:
            if left is None:
                left = job.evict if error else job.leaving
            if again and error is not None and self._tries_again(job):
                self._transitions.put_back(job, describe(error), left)
            else:
                self._transitions.finish(job, error, left, details)
        return self._rules.pump()

    # ---- inputs: the engine is lost, or its memory -----------------------------------

    def lost(
        self, now: float, cause: str, *, emitted: Mapping[str, int] | None = None
    ) -> list[Action]:
        """The engine died, and all that it held is lost. Nothing begins until `back`.

        Active requests wait again, and models that are still wanted will be loaded
        again, before anything else. A running load is tried again. A running function of
        the user's fails, because it must not run twice unasked. Requests that were
        stopping have ended. Further deaths before `back` change nothing.

        Args:
            cause: the death in one sentence, for the record and for errors.
            emitted: how many tokens each request has by now, for the record.
        """
        self._at(now)
        self._rules.lost = True
        self._transitions.lose(cause, emitted or {}, reload=not self._rules.closed)
        return self._rules.pump()

    def back(self, now: float, ledger: MemoryLedger | None = None) -> list[Action]:
        """An engine works: what waits may begin.

        Args:
            ledger: counts memory from now on. It may change only while nothing has begun.
        """
        state = self._at(now)
        state.ledger = ledger or state.ledger
        self._rules.lost = False
        return self._rules.pump()

    def hold(self, model: str) -> None:
        """What a load of this model needs is not there: it waits for `release`."""
        self._state.held[model] = None

    def held(self) -> list[str]:
        """The models that are held."""
        return list(self._state.held)

    def release(self, now: float, model: str) -> list[Action]:
        """It is there: the model may be loaded."""
        self._at(now).held.pop(model, None)
        return self._rules.pump()

    def interrupted(
        self, now: float, request_id: str, cause: str, *, emitted: int | None = None
    ) -> list[Action]:
        """The engine lost this active request alone. It will start again before others.

        Args:
            emitted: how many tokens it has by now, for the record.
        """
        state = self._at(now)
        request = state.requests.get(request_id)
        if request is not None and request.status.started:
            self._transitions.interrupt(request, cause, emitted)
        return self._rules.pump()

    def evict_idle(self, now: float, cause: str) -> list[Action]:
        """MLX ran out of memory: unload the models of `idle` before anything else begins."""
        self._at(now)
        if not self._rules.closed:
            self._transitions.evict_idle(cause)
        return self._rules.pump()

    def refuse(self, now: float, model: str, error: GuardedLLMError) -> list[Action]:
        """This model must not be loaded: its load and its requests fail, except running ones."""
        self._at(now)
        self._transitions.refuse(model, error)
        return self._rules.pump()

    # ---- inputs: time and the end ------------------------------------------------

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        self._at(now)
        return self._rules.pump()

    def close(self, now: float, error: GuardedLLMError | None = None) -> list[Action]:
        """Accept nothing more, end what waits, stop what is active."""
        self._rules.closed = True
        return self.end_all(now, error or BackendClosed("the backend was closed."), cause="closed")

    def end_all(self, now: float, error: GuardedLLMError, *, cause: str = "") -> list[Action]:
        """As `close`, but later requests and jobs are accepted."""
        state = self._at(now)
        for request in list(state.requests.values()):
            self._transitions.withdraw(request, error, cause=cause)
        while state.jobs:  # the newest first, so that none takes over from an older one
            self._transitions.drop(next(reversed(state.jobs.values())), cause=cause, error=error)
        return self._rules.pump()

    # ---- small things ------------------------------------------------------------

    def _at(self, now: float) -> State:
        self._state.now = now
        return self._state

    def _tries_again(self, job: JobState) -> bool:
        return job.kind == "load" and not self._rules.closed and self._state.wanted(job)

    def _may_ask(self, job_id: str) -> bool:
        state = self._state
        if job_id in state.callers or state.find(job_id) is not None:
            raise InvalidRequest(f"a job {job_id!r} is already under way.")
        error: GuardedLLMError | None = None
        if self._rules.closed:
            error = BackendClosed("the backend is closed.")
        elif len(state.jobs) >= self._limits.max_queue:
            error = queue_full(self._limits.max_queue, "jobs")
        if error is not None:
            self._transitions.actions.append(Settle(job_id, error, ran=False))
        return error is None
