"""The guard's book-keeping: each transition in one place, with its event and action."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping

from ..errors import GuardedLLMError
from ..record.events import Kind
from .actions import Fail, Load, Run, Settle, Start, Stop, Unload
from .reasons import describe
from .state import JobKind, JobState, ModelState, Pairs, RequestState
from .view import View


class Book(View):
    """How requests, models and jobs change. It decides nothing."""

    # ---- requests ----------------------------------------------------------------

    def accept(
        self, request_id: str, model: ModelState, expires: float | None, waiting_for: Pairs
    ) -> RequestState:
        """A request joins its model's queue, behind its load or `waiting_for`."""
        request = RequestState(request_id, model.name, next(self._order), self.now, expires)
        self.requests[request_id] = request
        model.waiting[request_id] = None
        if not model.resident:
            self.want_load(model, request_id, cause="requested")
        load = self.find(model.load)
        self.note(
            "request.queued",
            model=model.name,
            request_id=request_id,
            waiting_for=_pair(load) if load else waiting_for,
        )
        return request

    def start(self, request: RequestState) -> None:
        model = self.models[request.model]
        del model.waiting[request.id]
        model.active[request.id] = None
        self.active[request.id] = None
        self._room.reserve_start(request.id, request.model)
        request.started_at = self.now
        if self.jobs:  # else nothing is to make room for it
            self.make_room(request, ())
        self.note(
            "request.started",
            model=request.model,
            request_id=request.id,
            details=self._charge_wait(request, model),
        )
        self.actions.append(Start(request.id, request.model))

    def _charge_wait(self, request: RequestState, model: ModelState) -> dict[str, float]:
        """Enter how long a request that starts has waited, or waited to start again."""
        timing, asked_at = request.timing, request.asked_at
        if request.interrupted_at is not None:
            waited = self.now - request.interrupted_at
            timing.recovering += waited
            request.interrupted_at = None
            return {"recovering": waited}
        timing.queued = self.now - asked_at
        for deferred_at, began, ended in model.loads:
            timing.deferred += max(0.0, began - max(deferred_at, asked_at))
            timing.loading += max(0.0, ended - max(began, asked_at))
        return {"queued": timing.queued}

    def withdraw(self, request: RequestState, error: GuardedLLMError | None, cause: str) -> None:
        """End a waiting request now; have the engine stop an active one."""
        if request.started_at is not None:
            if not request.stopping:
                request.stopping, request.stop_error = True, error
                self.actions.append(Stop(request.id, error))
            return
        model = self.models[request.model]
        del self.requests[request.id]
        del model.waiting[request.id]
        self.note(
            "request.failed",
            model=request.model,
            request_id=request.id,
            cause=describe(error) if error else cause,
        )
        self.actions.append(Fail(request.id, error))
        self.make_room(request, ())
        load = self.pending(model.load)
        if load is not None and not self.wanted(load):
            self.drop(load, cause=cause)
        self.forget(model)

    def end(self, request: RequestState) -> None:
        """The engine has an active request no longer."""
        if request.id in self.paused:
            self._charge_pause(request)
            del self.paused[request.id]
        model = self.models[request.model]
        del model.active[request.id]
        model.last_used = self.now
        del self.requests[request.id]
        del self.active[request.id]
        self._room.release_start(request.id)
        self.forget(model)

    def pause(self) -> None:
        if not self.paused:
            self.pause_began = self.now
        for request_id in self.active:
            if request_id not in self.paused:
                self.paused[request_id] = None
                self._note_pause("request.paused", request_id)

    def resume(self, turn: float) -> None:
        """Let the paused generations go on, for `turn` seconds at least."""
        if not self.paused:
            return
        self.next_pause = self.now + turn
        for request_id in self.paused:
            self._charge_pause(self.requests[request_id])
            self._note_pause("request.resumed", request_id)
        self.paused.clear()

    def _charge_pause(self, request: RequestState) -> None:
        assert request.started_at is not None
        request.timing.paused += self.now - max(self.pause_began, request.started_at)

    def _note_pause(self, kind: Kind, request_id: str) -> None:
        job = self.running
        self.note(
            kind,
            model=self.requests[request_id].model,
            request_id=request_id,
            job_id=job.id if job else None,
            cause=f"{job.kind} of {job.model}" if job else "",
        )

    # ---- jobs --------------------------------------------------------------------

    def want_load(
        self,
        model: ModelState,
        request_id: str | None,
        *,
        cause: str,
        caller: str | None = None,
        pin: bool = False,
    ) -> JobState:
        """The one load of `model`, made if there is none."""
        job = self.find(model.load)
        if job is None:
            job = self._add("load", model.name, cause, caller, request_id)
            model.load = job.id
        self._watch(job, caller, pin)
        return job

    def want_unload(self, model: ModelState, *, cause: str, caller: str | None = None) -> JobState:
        """The one unload of `model`, made if there is none."""
        job = self.find(model.unload)
        if job is None:
            job = self._add("unload", model.name, cause, caller)
            model.unload = job.id
        self._watch(job, caller)
        return job

    def want_run(self, label: str, caller: str) -> None:
        self._watch(self._add("run", label, "asked", caller), caller)

    def make_room(self, request: RequestState, evict: Collection[str]) -> None:
        """Have these models, and no others, leave for a request that does not fit.

        Their unloads take the place of the request in the order of arrival. Whatever
        was to leave for an earlier such request, or by an earlier plan, may stay.
        """
        for model in list(self.residents.values()):
            job = self.pending(model.unload)
            if job is None or job.wanted_by is None:
                continue
            if job.wanted_by != request.id and not evict:
                continue  # this one needs nothing; another still does
            if job.wanted_by != request.id or model.name not in evict:
                job.wanted_by = None
                if not self.wanted(job):
                    self.drop(job, cause="not needed any more")
        for name in evict:
            job = self.want_unload(self.models[name], cause=f"room for {request.id}")
            job.wanted_by = request.id
            if job.order > request.order:
                job.order, job.asked_at = request.order, request.asked_at
                self._move_up(job)

    def _move_up(self, job: JobState) -> None:
        """Bring a job with a new order into its place; few are older than a request."""
        older = itertools.takewhile(lambda other: other.order <= job.order, self.jobs.values())
        for moved in (job, *reversed(list(older))):
            self.jobs.move_to_end(moved.id, last=False)

    def _add(
        self,
        kind: JobKind,
        model: str,
        cause: str,
        caller: str | None = None,
        request_id: str | None = None,
    ) -> JobState:
        order = next(self._order)
        job_id = caller or f"{kind}-{order}"
        while caller is None and (job_id in self.callers or self.find(job_id)):
            job_id += "+"  # a caller chose this name
        job = self.jobs[job_id] = JobState(job_id, kind, model, order, self.now, cause)
        self.fresh.append(job)
        self.note(
            _kind(job, "queued"), model=model, request_id=request_id, job_id=job_id, cause=cause
        )
        return job

    def _watch(self, job: JobState, caller: str | None, pin: bool = False) -> None:
        if caller is not None:
            job.callers[caller] = pin
            self.callers[caller] = job

    def _settle(self, job: JobState, error: GuardedLLMError | None, *, ran: bool) -> None:
        for caller in job.callers:
            del self.callers[caller]
            self.actions.append(Settle(caller, error, ran))

    def defer(self, job: JobState, cause: str, waiting_for: Pairs) -> None:
        """Record, once for each cause, that a job waits and for whom."""
        if job.deferred_at is None:
            job.deferred_at = self.now
        job.deferrals.add(cause)
        self.note(
            _kind(job, "deferred"),
            model=job.model,
            job_id=job.id,
            cause=cause,
            waiting_for=waiting_for,
        )

    def begin(self, job: JobState, evict: tuple[str, ...]) -> None:
        del self.jobs[job.id]
        self.running, job.started_at, job.evict = job, self.now, evict
        self.pause()
        paused = tuple(self.paused)
        if job.kind == "load":
            self._room.reserve_load(job.model)
            self.actions.append(Load(job.id, job.model, evict, paused))
        elif job.kind == "unload":
            self.actions.append(Unload(job.id, job.model, paused))
        else:
            self.actions.append(Run(job.id, paused))
        self.note(
            _kind(job, "started"),
            model=job.model,
            job_id=job.id,
            cause=job.cause,
            details={
                "evict": list(evict),
                "paused": list(paused),
                "waited": self.now - job.asked_at,
            },
        )

    def finish(
        self,
        job: JobState,
        error: GuardedLLMError | None,
        left: tuple[str, ...],
        details: Mapping[str, object],
    ) -> None:
        """The running job ended, and the models in `left` are out of memory."""
        assert job.started_at is not None
        self.running = None
        self.note(
            _kind(job, "failed" if error else "finished"),
            model=job.model,
            job_id=job.id,
            cause=describe(error) if error else job.cause,
            details={"seconds": self.now - job.started_at, **details},
        )
        if job.kind == "load":
            self._load_ended(job, job.started_at, error)
        elif job.kind == "unload":
            self.models[job.model].unload = None
        self._gone(job.leaving, left)
        self._settle(job, error, ran=True)

    def put_back(self, job: JobState, cause: str, left: tuple[str, ...]) -> None:
        """The running load is pending again, in its old place; `left` are out of memory."""
        evict = job.evict
        self.running, job.started_at, job.evict = None, None, ()
        self._room.release_model(job.model)
        self.jobs[job.id] = job
        self._move_up(job)
        self.note("load.interrupted", model=job.model, job_id=job.id, cause=cause)
        self._gone(evict, left)

    def drop(
        self,
        job: JobState,
        *,
        cause: str,
        error: GuardedLLMError | None = None,
        ran: bool = False,
    ) -> None:
        """A pending job loses its point, or fails before it began.

        Args:
            ran: what was asked for has come about all the same.
        """
        del self.jobs[job.id]
        self.note(
            _kind(job, "failed" if error else "cancelled"),
            model=job.model,
            job_id=job.id,
            cause=describe(error) if error else cause,
        )
        self._settle(job, error, ran=ran)
        if job.kind == "run":
            return
        model = self.models[job.model]
        waiting = list(model.waiting) if job.kind == "load" else [job.wanted_by]
        if job.kind == "load":
            model.load = None
        else:
            model.unload = None
        if error is not None:
            for request in filter(None, map(self.requests.get, filter(None, waiting))):
                self.withdraw(request, error, cause)
        if model.resident:
            self._stays(model)
        else:
            self._is_out(model)

    def _load_ended(self, job: JobState, began: float, error: GuardedLLMError | None) -> None:
        model = self.models[job.model]
        model.load = None
        if error is None:
            model.resident, model.pinned, model.last_used = True, job.pin, self.now
            self.residents[model.name] = model
            times = (began if job.deferred_at is None else job.deferred_at, began, self.now)
            model.loads = [*model.loads, times] if model.waiting else []
            return
        self._room.release_model(job.model)
        for request_id in list(model.waiting):
            self.withdraw(self.requests[request_id], error, cause="load failed")
        self._is_out(model)

    def _gone(self, leaving: tuple[str, ...], left: tuple[str, ...]) -> None:
        """Of the models that were to leave, or others, `left` are out of memory."""
        for name in left:
            self._left(name)
        for name in leaving:
            if name in self.residents:
                self._stays(self.residents[name])

    def _left(self, name: str) -> None:
        """A model left memory. Whoever still waits for it makes it load again."""
        model = self.residents.pop(name, None)
        if model is None:
            return
        model.resident = model.pinned = False
        self._room.release_model(name)
        self._is_out(model)
        if model.waiting:
            self.want_load(model, next(iter(model.waiting)), cause="wanted again")

    def _is_out(self, model: ModelState) -> None:
        """Not resident: an unload has nothing to do, unless a load comes before it."""
        unload, load = self.pending(model.unload), self.find(model.load)
        if unload is not None and (load is None or load.order > unload.order):
            self.drop(unload, cause="not resident")
        self.forget(model)

    def _stays(self, model: ModelState) -> None:
        """It was to leave and does not: who wants it loaded after that has it now."""
        load = self.pending(model.load)
        if load is not None:
            model.pinned = model.pinned or load.pin
            self.drop(load, cause="resident already")


def _pair(job: JobState) -> Pairs:
    return ((job.id, job.model),)


def _kind(job: JobState, verb: str) -> Kind:
    return f"{job.kind}.{verb}"  # type: ignore[return-value]
