"""What may begin, and when.

The rules, followed in this order after every input (`pump`):

1. While a job runs nothing begins, and the guard's owner steps no generation.
2. Requests that arrived before the oldest pending job start when there is memory. For the
   oldest one that lacks memory, idle models are unloaded, in its own place in the order.
3. The oldest pending job begins when no generation is active; or, at its deadline
   (`load_wait`), over the active ones: they pause at a token boundary and go on
   afterwards. An unload of a model that is generating lets the jobs behind it pass.
4. Newcomers may pass what waits for `fairness_window` seconds, then queue behind it.
   What is for a batch request counts as if it had arrived `batch_wait` seconds later.
5. After a pause the generations get `fairness_window` seconds before the next one.
6. What cannot begin although nothing runs never will. It is refused, with the numbers.
7. When nothing is active and nothing waits, models idle for `keep_alive` are unloaded.
8. Without an engine nothing begins. The models that are still wanted come back before
   everything else, then the requests that were interrupted (see `transitions`). A load that is
   held, because it is not prepared, lets the others pass.
9. When MLX has run out of memory, idle models are unloaded before anything else begins.
   Generations pause for it without waiting for `load_wait`.
"""

from __future__ import annotations

import math

from .actions import Action
from .deadlines import Deadlines
from .errors import deferred_too_long, timed_out
from .limits import GuardLimits
from .state import END, JobState, ModelState, Pairs, Place, RequestState, State
from .transitions import Transitions


class Rules:
    """Looks at the state and decides; the transitions carry a decision out.

    Attributes:
        closed: nothing new is accepted; whoever closed the guard unloads idle models.
        lost: there is no engine now.
    """

    def __init__(
        self, state: State, transitions: Transitions, limits: GuardLimits, *, lost: bool = False
    ) -> None:
        self._state = state
        self._transitions = transitions
        self._limits = limits
        self._deadlines = Deadlines(state.requests)
        self._timed: JobState | None = None  # the job that waits for its deadline only
        self.closed = False
        self.lost = lost

    def watch(self, request: RequestState) -> None:
        """End this request if its own deadline passes."""
        self._deadlines.add(request)

    def pump(self) -> list[Action]:
        """Begin whatever may begin now. Returns the actions to carry out."""
        state = self._state
        while (request := self._deadlines.take(state.now)) is not None:
            self._transitions.withdraw(
                request, timed_out(request, state.now, lost=self.lost), cause="timeout"
            )
        if not self.lost:
            self._begin()
            self._note_deferred()
        return self._transitions.take_actions()

    def _begin(self) -> None:
        state = self._state
        while state.running is None and (
            self._start_older() or self._begin_job() or self._start_newcomer() or self._retire()
        ):
            pass
        if state.running is None:
            self._transitions.resume(self._limits.fairness_window)

    def _start_older(self) -> bool:
        """Rule 2. Whether a request started, or was refused."""
        head = self._state.head()
        return self._start_first(head.place if head else END, may_evict=True)

    def _start_newcomer(self) -> bool:
        """Rule 4. Whether a request started."""
        head = self._state.head()
        if head is None or self._holds(head):
            return False
        return self._start_first(END, may_evict=False)

    def _start_first(self, before: Place, *, may_evict: bool) -> bool:
        state = self._state
        for request in self._startable():
            if request.place > before:
                return False
            if state.ledger.plan_start(request.id, request.model, ()) == ():
                self._transitions.start(request)
                return True
            idle = state.evictable(request.model, request.place)
            evict = state.ledger.plan_start(request.id, request.model, idle)
            if may_evict and evict is None and not state.active:
                refusal = state.ledger.refusal(request.model, idle, request.id)
                self._transitions.withdraw(request, refusal, cause="memory")
                return True
            if may_evict:
                self._transitions.make_room(request, evict or ())
                may_evict = False  # for the oldest only
            if self._passed(request.arrival):
                return False
        return False

    def _startable(self) -> list[RequestState]:
        """The oldest waiting request of each resident model with a place, oldest first."""
        state, firsts = self._state, []
        for model in state.residents.values():
            if model.waiting and len(model.active) < self._limits.max_active:
                first = state.first(model)
                if model.unload is None or self._passes(first, model.unload):
                    firsts.append(first)
        if len(firsts) > 1:
            firsts.sort(key=lambda request: request.place)
        return firsts

    def _passes(self, request: RequestState, unload: str) -> bool:
        """Whether this request may start before this unload of its model."""
        job = self._state.pending(unload)
        return job is None or request.place < job.place or not self._holds(job)

    def _begin_job(self) -> bool:
        """Rules 3, 5 and 6. Whether a job began or gave up."""
        state = self._state
        self._timed = None
        job = state.head()
        if state.active and self._limits.on_load_deadline == "raise":
            self._timed = self._first_due()
            if self._timed is not None and state.now >= self._deadline(self._timed):
                error = deferred_too_long(self._timed, state.now, state.holders())
                self._transitions.drop(self._timed, cause="load_wait", error=error)
                return True
            if job is not None:
                self._defer(job, "generations")
            return False
        if job is None:
            return False
        if state.active and not self._may_pause(job):
            self._timed = job
            self._defer(job, "generations")
            return False
        evict = self._plan(job)
        if evict is not None:
            self._transitions.begin(job, evict)
        elif state.active:
            self._defer(job, "memory")
            return False
        else:
            self._refuse(job)
        return True

    def _first_due(self) -> JobState | None:
        """The pending job with the first deadline: the oldest, or one that was put before it."""
        found = None
        for job in self._state.jobs.values():
            if found is None or self._deadline(job) < self._deadline(found):
                found = job
            if not job.urgent:
                break
        return found

    def _may_pause(self, job: JobState) -> bool:
        """Rules 3, 5 and 9; but one pause serves every job that was due when it began."""
        if self._state.paused:
            return job.urgent or self._deadline(job) <= self._state.pause_began
        return self._state.now >= max(self._deadline(job), self._state.next_pause)

    def _plan(self, job: JobState) -> tuple[str, ...] | None:
        """What to evict for this job; None when it does not fit now."""
        if job.kind != "load":
            return ()
        first = next(iter(self._state.models[job.model].waiting), None)
        if job.recovers:
            first = None  # only the model comes back; its first request waits as before
        return self._state.ledger.plan_load(
            job.model, self._state.evictable(job.model, job.place), first
        )

    def _refuse(self, job: JobState) -> None:
        """Refuse the first request that wants this load; if it is the only one, the load."""
        state = self._state
        waiting = state.models[job.model].waiting
        first = next(iter(waiting), None)
        refusal = state.ledger.refusal(job.model, state.evictable(job.model, job.place), first)
        if first is not None and (job.callers or len(waiting) > 1):
            self._transitions.withdraw(state.requests[first], refusal, cause="memory")
        else:
            self._transitions.drop(job, cause="memory", error=refusal)

    def _retire(self) -> bool:
        """Rule 7. Whether an unload is wanted now."""
        state = self._state
        if state.active or self.closed or self._limits.keep_alive is None:
            return False
        idle = next((m for m in state.residents.values() if self._retires(m) <= state.now), None)
        if idle is not None:
            self._transitions.want_unload(idle, cause="keep_alive")
        return idle is not None

    def _retires(self, model: ModelState) -> float:
        """When keep_alive unloads an idle model."""
        if self._limits.keep_alive is None or model.pinned or model.waiting or model.unload:
            return math.inf
        return model.last_used + self._limits.keep_alive

    def ahead(self, model: ModelState) -> Pairs:
        """What a newcomer to this model would wait for, as far as is known now."""
        state = self._state
        if state.running is not None:
            return ((state.running.id, state.running.model),)
        for job in (state.head(), state.pending(model.unload)):
            if job is not None and self._holds(job):
                return ((job.id, job.model),)
        if len(model.active) < self._limits.max_active:
            return ()
        return tuple([(request_id, model.name) for request_id in model.active])

    def _defer(self, job: JobState, cause: str) -> None:
        """Record that the oldest job waits for the active generations."""
        if cause not in job.deferrals:
            self._transitions.defer(job, cause, self._state.holders())

    def _note_deferred(self) -> None:
        """Record what new jobs that have not begun are waiting for."""
        state = self._state
        for job in state.fresh:
            ahead = state.running or state.head()
            if state.jobs.get(job.id) is not job or job.deferred_at is not None:
                continue
            if job.kind == "load" and job.model in state.held:
                self._transitions.defer(job, "preparing", ())
            elif ahead is None or state.busy(job):
                self._transitions.defer(job, "busy", state.holders(state.models[job.model].active))
            else:
                self._transitions.defer(job, f"behind a {ahead.kind}", ((ahead.id, ahead.model),))
        state.fresh.clear()

    # ---- time --------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When something may begin or end without any other input; infinite if nothing may."""
        state = self._state
        due = self._deadlines.next()
        if self.lost or state.running is not None:
            return due
        if self._timed is not None:
            due = min(due, max(self._deadline(self._timed), state.next_pause))
        if not (state.active or self.closed):
            due = min(due, *map(self._retires, state.residents.values()), math.inf)
        return due

    def _deadline(self, job: JobState) -> float:
        """When this job stops waiting for generations."""
        if job.urgent and self._limits.on_load_deadline == "pause":
            return job.arrival
        return job.arrival + self._limits.load_wait

    def _holds(self, job: JobState) -> bool:
        """Whether newcomers may no longer pass this job."""
        return job.urgent or self._passed(job.arrival)

    def _passed(self, arrival: float) -> bool:
        """Whether what arrived then has let newcomers pass for long enough."""
        return self._state.now >= arrival + self._limits.fairness_window
