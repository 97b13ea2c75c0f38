"""The seed rule as a state machine: look at the generations, then load.

Pure: no threads, no clock, no MLX. Every input takes `now` (seconds of one monotonic
clock) and returns the actions its owner must carry out, in order. The owner makes one
call at a time.

Two kinds of work share one engine:

- a *generation*: many may be active at once;
- a *job* (load, unload, foreign work): exclusive, one at a time, first come first served.

The rules, followed in this order after every input (`_pump`):

1. While a job runs nothing begins, and its owner steps no generation.
2. Requests that arrived before the oldest pending job start when there is room. The
   oldest that lacks room has idle models unloaded, in its own place in the order.
3. The oldest pending job begins when no generation is active; or, at its deadline
   (`load_wait`), over the active ones: they pause at a token boundary and go on
   afterwards. An unload of a model that is generating lets the jobs behind it pass.
4. Newcomers may pass what waits for `fairness_window` seconds, then queue behind it.
5. After a pause the generations get `fairness_window` seconds before the next one.
6. What cannot begin although nothing runs never will: it is refused, with numbers.
7. When nothing is active and nothing waits, models idle for `keep_alive` are unloaded.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from typing import Literal

from ..errors import (
    BackendClosed,
    GuardedLLMError,
    InvalidRequest,
    LoadDeferredTimeout,
    QueueFull,
    RequestTimeout,
)
from ..record.events import Event
from .actions import Action, Fail, Settle
from .book import Book, Pairs, describe
from .room import Room, Unbounded
from .state import JobState, ModelState, RequestState, Timing

LoadDeadline = Literal["pause", "raise"]


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
        if not (load_wait >= 0 and fairness_window >= 0 and (keep_alive or 0) >= 0):
            raise ValueError("load_wait, fairness_window and keep_alive are seconds, 0 or more.")
        if max_queue < 1 or max_active < 1:
            raise ValueError("max_queue and max_active are at least 1.")
        if on_load_deadline not in ("pause", "raise"):
            raise ValueError(f"on_load_deadline is 'pause' or 'raise', not {on_load_deadline!r}.")
        self.load_wait = load_wait
        self.fairness_window = fairness_window
        self.on_load_deadline = on_load_deadline
        self.max_queue = max_queue
        self.max_active = max_active
        self.keep_alive = keep_alive
        self._room: Room = room or Unbounded()
        self._book = Book(self._room, emit)
        self._expiries: list[tuple[float, int, RequestState]] = []
        self._timed: JobState | None = None  # the job that only time lets begin
        self._closed = False

    # ---- what the owner may ask ---------------------------------------------------

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

    def next_deadline(self) -> float | None:
        """When `tick` must be called, if no other input comes before.

        Not before the last input, but perhaps at its very time: between two pauses
        that `fairness_window=0` puts back to back the owner may step once.
        """
        due = min(self._deadlines(), default=math.inf)
        return None if due == math.inf else due

    # ---- inputs: requests ---------------------------------------------------------

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
        if self._closed:
            return [Fail(request_id, BackendClosed("the backend is closed."))]
        if book.queued_requests() >= self.max_queue:
            return [Fail(request_id, self._queue_full("requests"))]
        state = book.model(model)
        request = book.accept(request_id, state, expires, self._ahead(state))
        if expires is not None:
            heapq.heappush(self._expiries, (expires, request.order, request))
        return self._pump()

    def cancel(
        self, now: float, request_id: str, *, error: GuardedLLMError | None = None
    ) -> list[Action]:
        """Take back a request, waiting or active. Ended ones are ignored."""
        book = self._at(now)
        request = book.requests.get(request_id)
        if request is not None:
            book.withdraw(request, error, cause="cancelled")
        return self._pump()

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
            return Timing(), self._pump()
        book.end(request)
        book.note(
            "request.failed" if error else "request.finished",
            model=request.model,
            request_id=request_id,
            cause=describe(error) if error else cause,
            **details,
        )
        return request.timing, self._pump()

    def first_token(self, now: float, request_id: str, **details: object) -> None:
        """For the record: the engine produced the first token of a request."""
        book = self._at(now)
        request = book.requests.get(request_id)
        if request is not None:
            book.note("request.first_token", model=request.model, request_id=request_id, **details)

    # ---- inputs: jobs ---------------------------------------------------------------
    # A `job_id` names one caller; each raises InvalidRequest for one that is in use.

    def ask_load(self, now: float, job_id: str, model: str, *, pin: bool = False) -> list[Action]:
        """Somebody wants `model` resident. `pin` keeps it from eviction."""
        book = self._at(now)
        if not self._may_ask(job_id):
            return self._pump()
        state = book.model(model)
        unload = book.pending(state.unload)
        leaving = book.running is not None and model in book.running.leaving
        if not state.resident or leaving or (unload is not None and unload.callers):
            book.want_load(state, None, cause="asked", caller=job_id, pin=pin)
            return self._pump()
        state.pinned = state.pinned or pin
        state.last_used = now
        if unload is not None:
            book.drop(unload, cause="wanted again")
        book.actions.append(Settle(job_id, ran=False))
        return self._pump()

    def ask_unload(self, now: float, job_id: str, model: str) -> list[Action]:
        """Somebody wants `model` out of memory. It leaves when it is idle."""
        book = self._at(now)
        if not self._may_ask(job_id):
            return self._pump()
        state = book.model(model)
        if state.resident or state.load:
            book.want_unload(state, cause="asked", caller=job_id)
        else:
            book.actions.append(Settle(job_id, ran=False))
            book.forget(state)
        return self._pump()

    def ask_run(self, now: float, job_id: str, label: str) -> list[Action]:
        """Somebody wants to run foreign MLX code."""
        book = self._at(now)
        if self._may_ask(job_id):
            book.want_run(label, job_id)
        return self._pump()

    def cancel_job(self, now: float, job_id: str) -> list[Action]:
        """A caller waits for its job no longer. A running one goes on unwatched."""
        book = self._at(now)
        job = book.callers.pop(job_id, None)
        if job is not None:
            del job.callers[job_id]
            wanted = job.wanted_by or (job.kind == "load" and book.models[job.model].waiting)
            if job is not book.running and not (job.callers or wanted):
                book.drop(job, cause="cancelled")
        return self._pump()

    def job_ended(
        self,
        now: float,
        job_id: str,
        *,
        error: GuardedLLMError | None = None,
        left: tuple[str, ...] | None = None,
        **details: object,
    ) -> list[Action]:
        """The engine is done with the running job.

        Args:
            error: why it failed.
            left: the models that are out of memory now; None means all that were
                to leave, or, after an error, those to be evicted.
        """
        book = self._at(now)
        job = book.running
        if job is not None and job.id == job_id:
            if left is None:
                left = job.evict if error else job.leaving
            book.finish(job, error, left, **details)
        return self._pump()

    # ---- inputs: time and the end -------------------------------------------------------

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        self._at(now)
        return self._pump()

    def close(self, now: float, error: GuardedLLMError | None = None) -> list[Action]:
        """Accept nothing more, take back what waits, stop what is active."""
        book = self._at(now)
        self._closed = True
        error = error or BackendClosed("the backend was closed.")
        for request in list(book.requests.values()):
            book.withdraw(request, error, cause="closed")
        while (job := book.oldest()) is not None:
            book.drop(job, cause="closed", error=error)
        return self._pump()

    # ---- the rules ------------------------------------------------------------------------

    def _pump(self) -> list[Action]:
        book = self._book
        self._time_out()
        while book.running is None and (
            self._start_older() or self._begin_job() or self._start_newcomer() or self._retire()
        ):
            pass
        if book.running is None:
            book.resume(self.fairness_window)
        self._note_deferred()
        actions, book.actions = book.actions, []
        return actions

    def _start_older(self) -> bool:
        """Rule 2. Whether a request started, or was refused."""
        head = self._book.head()
        return self._start_first(head.order if head else math.inf, may_evict=True)

    def _start_newcomer(self) -> bool:
        """Rule 4. Whether a request started."""
        head = self._book.head()
        if head is None or self._passed(head.asked_at):
            return False
        return self._start_first(math.inf, may_evict=False)

    def _start_first(self, before: float, *, may_evict: bool) -> bool:
        book = self._book
        for request in self._startable():
            if request.order > before:
                return False
            idle = book.evictable(request.model, request.order)
            evict = self._room.plan_start(request.id, request.model, idle)
            if evict == ():
                book.start(request)
                return True
            if may_evict and evict is None and not book.active:
                refusal = self._room.refusal(request.model, idle, request.id)
                book.withdraw(request, refusal, cause="memory")
                return True
            if may_evict:
                book.make_room(request, evict or ())
                may_evict = False  # for the oldest only
            if self._passed(request.asked_at):
                return False
        return False

    def _startable(self) -> list[RequestState]:
        """The oldest waiting request of each resident model with a place, oldest first."""
        firsts = [
            self._book.first(model)
            for model in self._book.residents.values()
            if model.waiting and len(model.active) < self.max_active
        ]
        return sorted(filter(self._not_held, firsts), key=lambda request: request.order)

    def _not_held(self, request: RequestState) -> bool:
        """It may pass the unload that its model waits for, if there is one."""
        unload = self._book.pending(self._book.models[request.model].unload)
        return unload is None or request.order < unload.order or not self._passed(unload.asked_at)

    def _begin_job(self) -> bool:
        """Rules 3, 5 and 6. Whether a job began or gave up."""
        book = self._book
        self._timed = None
        job = book.head()
        if book.active and self.on_load_deadline == "raise":
            self._timed = book.oldest()
            if self._timed is not None and book.now >= self._deadline(self._timed):
                self._give_up(self._timed)
                return True
            if job is not None:
                book.defer(job, "generations", book.holders())
            return False
        if job is None:
            return False
        if book.active and not self._may_pause(job):
            self._timed = job
            book.defer(job, "generations", book.holders())
            return False
        evict = self._plan(job)
        if evict is not None:
            book.begin(job, evict)
        elif book.active:
            book.defer(job, "memory", book.holders())
            return False
        else:
            self._refuse(job)
        return True

    def _may_pause(self, job: JobState) -> bool:
        """Rules 3 and 5; but one pause serves every job that was due when it began."""
        if self._book.paused:
            return self._deadline(job) <= self._book.pause_began
        return self._book.now >= max(self._deadline(job), self._book.next_pause)

    def _plan(self, job: JobState) -> tuple[str, ...] | None:
        """What to evict for it; None when there is no room now."""
        if job.kind != "load":
            return ()
        first = next(iter(self._book.models[job.model].waiting), None)
        return self._room.plan_load(job.model, self._book.evictable(job.model, job.order), first)

    def _refuse(self, job: JobState) -> None:
        """Refuse the first request for the load, or, as there is no other, the load."""
        book = self._book
        waiting = book.models[job.model].waiting
        first = next(iter(waiting), None)
        refusal = self._room.refusal(job.model, book.evictable(job.model, job.order), first)
        if first is not None and (job.callers or len(waiting) > 1):
            book.withdraw(book.requests[first], refusal, cause="memory")
        else:
            book.drop(job, cause="memory", error=refusal)

    def _give_up(self, job: JobState) -> None:
        book = self._book
        waited = book.now - job.asked_at
        names = ", ".join(f"{request} on {model}" for request, model in book.holders())
        error = LoadDeferredTimeout(
            f"the {job.kind} of {job.model} waited {waited:.1f} s for {names}.",
            model=job.model,
            waited=waited,
            held_by=book.holders(),
            hint="Raise load_wait, or use on_load_deadline='pause'.",
        )
        book.drop(job, cause="load_wait", error=error)

    def _retire(self) -> bool:
        """Rule 7. Whether an unload is wanted now."""
        book = self._book
        if book.active or self._closed:
            return False
        idle = next((m for m in book.residents.values() if self._retires(m) <= book.now), None)
        if idle is not None:
            book.want_unload(idle, cause="keep_alive")
        return idle is not None

    def _retires(self, model: ModelState) -> float:
        """When keep_alive unloads an idle model."""
        if self.keep_alive is None or model.pinned or model.waiting or model.unload:
            return math.inf
        return model.last_used + self.keep_alive

    # ---- time -------------------------------------------------------------------------------

    def _at(self, now: float) -> Book:
        self._book.now = now
        return self._book

    def _deadline(self, job: JobState) -> float:
        """When it waits for generations no longer."""
        return job.asked_at + self.load_wait

    def _passed(self, asked_at: float) -> bool:
        """What was asked then has been passed by newcomers for long enough."""
        return self._book.now >= asked_at + self.fairness_window

    def _deadlines(self) -> Iterator[float]:
        book = self._book
        self._drop_stale()
        if self._expiries:
            yield self._expiries[0][0]
        if book.running is None and self._timed is not None:
            yield max(self._deadline(self._timed), book.next_pause)
        if book.running is None and not (book.active or self._closed):
            yield from map(self._retires, book.residents.values())

    def _time_out(self) -> None:
        book = self._book
        self._drop_stale()
        while self._expiries and self._expiries[0][0] <= book.now:
            request = heapq.heappop(self._expiries)[2]
            book.withdraw(request, self._timeout(request), cause="timeout")
            self._drop_stale()

    def _drop_stale(self) -> None:
        """Forget the expiry of what has ended."""
        while self._expiries:
            request = self._expiries[0][2]
            if self._book.requests.get(request.id) is request:
                return
            heapq.heappop(self._expiries)

    def _timeout(self, request: RequestState) -> RequestTimeout:
        waited = self._book.now - request.asked_at
        doing = "waiting to start" if request.started_at is None else "generating"
        return RequestTimeout(
            f"request {request.id} to {request.model} timed out after {waited:.1f} s, {doing}.",
            hint=f"backend.explain({request.id!r}) tells what it waited for.",
        )

    # ---- small things ------------------------------------------------------------------------

    def _may_ask(self, job_id: str) -> bool:
        book = self._book
        if job_id in book.callers or book.find(job_id) is not None:
            raise InvalidRequest(f"a job {job_id!r} is already under way.")
        error: GuardedLLMError | None = None
        if self._closed:
            error = BackendClosed("the backend is closed.")
        elif len(book.jobs) >= self.max_queue:
            error = self._queue_full("jobs")
        if error is not None:
            book.actions.append(Settle(job_id, error, ran=False))
        return error is None

    def _queue_full(self, what: str) -> QueueFull:
        return QueueFull(
            f"{self.max_queue} {what} are waiting already.",
            hint="Try again later, or raise max_queue.",
        )

    def _ahead(self, model: ModelState) -> Pairs:
        """What a newcomer to a resident model would wait for, as far as is known now."""
        book = self._book
        head, unload = book.head(), book.pending(model.unload)
        for job in (book.running, head, unload):
            if job is not None and (job is book.running or self._passed(job.asked_at)):
                return ((job.id, job.model),)
        return book.holders(model.active) if len(model.active) >= self.max_active else ()

    def _note_deferred(self) -> None:
        """Record of new jobs that did not begin what they wait for."""
        book = self._book
        for job in book.fresh:
            ahead = book.running or book.head()
            if job.id not in book.jobs or job.deferred_at is not None or ahead is job:
                continue
            if ahead is None or book.busy(job):
                book.defer(job, "busy", book.holders(book.models[job.model].active))
            else:
                book.defer(job, f"behind a {ahead.kind}", ((ahead.id, ahead.model),))
        book.fresh.clear()
