"""The seed rule as a state machine: look at the generations, then load.

Pure: no threads, no clock, no MLX. Every input takes `now` (seconds of one monotonic
clock) and returns the actions its owner must carry out, in order. The owner makes one
call at a time.

Two kinds of work share one engine:

- a *generation*: many may be active at once;
- a *job* (load, unload, foreign work): exclusive, one at a time, first come first served.

What may begin, and when, is in `rules`; how it is carried out in `book`, and after the
death of an engine in `recovery`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ..errors import BackendClosed, GuardedLLMError, InvalidRequest
from ..record.events import Event
from .actions import Action, Fail, Settle
from .limits import Limits, LoadDeadline
from .reasons import describe, queue_full
from .recovery import RecoveringBook
from .room import Room, Unbounded
from .rules import Rules
from .state import JobState, ModelState, Timing


class Guard:
    """Decides what may begin. See the module for the rules.

    Args:
        load_wait: seconds a job waits for active generations before its deadline.
        fairness_window: seconds during which a newcomer may pass what waits.
        on_load_deadline: at the deadline "pause" the generations, or "raise"
            `LoadDeferredTimeout` to whoever waits for the job.
        max_queue: waiting requests at most, and pending jobs at most.
        max_active: active generations of one model at most.
        keep_alive: seconds after which an idle model is unloaded; None keeps it.
        room: the memory ledger.
        emit: receives every event.

    Raises:
        ValueError: a time is negative, or a bound less than one.
    """

    def __init__(
        self,
        *,
        load_wait: float = 120.0,
        fairness_window: float = 5.0,
        on_load_deadline: LoadDeadline = "pause",
        max_queue: int = 1024,
        max_active: int = 32,
        keep_alive: float | None = None,
        room: Room | None = None,
        emit: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._limits = Limits(
            load_wait=load_wait,
            fairness_window=fairness_window,
            on_load_deadline=on_load_deadline,
            max_queue=max_queue,
            max_active=max_active,
            keep_alive=keep_alive,
        )
        room = room or Unbounded()
        self._book = RecoveringBook(room, emit)
        self._rules = Rules(self._book, room, self._limits)

    # ---- what the owner may ask --------------------------------------------------

    @property
    def may_step(self) -> bool:
        """Whether generations may be stepped: no job is running."""
        return self._book.running is None

    @property
    def quiet(self) -> bool:
        """Nothing runs and nothing waits."""
        return not (self._book.requests or self._book.jobs or self._book.running)

    def models(self) -> list[ModelState]:
        """Every model that is resident or wanted. Read only."""
        return list(self._book.models.values())

    def has(self, model: str) -> bool:
        """Whether this model is resident, or a load of it is pending or running."""
        state = self._book.models.get(model)
        return state is not None and (state.resident or state.load is not None)

    def idle(self) -> list[str]:
        """The models that `squeeze` would have leave now."""
        return [model.name for model in self._book.idle()]

    def next_deadline(self) -> float | None:
        """When `tick` must be called, if no other input comes before.

        Not before the last input, but perhaps at its very time: between two pauses
        that `fairness_window=0` puts back to back the owner may step once.
        """
        due = min(self._rules.deadlines(), default=math.inf)
        return None if due == math.inf else due

    # ---- inputs: requests --------------------------------------------------------

    def submit(
        self, now: float, request_id: str, model: str, *, expires: float | None = None
    ) -> list[Action]:
        """A request whose prompt is ready. It starts, waits or fails.

        Raises:
            InvalidRequest: a request of this id has not ended yet.
        """
        book = self._at(now)
        if request_id in book.requests:
            raise InvalidRequest(f"a request {request_id!r} is already under way.")
        if self._rules.closed:
            return [Fail(request_id, BackendClosed("the backend is closed."))]
        if book.queued_requests() >= self._limits.max_queue:
            return [Fail(request_id, queue_full(self._limits.max_queue, "requests"))]
        state = book.model(model)
        request = book.accept(request_id, state, expires, self._rules.ahead(state))
        self._rules.watch(request)
        return self._rules.pump()

    def cancel(
        self, now: float, request_id: str, *, error: GuardedLLMError | None = None
    ) -> list[Action]:
        """Take back a request, waiting or active. Ended ones are ignored."""
        book = self._at(now)
        request = book.requests.get(request_id)
        if request is not None:
            book.withdraw(request, error, cause="cancelled")
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
        """The engine is done with an active request. Returns where its time went."""
        book = self._at(now)
        request = book.requests.get(request_id)
        if request is None or request.started_at is None:
            return Timing(), self._rules.pump()
        book.end(request)
        book.note(
            "request.failed" if error else "request.finished",
            model=request.model,
            request_id=request_id,
            cause=describe(error) if error else cause,
            details=details,
        )
        return request.timing, self._rules.pump()

    def first_token(self, now: float, request_id: str, **details: object) -> None:
        """For the record: the engine produced the first token of a request."""
        book = self._at(now)
        request = book.requests.get(request_id)
        if request is not None:
            book.note(
                "request.first_token", model=request.model, request_id=request_id, details=details
            )

    # ---- inputs: jobs ------------------------------------------------------------
    # A `job_id` names one caller; each raises InvalidRequest for one that is in use.

    def ask_load(self, now: float, job_id: str, model: str, *, pin: bool = False) -> list[Action]:
        """Somebody wants `model` resident. `pin` keeps it from eviction."""
        book = self._at(now)
        if not self._may_ask(job_id):
            return self._rules.pump()
        state = book.model(model)
        unload = book.pending(state.unload)
        leaving = book.running is not None and model in book.running.leaving
        going = unload is not None and (unload.callers or unload.urgent)
        if not state.resident or leaving or going:
            book.want_load(state, None, cause="asked", caller=job_id, pin=pin)
            return self._rules.pump()
        state.pinned = state.pinned or pin
        state.last_used = now
        if unload is not None:
            book.drop(unload, cause="wanted again")
        book.actions.append(Settle(job_id, ran=False))
        return self._rules.pump()

    def ask_unload(self, now: float, job_id: str, model: str) -> list[Action]:
        """Somebody wants `model` out of memory. It leaves when it is idle."""
        book = self._at(now)
        if not self._may_ask(job_id):
            return self._rules.pump()
        state = book.model(model)
        if state.resident or state.load:
            book.want_unload(state, cause="asked", caller=job_id)
        else:
            book.actions.append(Settle(job_id, ran=False))
            book.forget(state)
        return self._rules.pump()

    def ask_run(self, now: float, job_id: str, label: str) -> list[Action]:
        """Somebody wants to run foreign MLX code."""
        book = self._at(now)
        if self._may_ask(job_id):
            book.want_run(label, job_id)
        return self._rules.pump()

    def cancel_job(self, now: float, job_id: str) -> list[Action]:
        """A caller waits for its job no longer. A running one goes on unwatched."""
        book = self._at(now)
        job = book.callers.pop(job_id, None)
        if job is not None:
            del job.callers[job_id]
            if job is not book.running and not book.wanted(job):
                book.drop(job, cause="cancelled")
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
        """The engine is done with the running job.

        Args:
            error: why it failed.
            left: the models that are out of memory now; None means all that were
                to leave, or, after an error, those to be evicted.
            again: it is a load that failed and is to be tried again, in its old place
                and for all who wait for it. If none do, it has failed.
        """
        book = self._at(now)
        job = book.running
        if job is not None and job.id == job_id:
            if left is None:
                left = job.evict if error else job.leaving
            if again and error is not None and self._tries_again(job):
                book.put_back(job, describe(error), left)
            else:
                book.finish(job, error, left, details)
        return self._rules.pump()

    # ---- inputs: the engine is lost, or its memory -----------------------------------

    def lost(
        self, now: float, cause: str, *, emitted: Mapping[str, int] | None = None
    ) -> list[Action]:
        """The engine is gone with all it had. Nothing begins until `back`.

        Active requests wait again, and the models that are still wanted are to be
        loaded again, all before anything else. A running load is tried again; foreign
        work fails, as it must not run twice unasked. Requests that were told to stop
        have ended. More deaths before `back` change nothing.

        Args:
            cause: the death in one sentence, for the record and for errors.
            emitted: tokens that requests have by now, for the record.
        """
        book = self._at(now)
        self._rules.lost = True
        book.lose(cause, emitted or {}, reload=not self._rules.closed)
        return self._rules.pump()

    def back(self, now: float) -> list[Action]:
        """A new engine works: what waits may begin."""
        self._at(now)
        self._rules.lost = False
        return self._rules.pump()

    def interrupted(
        self, now: float, request_id: str, cause: str, *, emitted: int | None = None
    ) -> list[Action]:
        """The engine lost this active request only; it is to start again, before others.

        Args:
            emitted: tokens that it has by now, for the record.
        """
        book = self._at(now)
        request = book.requests.get(request_id)
        if request is not None and request.started_at is not None:
            book.interrupt(request, cause, emitted)
        return self._rules.pump()

    def squeeze(self, now: float, cause: str) -> list[Action]:
        """MLX ran out of memory: the models of `idle` leave before anything else begins."""
        book = self._at(now)
        if not self._rules.closed:
            book.squeeze(cause)
        return self._rules.pump()

    def refuse(self, now: float, model: str, error: GuardedLLMError) -> list[Action]:
        """This model is not to be loaded: all that wait for it fail, a load of it too."""
        book = self._at(now)
        state = book.models.get(model)
        if state is not None:
            book.refuse(state, error)
        return self._rules.pump()

    # ---- inputs: time and the end ------------------------------------------------

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        self._at(now)
        return self._rules.pump()

    def close(self, now: float, error: GuardedLLMError | None = None) -> list[Action]:
        """Accept nothing more, take back what waits, stop what is active."""
        book = self._at(now)
        self._rules.closed = True
        error = error or BackendClosed("the backend was closed.")
        for request in list(book.requests.values()):
            book.withdraw(request, error, cause="closed")
        while book.jobs:  # the newest first: none then gets what an older one left undone
            book.drop(next(reversed(book.jobs.values())), cause="closed", error=error)
        return self._rules.pump()

    # ---- small things ------------------------------------------------------------

    def _at(self, now: float) -> RecoveringBook:
        self._book.now = now
        return self._book

    def _tries_again(self, job: JobState) -> bool:
        return job.kind == "load" and not self._rules.closed and self._book.wanted(job)

    def _may_ask(self, job_id: str) -> bool:
        book = self._book
        if job_id in book.callers or book.find(job_id) is not None:
            raise InvalidRequest(f"a job {job_id!r} is already under way.")
        error: GuardedLLMError | None = None
        if self._rules.closed:
            error = BackendClosed("the backend is closed.")
        elif len(book.jobs) >= self._limits.max_queue:
            error = queue_full(self._limits.max_queue, "jobs")
        if error is not None:
            book.actions.append(Settle(job_id, error, ran=False))
        return error is None
