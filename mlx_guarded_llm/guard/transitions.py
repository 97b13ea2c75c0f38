"""Every change of the guard's state, each in one place, with its event and its action.

All that the guard has promised still holds when the engine dies or runs out of memory: a
request goes on, a model that is wanted comes back, a load is tried again. So two classes
stand before the order of arrival:

0. jobs that make the engine ready to go on: models come back, or leave to free memory;
1. interrupted requests, in their old order;
2. everything else, in the order of arrival.

Every model is back before the first request goes on. Nothing generates before that, so no
load has to wait for a generation or pause it.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence

from ..errors import GuardedLLMError
from ..record.events import Event, Kind
from .actions import Action, Fail, Load, Run, Settle, Start, Stop, Unload
from .errors import cut_off, describe, facts
from .limits import Priority
from .state import (
    END,
    JobKind,
    JobState,
    ModelState,
    Pairs,
    Place,
    RequestState,
    State,
    Status,
)


class Transitions:
    """Changes the state. It decides nothing; `Rules` does.

    Args:
        state: what is changed.
        emit: receives every event.
    """

    def __init__(self, state: State, emit: Callable[[Event], None]) -> None:
        self.state = state
        self.actions: list[Action] = []
        self._emit = emit
        self._next = 0  # numbers the places
        self._front = 0

    def go_on_from(self, other: Transitions) -> None:
        """Give out the places that the other would."""
        self._next, self._front = other._next, other._front

    def take_actions(self) -> list[Action]:
        """What the owner has to do now, in order."""
        actions, self.actions = self.actions, []
        return actions

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
        """Emit an event."""
        now = self.state.now
        self._emit(Event(kind, now, model, request_id, job_id, cause, waiting_for, details or {}))

    # ---- requests ----------------------------------------------------------------

    def enter(
        self, request_id: str, model: str, expires: float | None, priority: Priority
    ) -> RequestState:
        """A new request."""
        request = RequestState(request_id, model, self.state.now, expires, priority)
        self.state.requests[request_id] = request
        self.state.early[request_id] = None
        return request

    def accept(
        self,
        request: RequestState,
        waiting_for: Pairs,
        delay: float,
        details: Mapping[str, object],
    ) -> None:
        """A request joins its model's queue. It waits for the load or for `waiting_for`.

        Args:
            delay: seconds by which it counts as having arrived later.
            details: of it, for the record.
        """
        request.become(Status.WAITING)
        request.asked_at, request.arrival = self.state.now, self.state.now + delay
        request.place = self._new_place(request.arrival)
        del self.state.early[request.id]
        model = self.model(request.model)
        last = next(reversed(model.waiting), None)
        model.waiting[request.id] = None
        if last is not None and self.state.requests[last].place > request.place:
            self._sort_waiting(model)
        if not model.resident:
            self.want_load(model, request, cause="requested")
        load = self.state.find(model.load)
        self.note(
            "request.queued",
            model=model.name,
            request_id=request.id,
            waiting_for=_pair(load) if load else waiting_for,
            details=details,
        )

    def start(self, request: RequestState) -> None:
        """A waiting or interrupted request goes to the engine."""
        model = self.state.models[request.model]
        del model.waiting[request.id]
        model.active[request.id] = None
        self.state.active[request.id] = None
        self.state.ledger.reserve_start(request.id, request.model)
        details = self._charge_wait(request, model)
        request.become(Status.RUNNING)
        request.started_at = self.state.now
        if self.state.jobs:  # otherwise no unload makes room for it
            self.make_room(request, ())
        self.note(
            "request.started",
            model=request.model,
            request_id=request.id,
            details=details,
        )
        self.actions.append(Start(request.id, request.model))

    def _charge_wait(self, request: RequestState, model: ModelState) -> dict[str, float]:
        """Enter in its timing how long a request has waited until this start."""
        timing, asked_at = request.timing, request.asked_at
        if request.status is Status.INTERRUPTED:
            waited = self.state.now - request.interrupted_at
            timing.recovering += waited
            return {"recovering": waited}
        timing.queued = self.state.now - request.submitted_at
        for deferred_at, began, ended in model.loads:
            timing.deferred += max(0.0, began - max(deferred_at, asked_at))
            timing.loading += max(0.0, ended - max(began, asked_at))
        return {"queued": self.state.now - asked_at}

    def withdraw(self, request: RequestState, error: GuardedLLMError | None, cause: str) -> None:
        """End a request at once, or have the engine stop it if the engine has it."""
        if request.status is Status.STOPPING:
            return
        if request.status.started:
            request.become(Status.STOPPING)
            request.stop_error = error
            self.actions.append(Stop(request.id, error))
            return
        queued = not request.status.early
        self.remove(request)
        self._fail(request, error, cause)
        if not queued:
            return
        model = self.state.models[request.model]
        self.make_room(request, ())
        load = self.state.pending(model.load)
        if load is not None and not self.state.wanted(load):
            self.drop(load, cause=cause)
        self.forget(model)

    def end(self, request: RequestState) -> None:
        """The engine has finished an active request."""
        self.remove(request)
        self.state.ledger.release_start(request.id)
        self.forget(self.state.models[request.model])

    def remove(self, request: RequestState) -> None:
        """A request is finished: take it out of wherever its status has it."""
        if request.status.early:
            del self.state.early[request.id]
        elif request.status.started:
            self._leave_engine(request)
        else:
            del self.state.models[request.model].waiting[request.id]
        request.become(Status.FINISHED)
        del self.state.requests[request.id]

    def _leave_engine(self, request: RequestState) -> None:
        """The engine no longer has this request."""
        if request.id in self.state.paused:
            self._charge_pause(request)
            del self.state.paused[request.id]
        model = self.state.models[request.model]
        del model.active[request.id]
        del self.state.active[request.id]
        model.last_used = self.state.now

    def _fail(self, request: RequestState, error: GuardedLLMError | None, cause: str) -> None:
        """Tell the record and the owner that a request ended without the engine."""
        self.note(
            "request.failed",
            model=request.model,
            request_id=request.id,
            cause=describe(error) if error else cause,
            details=facts(error),
        )
        self.actions.append(Fail(request.id, error))

    def pause(self) -> None:
        """No active generation is stepped from now on."""
        if not self.state.paused:
            self.state.pause_began = self.state.now
        for request_id in self.state.active:
            if request_id not in self.state.paused:
                self.state.paused[request_id] = None
                if self.state.requests[request_id].status is Status.RUNNING:
                    self.state.requests[request_id].become(Status.PAUSED)
                self._note_pause("request.paused", request_id)

    def resume(self, turn: float) -> None:
        """The paused generations go on, for at least `turn` seconds."""
        if not self.state.paused:
            return
        self.state.next_pause = self.state.now + turn
        for request_id in self.state.paused:
            request = self.state.requests[request_id]
            if request.status is Status.PAUSED:
                request.become(Status.RUNNING)
            self._charge_pause(request)
            self._note_pause("request.resumed", request_id)
        self.state.paused.clear()

    def _charge_pause(self, request: RequestState) -> None:
        request.timing.paused += self.state.now - max(self.state.pause_began, request.started_at)

    def _note_pause(self, kind: Kind, request_id: str) -> None:
        job = self.state.running
        self.note(
            kind,
            model=self.state.requests[request_id].model,
            request_id=request_id,
            job_id=job.id if job else None,
            cause=f"{job.kind} of {job.model}" if job else "",
        )

    # ---- models ------------------------------------------------------------------

    def model(self, name: str) -> ModelState:
        """The state of a model, made if there is none."""
        model = self.state.models.get(name)
        if model is None:
            model = self.state.models[name] = ModelState(name)
        return model

    def unpin(self, model: ModelState) -> None:
        """Neither this model nor a load of it is pinned from now on."""
        model.pinned = False
        load = self.state.find(model.load)
        if load is not None:
            load.pinned = False
            load.callers = dict.fromkeys(load.callers, False)
            if load is not self.state.running and not self.state.wanted(load):
                self.drop(load, cause="unpinned")

    def forget(self, model: ModelState) -> None:
        """Drop the state of a model that is neither resident nor wanted."""
        if model.forgotten:
            self.state.models.pop(model.name, None)

    # ---- jobs --------------------------------------------------------------------

    def want_load(
        self,
        model: ModelState,
        request: RequestState | None,
        *,
        cause: str,
        caller: str | None = None,
        pin: bool = False,
    ) -> JobState:
        """The one load of `model`, made if there is none, in the place of who wants it first.

        A request whose model has left wants it from now on, and passes nobody who waits by now.
        """
        job = self.state.find(model.load)
        if job is None:
            job = self._add("load", model.name, cause, caller, request)
            model.load = job.id
        else:
            arrival = self._arrival(request)
            self._bring_forward(job, self._new_place(arrival), arrival)
        self._watch(job, caller, pin)
        return job

    def want_unload(
        self,
        model: ModelState,
        *,
        cause: str,
        caller: str | None = None,
        request: RequestState | None = None,
    ) -> JobState:
        """The one unload of `model`, made if there is none, in the place of who wants it first.

        A load of the model that was wanted before comes before it.
        """
        job = self.state.find(model.unload)
        if job is not None:
            if request is None:
                self._bring_forward(job, self._new_place(self.state.now), self.state.now)
            else:
                self._bring_forward(job, request.place, request.arrival)
        else:
            job = self._add("unload", model.name, cause, caller)
            model.unload = job.id
            if request is not None:
                self._put(job, request.place, request.arrival)
            load = self.state.find(model.load)
            if load is not None:
                before = job.place._replace(number=load.place.number)
                self._bring_forward(load, before, job.arrival)
        self._watch(job, caller)
        return job

    def want_run(self, label: str, caller: str) -> None:
        """A caller wants to run a function."""
        self._watch(self._add("run", label, "asked", caller), caller)

    def make_room(self, request: RequestState, evict: Collection[str]) -> None:
        """Unload these models, and no others, for a request that does not fit.

        The unloads take the request's place in the order of arrival. Models that were to
        leave for an earlier such request, or by an earlier plan, may stay.
        """
        for model in list(self.state.residents.values()):
            job = self.state.pending(model.unload)
            if job is None or job.wanted_by is None:
                continue
            if job.wanted_by != request.id and not evict:
                continue  # this request needs nothing, but another one does
            if job.wanted_by != request.id or model.name not in evict:
                job.wanted_by = None
                if not self.state.wanted(job):
                    self.drop(job, cause="not needed any more")
        for name in evict:
            cause = f"room for {request.id}"
            job = self.want_unload(self.state.models[name], cause=cause, request=request)
            job.wanted_by = request.id
            if job.place == request.place:
                job.asked_at = request.asked_at

    def _arrival(self, request: RequestState | None) -> float:
        """When a load that is wanted now counts as having arrived: later for a batch request."""
        return self.state.now if request is None else max(self.state.now, request.arrival)

    def _bring_forward(self, job: JobState, place: Place, arrival: float) -> None:
        """Give a job this place, unless it has an earlier one."""
        if place < job.place:
            self._put(job, place, arrival)

    def _put(self, job: JobState, place: Place, arrival: float) -> None:
        """Give a job another place. A running one has it if it is put back."""
        job.place, job.arrival = place, arrival
        if job is not self.state.running:
            self._put_in_order(job)

    def _put_in_order(self, job: JobState) -> None:
        """Move a job to where its place is. Few jobs are older than a request."""
        others = (other for other in self.state.jobs.values() if other is not job)
        older = itertools.takewhile(lambda other: other.place <= job.place, others)
        for moved in (job, *reversed(list(older))):
            self.state.jobs.move_to_end(moved.id, last=False)

    def _add(
        self,
        kind: JobKind,
        model: str,
        cause: str,
        caller: str | None = None,
        request: RequestState | None = None,
    ) -> JobState:
        arrival = self._arrival(request)
        place = self._new_place(arrival)
        job_id = caller or f"{kind}-{place.number}"
        while caller is None and (job_id in self.state.callers or self.state.find(job_id)):
            job_id += "+"  # a caller uses this id
        last = next(reversed(self.state.jobs.values()), None)
        job = self.state.jobs[job_id] = JobState(
            job_id, kind, model, place, self.state.now, arrival, cause
        )
        if last is not None and last.place > place:
            self._put_in_order(job)
        self.state.fresh.append(job)
        self.note(
            _kind(job, "queued"),
            model=model,
            request_id=None if request is None else request.id,
            job_id=job_id,
            cause=cause,
        )
        return job

    def _new_place(self, arrival: float) -> Place:
        self._next += 1
        return Place(2, arrival, self._next - 1)

    def _watch(self, job: JobState, caller: str | None, pin: bool = False) -> None:
        if caller is not None:
            job.callers[caller] = pin
            self.state.callers[caller] = job

    def _settle(self, job: JobState, error: GuardedLLMError | None, *, ran: bool) -> None:
        for caller in job.callers:
            del self.state.callers[caller]
            self.actions.append(Settle(caller, error, ran))

    def defer(self, job: JobState, cause: str, waiting_for: Pairs) -> None:
        """Record, once for each cause, that a job waits, and for what."""
        if job.deferred_at is None:
            job.deferred_at = self.state.now
        job.deferrals.add(cause)
        self.note(
            _kind(job, "deferred"),
            model=job.model,
            job_id=job.id,
            cause=cause,
            waiting_for=waiting_for,
        )

    def begin(self, job: JobState, evict: tuple[str, ...]) -> None:
        """A pending job goes to the engine; the generations pause."""
        del self.state.jobs[job.id]
        self.state.running, job.started_at, job.evict = job, self.state.now, evict
        self.pause()
        paused = tuple(self.state.paused)
        if job.kind == "load":
            self.state.ledger.reserve_load(job.model)
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
                "waited": self.state.now - job.asked_at,
            },
        )

    def finish(
        self,
        job: JobState,
        error: GuardedLLMError | None,
        left: tuple[str, ...],
        details: Mapping[str, object],
    ) -> None:
        """The running job ended; the models in `left` are out of memory."""
        assert job.started_at is not None
        self.state.running = None
        self.note(
            _kind(job, "failed" if error else "finished"),
            model=job.model,
            job_id=job.id,
            cause=describe(error) if error else job.cause,
            details={"seconds": self.state.now - job.started_at, **details},
        )
        if job.kind == "load":
            self._load_ended(job, job.started_at, error)
        elif job.kind == "unload":
            self.state.models[job.model].unload = None
        self._gone(job.leaving, left)
        self._settle(job, error, ran=True)

    def put_back(self, job: JobState, cause: str, left: tuple[str, ...]) -> None:
        """The running load is pending again, in its old place; `left` are out of memory."""
        evict = job.evict
        self.state.running, job.started_at, job.evict = None, None, ()
        self.state.ledger.release_model(job.model)
        self.state.jobs[job.id] = job
        self._put_in_order(job)
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
        """A pending job is not needed any more, or fails before it begins.

        Args:
            ran: what it was to do has happened all the same.
        """
        del self.state.jobs[job.id]
        self.note(
            _kind(job, "failed" if error else "cancelled"),
            model=job.model,
            job_id=job.id,
            cause=describe(error) if error else cause,
            details=facts(error),
        )
        self._settle(job, error, ran=ran)
        if job.kind == "run":
            return
        model = self.state.models[job.model]
        waiting = list(model.waiting) if job.kind == "load" else [job.wanted_by]
        if job.kind == "load":
            model.load = None
        else:
            model.unload = None
        if error is not None:
            for request in filter(None, map(self.state.requests.get, filter(None, waiting))):
                self.withdraw(request, error, cause)
        if model.resident:
            self._stays(model)
        else:
            self._is_out(model)

    def _load_ended(self, job: JobState, began: float, error: GuardedLLMError | None) -> None:
        model = self.state.models[job.model]
        model.load = None
        if error is None:
            model.resident, model.pinned, model.last_used = True, job.pin, self.state.now
            self.state.residents[model.name] = model
            times = (began if job.deferred_at is None else job.deferred_at, began, self.state.now)
            model.loads = [*model.loads, times] if model.waiting else []
            return
        self.state.ledger.release_model(job.model)
        for request_id in list(model.waiting):
            self.withdraw(self.state.requests[request_id], error, cause="load failed")
        self._is_out(model)

    def _gone(self, leaving: tuple[str, ...], left: tuple[str, ...]) -> None:
        """The models in `left` are out of memory; the others of `leaving` stay."""
        for name in left:
            self._left(name)
        for name in leaving:
            if name in self.state.residents:
                self._stays(self.state.residents[name])

    def _left(self, name: str) -> None:
        """A model is out of memory. It is loaded again if requests wait for it."""
        model = self.state.residents.pop(name, None)
        if model is None:
            return
        model.resident = model.pinned = False
        self.state.ledger.release_model(name)
        self._is_out(model)
        if model.waiting:
            self.want_load(model, self.state.first(model), cause="wanted again")

    def _is_out(self, model: ModelState) -> None:
        """A model is not resident, so its unload is dropped unless a load comes first."""
        unload, load = self.state.pending(model.unload), self.state.find(model.load)
        if unload is not None and (load is None or load.place > unload.place):
            self.drop(unload, cause="not resident")
        self.forget(model)

    def _stays(self, model: ModelState) -> None:
        """A model that was to leave stays, so its pending load has nothing to do."""
        load = self.state.pending(model.load)
        if load is not None:
            model.pinned = model.pinned or load.pin
            self.drop(load, cause="resident already")

    # ---- the engine died ---------------------------------------------------------

    def lose(self, cause: str, emitted: Mapping[str, int], *, reload: bool) -> None:
        """The engine is gone, and all that it held.

        Args:
            emitted: how many tokens each request has by now.
            reload: load the models again that are still wanted.
        """
        for request_id in list(self.state.active):
            self.interrupt(self.state.requests[request_id], cause, emitted.get(request_id))
        cut = self._lose_job(cause, reload=reload)
        back = [
            self._lose_model(model, cause, reload) for model in list(self.state.residents.values())
        ]
        loads = sorted(filter(None, back), key=self._urgency)
        self._to_front([*loads, cut] if cut is not None else loads)

    def interrupt(self, request: RequestState, cause: str, emitted: int | None) -> None:
        """An active request waits again, before all that have not started.

        One that was stopping has ended, as no engine will report it.
        """
        if request.status is Status.STOPPING:
            self.end(request)
            self._fail(request, request.stop_error, "cancelled")
            return
        self._leave_engine(request)
        model = self.state.models[request.model]
        self.state.ledger.retract_start(request.id)
        request.become(Status.INTERRUPTED)
        request.interrupted_at = self.state.now
        request.place = request.place._replace(rank=1)
        model.waiting[request.id] = None
        self._sort_waiting(model)
        self.note(
            "request.interrupted",
            model=model.name,
            request_id=request.id,
            cause=cause,
            details={} if emitted is None else {"emitted": emitted},
        )

    def _lose_job(self, cause: str, *, reload: bool) -> JobState | None:
        """The running job is over. Returns it if it is a load that will be tried again."""
        job = self.state.running
        if job is None:
            return None
        if job.kind == "load" and reload and self.state.wanted(job):
            self.put_back(job, cause, job.evict)
            job.recovers = True
            return job
        done = job.kind == "unload"  # the model is out of memory
        self.finish(job, None if done else cut_off(job, cause), job.leaving, {})
        return None

    def _lose_model(self, model: ModelState, cause: str, reload: bool) -> JobState | None:
        """A model is gone. Returns the load that brings it back, if it is still wanted."""
        unload, load = self.state.pending(model.unload), None
        pinned = model.pinned and not (unload is not None and unload.callers)
        del self.state.residents[model.name]
        model.resident = model.pinned = False
        self.state.ledger.release_model(model.name)
        if reload and (model.waiting or pinned):
            load = self.want_load(model, None, cause="recovery")
            load.recovers, load.pinned = True, pinned
        if unload is not None:
            self.drop(unload, cause=cause, ran=True)
        self.forget(model)
        return load

    def _urgency(self, load: JobState) -> Place:
        """The order in which models come back: by their oldest waiting request."""
        model = self.state.models[load.model]
        return self.state.first(model).place if model.waiting else END

    # ---- out of memory -----------------------------------------------------------

    def evict_idle(self, cause: str) -> None:
        """Unload idle models before anything else begins."""
        jobs = [self.want_unload(model, cause=cause) for model in self.state.idle()]
        for job in jobs:
            job.urgent = True
        self._to_front(jobs)

    def refuse(self, model: str, error: GuardedLLMError) -> None:
        """Fail the pending load of this model and all its requests that have not started."""
        state = self.state.models.get(model)
        load = self.state.pending(state.load) if state is not None else None
        if load is not None:
            self.drop(load, cause="refused", error=error)
        for request in list(self.state.requests.values()):
            if request.model == model and not request.status.started:
                self.withdraw(request, error, cause="refused")

    # ---- order -------------------------------------------------------------------

    def _sort_waiting(self, model: ModelState) -> None:
        """Put the waiting requests of a model into their order."""
        requests = self.state.requests
        model.waiting = OrderedDict.fromkeys(
            sorted(model.waiting, key=lambda request_id: requests[request_id].place)
        )

    def _to_front(self, jobs: Sequence[JobState]) -> None:
        """Move these pending jobs before everything else, in this order."""
        for job in reversed(jobs):
            self._front -= 1
            job.place = Place(0, 0.0, self._front)
            self.state.jobs.move_to_end(job.id, last=False)


def _pair(job: JobState) -> Pairs:
    return ((job.id, job.model),)


def _kind(job: JobState, verb: str) -> Kind:
    return f"{job.kind}.{verb}"  # type: ignore[return-value]
