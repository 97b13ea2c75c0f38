"""The guard's book-keeping when the engine loses what it had, or has too little memory.

What the guard had promised stands: a request goes on, a model that is wanted comes back,
a load is tried again. So the order of arrival gets two classes in front of it:

1. jobs that make the engine fit to go on (models come back, or leave for want of memory);
2. requests that were cut off, in their old order;
3. all the rest, as it was.

Every model is back before the first request goes on: nothing generates then, and no
load has to wait for it or to pause it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from ..errors import GuardedLLMError
from ..record.events import Event
from .actions import Fail
from .book import Book
from .reasons import cut_off, describe
from .room import Room
from .state import JobState, ModelState, RequestState

# Arrivals count from 0. Nobody lives to see so many.
_FIRST_CLASS = -(2**60)
_SECOND_CLASS = -(2**40)


class RecoveringBook(Book):
    """A book that outlives engines."""

    def __init__(self, room: Room, emit: Callable[[Event], None]) -> None:
        super().__init__(room, emit)
        self._front = _FIRST_CLASS

    # ---- the engine died ---------------------------------------------------------

    def lose(self, cause: str, emitted: Mapping[str, int], *, reload: bool) -> None:
        """The engine is gone, and all that it had.

        Args:
            emitted: tokens that requests have by now.
            reload: bring back what is wanted.
        """
        for request_id in list(self.active):
            self.interrupt(self.requests[request_id], cause, emitted.get(request_id))
        cut = self._lose_job(cause, reload=reload)
        back = [self._lose_model(model, cause, reload) for model in list(self.residents.values())]
        loads = sorted(filter(None, back), key=self._urgency)
        self._to_front([*loads, cut] if cut is not None else loads)

    def interrupt(self, request: RequestState, cause: str, emitted: int | None) -> None:
        """An active request waits again, before all that have not started."""
        if request.stopping:
            self._stopped(request)
            return
        if request.id in self.paused:
            self._charge_pause(request)
            del self.paused[request.id]
        model = self.models[request.model]
        del model.active[request.id]
        del self.active[request.id]
        model.last_used = self.now
        self._room.retract_start(request.id)
        request.started_at, request.interrupted_at = None, self.now
        if request.order >= 0:
            request.order += _SECOND_CLASS
        waiting = sorted([*model.waiting, request.id], key=lambda name: self.requests[name].order)
        model.waiting = OrderedDict.fromkeys(waiting)
        self.note(
            "request.interrupted",
            model=model.name,
            request_id=request.id,
            cause=cause,
            details={} if emitted is None else {"emitted": emitted},
        )

    def _stopped(self, request: RequestState) -> None:
        """It was to stop, and the engine cannot report that it has."""
        error = request.stop_error
        self.end(request)
        self.note(
            "request.failed",
            model=request.model,
            request_id=request.id,
            cause=describe(error) if error else "cancelled",
        )
        self.actions.append(Fail(request.id, error))

    def _lose_job(self, cause: str, *, reload: bool) -> JobState | None:
        """The running job is over. Returns it when it is a load to be tried again."""
        job = self.running
        if job is None:
            return None
        if job.kind == "load" and reload and self.wanted(job):
            self.put_back(job, cause, job.evict)
            job.recovers = True
            return job
        done = job.kind == "unload"  # in its way
        self.finish(job, None if done else cut_off(job, cause), job.leaving, {})
        return None

    def _lose_model(self, model: ModelState, cause: str, reload: bool) -> JobState | None:
        """A model is gone. Returns the load that brings it back, if somebody wants it."""
        unload, load = self.pending(model.unload), None
        pinned = model.pinned and not (unload is not None and unload.callers)
        del self.residents[model.name]
        model.resident = model.pinned = False
        self._room.release_model(model.name)
        if reload and (model.waiting or pinned):
            load = self.want_load(model, None, cause="recovery")
            load.recovers, load.pinned = True, pinned
        if unload is not None:
            self.drop(unload, cause=cause, ran=True)
        self.forget(model)
        return load

    def _urgency(self, load: JobState) -> tuple[bool, float]:
        """Which model comes back first: by the oldest request, those cut off before others."""
        model = self.models[load.model]
        first = self.first(model) if model.waiting else None
        return (first is None, math.inf if first is None else first.order)

    # ---- out of memory -----------------------------------------------------------

    def squeeze(self, cause: str) -> None:
        """Idle models leave before anything else begins."""
        jobs = [self.want_unload(model, cause=cause) for model in self.idle()]
        for job in jobs:
            job.urgent = True
        self._to_front(jobs)

    def refuse(self, model: ModelState, error: GuardedLLMError) -> None:
        """Nobody gets this model."""
        load = self.pending(model.load)
        if load is not None:
            self.drop(load, cause="refused", error=error)
        for request_id in list(model.waiting):
            self.withdraw(self.requests[request_id], error, cause="refused")

    # ---- order -------------------------------------------------------------------

    def _to_front(self, jobs: Sequence[JobState]) -> None:
        """Put these pending jobs before everything else, in this order."""
        for job in reversed(jobs):
            self._front -= 1
            job.order = self._front
            self.jobs.move_to_end(job.id, last=False)
