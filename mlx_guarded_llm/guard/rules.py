"""What may begin, and when.

The rules, followed in this order after every input (`pump`):

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
8. Without an engine nothing begins. The models that are still wanted come back before
   everything else, then the requests that were cut off (see `recovery`).
9. When MLX ran out of memory, idle models leave before anything else begins; for that the
   generations pause without waiting for `load_wait`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from .actions import Action
from .book import Book
from .expiries import Expiries
from .limits import Limits
from .reasons import deferred_too_long, timed_out
from .room import Room
from .state import JobState, ModelState, Pairs, RequestState


class Rules:
    """Decides; the book carries out.

    Attributes:
        closed: nothing new comes; idle models are left to whoever closed.
        lost: there is no engine now.
    """

    def __init__(self, book: Book, room: Room, limits: Limits) -> None:
        self._book = book
        self._room = room
        self._limits = limits
        self._expiries = Expiries(book.requests)
        self._timed: JobState | None = None  # the job that only time lets begin
        self.closed = False
        self.lost = False

    def watch(self, request: RequestState) -> None:
        """End this request when its own deadline passes."""
        self._expiries.add(request)

    def pump(self) -> list[Action]:
        """Begin what may begin now. Returns all that is to be done."""
        book = self._book
        while (request := self._expiries.take(book.now)) is not None:
            book.withdraw(request, timed_out(request, book.now), cause="timeout")
        if not self.lost:
            self._begin()
            self._note_deferred()
        actions, book.actions = book.actions, []
        return actions

    def _begin(self) -> None:
        book = self._book
        while book.running is None and (
            self._start_older() or self._begin_job() or self._start_newcomer() or self._retire()
        ):
            pass
        if book.running is None:
            book.resume(self._limits.fairness_window)

    def _start_older(self) -> bool:
        """Rule 2. Whether a request started, or was refused."""
        head = self._book.head()
        return self._start_first(head.order if head else math.inf, may_evict=True)

    def _start_newcomer(self) -> bool:
        """Rule 4. Whether a request started."""
        head = self._book.head()
        if head is None or self._holds(head):
            return False
        return self._start_first(math.inf, may_evict=False)

    def _start_first(self, before: float, *, may_evict: bool) -> bool:
        book = self._book
        for request in self._startable():
            if request.order > before:
                return False
            if self._room.plan_start(request.id, request.model, ()) == ():
                book.start(request)
                return True
            idle = book.evictable(request.model, request.order)
            evict = self._room.plan_start(request.id, request.model, idle)
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
        book, firsts = self._book, []
        for model in book.residents.values():
            if model.waiting and len(model.active) < self._limits.max_active:
                first = book.first(model)
                if model.unload is None or self._passes(first, model.unload):
                    firsts.append(first)
        if len(firsts) > 1:
            firsts.sort(key=lambda request: request.order)
        return firsts

    def _passes(self, request: RequestState, unload: str) -> bool:
        """It may start before this unload of its model."""
        job = self._book.pending(unload)
        return job is None or request.order < job.order or not self._holds(job)

    def _begin_job(self) -> bool:
        """Rules 3, 5 and 6. Whether a job began or gave up."""
        book = self._book
        self._timed = None
        job = book.head()
        if book.active and self._limits.on_load_deadline == "raise":
            self._timed = self._first_due()
            if self._timed is not None and book.now >= self._deadline(self._timed):
                error = deferred_too_long(self._timed, book.now, book.holders())
                book.drop(self._timed, cause="load_wait", error=error)
                return True
            if job is not None:
                self._defer(job, "generations")
            return False
        if job is None:
            return False
        if book.active and not self._may_pause(job):
            self._timed = job
            self._defer(job, "generations")
            return False
        evict = self._plan(job)
        if evict is not None:
            book.begin(job, evict)
        elif book.active:
            self._defer(job, "memory")
            return False
        else:
            self._refuse(job)
        return True

    def _first_due(self) -> JobState | None:
        """The pending job with the first deadline: the oldest, or one put before it."""
        found = None
        for job in self._book.jobs.values():
            if found is None or self._deadline(job) < self._deadline(found):
                found = job
            if not job.urgent:
                break
        return found

    def _may_pause(self, job: JobState) -> bool:
        """Rules 3, 5 and 9; but one pause serves every job that was due when it began."""
        if self._book.paused:
            return job.urgent or self._deadline(job) <= self._book.pause_began
        return self._book.now >= max(self._deadline(job), self._book.next_pause)

    def _plan(self, job: JobState) -> tuple[str, ...] | None:
        """What to evict for it; None when there is no room now."""
        if job.kind != "load":
            return ()
        first = next(iter(self._book.models[job.model].waiting), None)
        if job.recovers:
            first = None  # it comes back to where it was, and the first waits as it did
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

    def _retire(self) -> bool:
        """Rule 7. Whether an unload is wanted now."""
        book = self._book
        if book.active or self.closed or self._limits.keep_alive is None:
            return False
        idle = next((m for m in book.residents.values() if self._retires(m) <= book.now), None)
        if idle is not None:
            book.want_unload(idle, cause="keep_alive")
        return idle is not None

    def _retires(self, model: ModelState) -> float:
        """When keep_alive unloads an idle model."""
        if self._limits.keep_alive is None or model.pinned or model.waiting or model.unload:
            return math.inf
        return model.last_used + self._limits.keep_alive

    def ahead(self, model: ModelState) -> Pairs:
        """What a newcomer to a resident model would wait for, as far as is known now."""
        book = self._book
        if book.running is not None:
            return ((book.running.id, book.running.model),)
        for job in (book.head(), book.pending(model.unload)):
            if job is not None and self._holds(job):
                return ((job.id, job.model),)
        if len(model.active) < self._limits.max_active:
            return ()
        return tuple([(request_id, model.name) for request_id in model.active])

    def _defer(self, job: JobState, cause: str) -> None:
        """Record that the oldest job waits for the active generations."""
        if cause not in job.deferrals:
            self._book.defer(job, cause, self._book.holders())

    def _note_deferred(self) -> None:
        """Record of new jobs that did not begin what they wait for."""
        book = self._book
        for job in book.fresh:
            ahead = book.running or book.head()
            if book.jobs.get(job.id) is not job or job.deferred_at is not None:
                continue
            if ahead is None or book.busy(job):
                book.defer(job, "busy", book.holders(book.models[job.model].active))
            else:
                book.defer(job, f"behind a {ahead.kind}", ((ahead.id, ahead.model),))
        book.fresh.clear()

    # ---- time --------------------------------------------------------------------

    def deadlines(self) -> Iterator[float]:
        """When something may begin or end by time alone."""
        book = self._book
        expiry = self._expiries.next()
        if expiry is not None:
            yield expiry
        if self.lost:
            return
        if book.running is None and self._timed is not None:
            yield max(self._deadline(self._timed), book.next_pause)
        if book.running is None and not (book.active or self.closed):
            yield from map(self._retires, book.residents.values())

    def _deadline(self, job: JobState) -> float:
        """When it waits for generations no longer."""
        if job.urgent and self._limits.on_load_deadline == "pause":
            return job.asked_at
        return job.asked_at + self._limits.load_wait

    def _holds(self, job: JobState) -> bool:
        """Newcomers may not pass it, or not any more."""
        return job.urgent or self._passed(job.asked_at)

    def _passed(self, asked_at: float) -> bool:
        """What was asked then has been passed by newcomers for long enough."""
        return self._book.now >= asked_at + self._limits.fairness_window
