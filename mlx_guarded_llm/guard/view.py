"""What the guard knows, all together, and what can be asked of it."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from ..record.events import Event, Kind
from .actions import Action
from .room import Room
from .state import JobState, ModelState, Pairs, RequestState


class View:
    """Requests, models and jobs as they are now. Nothing changes here.

    Attributes:
        now: the time of the input being handled, seconds.
        requests: every request that has not ended.
        models: every model that is resident or wanted.
        residents: those of them that are resident; few, as memory bounds them.
        jobs: pending jobs, oldest first.
        callers: the job that each caller waits for.
        fresh: jobs added during the input being handled.
        running: the job the engine has, or None.
        active: requests the engine has, in the order they started.
        paused: those of them that stand still while jobs run.
        pause_began: when they were paused.
        next_pause: when they may be paused again.
        actions: what the owner has to do, in order.
    """

    def __init__(self, room: Room, emit: Callable[[Event], None]) -> None:
        self.now = 0.0
        self.requests: dict[str, RequestState] = {}
        self.models: dict[str, ModelState] = {}
        self.residents: dict[str, ModelState] = {}
        self.jobs: OrderedDict[str, JobState] = OrderedDict()
        self.callers: dict[str, JobState] = {}
        self.fresh: list[JobState] = []
        self.running: JobState | None = None
        self.active: dict[str, None] = {}
        self.paused: dict[str, None] = {}
        self.pause_began = 0.0
        self.next_pause = 0.0
        self.actions: list[Action] = []
        self._room = room
        self._emit = emit
        self._order = itertools.count()

    # ---- looking -----------------------------------------------------------------

    def model(self, name: str) -> ModelState:
        model = self.models.get(name)
        if model is None:
            model = self.models[name] = ModelState(name)
        return model

    def forget(self, model: ModelState) -> None:
        if model.forgotten:
            self.models.pop(model.name, None)

    def head(self) -> JobState | None:
        """The oldest pending job that is not blocked by its own model's generations."""
        for job in self.jobs.values():
            if not self.busy(job):
                return job
        return None

    def busy(self, job: JobState) -> bool:
        """An unload, or the load after it, of a model that is generating."""
        return job.kind != "run" and bool(self.models[job.model].active)

    def pending(self, job_id: str | None) -> JobState | None:
        return self.jobs.get(job_id) if job_id is not None else None

    def find(self, job_id: str | None) -> JobState | None:
        """A pending or running job."""
        if self.running is not None and self.running.id == job_id:
            return self.running
        return self.pending(job_id)

    def wanted(self, job: JobState) -> bool:
        """Whether a load or an unload still has its point."""
        if job.callers or job.wanted_by or job.urgent or job.pinned:
            return True
        return job.kind == "load" and bool(self.models[job.model].waiting)

    def idle(self) -> list[ModelState]:
        """Models that could leave at once if memory must be had.

        Those that requests wait for only if there are no others: they would come back.
        None whose requests were cut off: these are as good as active.
        """
        leaving = self.running.leaving if self.running is not None else ()
        idle = [
            model
            for model in self.residents.values()
            if model.idle and not model.pinned and model.name not in leaving
            if not (model.waiting and self.first(model).interrupted_at is not None)
        ]
        return [model for model in idle if not model.waiting] or idle

    def evictable(self, keep: str, order: int) -> list[str]:
        """Models that may leave so that `keep` fits, least recently used first.

        Not those with a request waiting that came before `order`.
        """
        idle = [
            model
            for model in self.residents.values()
            if not (model.active or model.pinned or model.name == keep)
            if not (model.waiting and self.first(model).order < order)
        ]
        idle.sort(key=lambda model: model.last_used)
        return [model.name for model in idle]

    def first(self, model: ModelState) -> RequestState:
        """The oldest of a model's waiting requests."""
        return self.requests[next(iter(model.waiting))]

    def holders(self, active: Iterable[str] | None = None) -> Pairs:
        """Active generations (all of them, or these), as (request id, model)."""
        return tuple((r, self.requests[r].model) for r in (active or self.active))

    def queued_requests(self) -> int:
        return len(self.requests) - len(self.active)

    # ---- the record --------------------------------------------------------------

    def note(
        self,
        kind: Kind,
        *,
        model: str | None = None,
        request_id: str | None = None,
        job_id: str | None = None,
        cause: str = "",
        waiting_for: Pairs = (),
        details: Mapping[str, object] | None = None,
    ) -> None:
        self._emit(
            Event(kind, self.now, model, request_id, job_id, cause, waiting_for, details or {})
        )
