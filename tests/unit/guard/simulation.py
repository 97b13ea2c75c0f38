"""A simulated engine that carries out what the guard says, and checks all of it.

Events are discrete, and times are whole seconds. A generation and a job take a given number
of seconds; nothing steps while a job runs. An engine may die at any moment; what a generation
has done by then is kept.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from mlx_guarded_llm.errors import BackendClosed, GuardedLLMError
from mlx_guarded_llm.guard import (
    Action,
    Exclusive,
    Fail,
    Guard,
    GuardLimits,
    Load,
    LoadDeadline,
    MemoryLedger,
    Run,
    Settle,
    Start,
    Status,
    Stop,
    Timing,
    UnlimitedMemory,
    Unload,
)
from mlx_guarded_llm.memory.ledger import Ledger
from mlx_guarded_llm.record.events import Event
from tests.unit.guard.promises import Promises, Ran


@dataclass
class Footprint:
    """Stands in for `memory.footprint.Footprint`; bytes are units here."""

    weight_bytes: int
    per_token: int = 1
    state_bytes: int = 0
    prefill: int = 0
    whole_texts: bool = False

    def kv_bytes(self, tokens: int) -> int:
        return self.per_token * tokens

    def prefill_bytes(self, chunk_tokens: int) -> int:
        return self.prefill


MANY = 40  # requests of which each is looked at; more of them differ in nothing

SMALL = {"a": Footprint(4), "b": Footprint(4), "c": Footprint(4)}


@dataclass
class Generation:
    model: str
    left: float
    error: GuardedLLMError | None = None


@dataclass
class Ended:
    """How a request ended, and when."""

    time: float
    error: GuardedLLMError | None = None
    timing: Timing | None = None


@dataclass
class Simulation:
    """A guard, its engine and a clock."""

    sizes: dict[str, Footprint] = field(default_factory=dict)
    budget: int | None = None
    load_wait: float = 120.0
    fairness_window: float = 5.0
    batch_wait: float = 30.0
    on_load_deadline: LoadDeadline = "pause"
    max_queue: int = 1024
    max_active: int = 32
    keep_alive: float | None = None
    load_seconds: float = 10.0
    turns: bool = False  # models are stepped in turn; otherwise all at once

    def __post_init__(self) -> None:
        self.now = 0.0
        self.events: list[Event] = []
        self.generations: dict[str, Generation] = {}
        self.durations: dict[str, float] = {}
        self.tokens: dict[str, int] = {}
        self.job: Exclusive | None = None
        self.job_ends = 0.0
        self.job_error: GuardedLLMError | None = None
        self.job_left: tuple[str, ...] | None = None
        self.job_again = False
        self.back_at: float | None = None  # when there is an engine again
        self.residents: set[str] = set()
        self.open: set[str] = set()
        self.ends: dict[str, Ended] = {}
        self.callers: set[str] = set()
        self.settled: dict[str, Settle] = {}
        self.ran: list[Ran] = []
        self.request_times: dict[str, float] = {}
        self.ledger: Ledger | None = None
        ledger: MemoryLedger = UnlimitedMemory()
        if self.budget is not None:
            ledger = self.ledger = Ledger(self.budget)
            for model, footprint in self.sizes.items():
                self.ledger.know_model(model, footprint)  # type: ignore[arg-type]
        self.guard = Guard(
            GuardLimits(
                load_wait=self.load_wait,
                fairness_window=self.fairness_window,
                batch_wait=self.batch_wait,
                on_load_deadline=self.on_load_deadline,
                max_queue=self.max_queue,
                max_active=self.max_active,
                keep_alive=self.keep_alive,
            ),
            ledger=ledger,
            emit=self._hear,
        )
        self.state = self.guard._state
        self.promises = Promises(self)
        self._ids = itertools.count(1)

    # ---- what a user does ----------------------------------------------------------

    def submit(
        self,
        model: str,
        seconds: float,
        *,
        tokens: int = 1,
        timeout: float | None = None,
        batch: bool = False,
        name: str = "",
    ) -> str:
        """Ask, with everything that it takes to start at hand."""
        request_id = self.ask(
            model, seconds, tokens=tokens, timeout=timeout, batch=batch, name=name
        )
        self.fetched(request_id)
        self.prepared(request_id)
        return request_id

    def ask(
        self,
        model: str,
        seconds: float,
        *,
        tokens: int = 1,
        timeout: float | None = None,
        batch: bool = False,
        name: str = "",
    ) -> str:
        """Ask for a model whose files are still to be found."""
        request_id = name or f"r{next(self._ids)}"
        expires = None if timeout is None else self.now + timeout
        try:
            self.guard.submit(
                self.now,
                request_id,
                model,
                expires=expires,
                priority="batch" if batch else "interactive",
            )
        except BackendClosed as error:
            self.ends[request_id] = Ended(self.now, error)
            return request_id
        self.open.add(request_id)
        self.request_times[request_id] = self.now
        self.durations[request_id], self.tokens[request_id] = seconds, tokens
        self.check()
        return request_id

    def fetched(self, request_id: str) -> None:
        self.guard.fetched(request_id)

    def prepared(self, request_id: str) -> None:
        if self.guard.status(request_id) is not Status.PREPARING:
            return
        model = self.state.requests[request_id].model
        if self.ledger is not None:
            try:
                self.ledger.know_request(request_id, model, self.tokens[request_id])
            except GuardedLLMError as error:
                self.do(self.guard.cancel(self.now, request_id, error=error))
                return
        self.do(self.guard.prepared(self.now, request_id))

    def cancel(self, request_id: str) -> None:
        self.do(self.guard.cancel(self.now, request_id))

    def unpin(self, model: str) -> None:
        self.do(self.guard.unpin(self.now, model))

    def ask_load(self, model: str, *, pin: bool = False, name: str = "") -> str:
        job_id = self._caller(name)
        self.do(self.guard.ask_load(self.now, job_id, model, pin=pin))
        return job_id

    def ask_unload(self, model: str, name: str = "") -> str:
        job_id = self._caller(name)
        self.do(self.guard.ask_unload(self.now, job_id, model))
        return job_id

    def ask_run(self, label: str = "cell", name: str = "") -> str:
        job_id = self._caller(name)
        self.do(self.guard.ask_run(self.now, job_id, label))
        return job_id

    def cancel_job(self, job_id: str) -> None:
        self.callers.discard(job_id)
        self.do(self.guard.cancel_job(self.now, job_id))

    def close(self) -> None:
        self.do(self.guard.close(self.now))

    # ---- what befalls the engine ---------------------------------------------------

    def die(self, outage: float = 5.0, *, reported: bool = True) -> None:
        """The engine dies, or the next one before it works.

        Args:
            outage: seconds until there is another.
            reported: stopping generations are reported as ended first.
        """
        for request_id, generation in list(self.generations.items()):
            if reported and self.guard.status(request_id) is Status.STOPPING:
                self.end_generation(request_id, generation.error)
        for request_id in list(self.generations):
            self._lose(request_id)
        if self.job is not None:
            self.job, self.job_error, self.job_left, self.job_again = None, None, None, False
            self.ran[-1].ended = self.now
        self.residents.clear()
        if self.back_at is None:
            self.ran.append(Ran("outage", self.now))  # nothing can begin meanwhile either
        self.back_at = self.now + outage
        self.do(self.guard.lost(self.now, "SIGABRT"))

    def interrupt(self, request_id: str) -> None:
        """Its batch ran out of memory."""
        self._lose(request_id)
        self.do(self.guard.interrupted(self.now, request_id, "out of memory"))

    def evict_idle(self) -> None:
        self.promises.out_of_memory_at = self.now
        self.do(self.guard.evict_idle(self.now, "out of memory"))

    def _lose(self, request_id: str) -> None:
        self.durations[request_id] = self.generations.pop(request_id).left

    def _come_back(self) -> None:
        self.back_at = None
        self.ran[-1].ended = self.now
        self.do(self.guard.back(self.now))

    def _caller(self, name: str) -> str:
        job_id = name or f"j{next(self._ids)}"
        self.callers.add(job_id)
        return job_id

    # ---- time ------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        self.until(self.now + seconds)

    def until(self, end: float) -> None:
        """Let time pass, event by event."""
        while (time := self._next_event()) is not None and time <= end:
            self._pass_time(time)
            self._happen()
        self._pass_time(end)

    def finish(self, most: int = 10_000) -> None:
        """Drive everything to its end."""
        for _ in range(most):
            for request_id in list(self.state.early):
                self.fetched(request_id)
                self.prepared(request_id)
            if self.guard.quiet and self.job is None:
                break
            time = self._next_event()
            assert time is not None, f"stuck: {self.state.jobs} {self.state.requests}"
            self._pass_time(time)
            self._happen()
        assert self.guard.quiet, "never quiet"
        assert not self.generations and not self.open and not self.callers
        for account in self.ledger._accounts.values() if self.ledger is not None else ():
            assert not account.wanted and not account.running

    def _next_event(self) -> float | None:
        times = []
        if self.job is not None:
            times.append(self.job_ends)
        elif self.generations:
            times.append(self.now + min(g.left for g in self.generations.values()) * self._taking)
        if self.back_at is not None:
            times.append(self.back_at)
        deadline = self.guard.next_deadline()
        if deadline is not None:
            assert deadline >= self.now, "a deadline in the past"
            times.append(deadline)
        return min(times, default=None)

    @property
    def _taking(self) -> int:
        """How many models take turns."""
        if not self.turns:
            return 1
        return len({generation.model for generation in self.generations.values()}) or 1

    def _pass_time(self, time: float) -> None:
        if self.job is None:
            taking = self._taking
            for generation in self.generations.values():
                generation.left -= (time - self.now) / taking
        self.now = time

    def _happen(self) -> None:
        """Whatever is due now."""
        if self.back_at is not None and self.back_at <= self.now:
            self._come_back()
        elif self.job is not None and self.job_ends <= self.now:
            self._end_job(self.job)
        elif self.job is None:
            for request_id, generation in list(self.generations.items()):
                if generation.left <= 0 and self.job is None:
                    self.end_generation(request_id, generation.error)
        self.settle_time()

    def settle_time(self) -> None:
        """Ticking at the deadline always gets past it."""
        for _ in range(200):
            deadline = self.guard.next_deadline()
            assert deadline is None or deadline >= self.now, "a deadline in the past"
            if deadline is None or deadline > self.now:
                return
            self.do(self.guard.tick(self.now))
        raise AssertionError("ticking does not converge")

    def end_generation(self, request_id: str, error: GuardedLLMError | None = None) -> None:
        del self.generations[request_id]
        timing, actions = self.guard.ended(self.now, request_id, error=error)
        self._end(request_id, Ended(self.now, error, timing))
        whole = self.now - self.request_times[request_id]
        assert 0 <= timing.deferred + timing.loading <= timing.queued <= whole
        assert timing.paused == self.promises.pauses.get(request_id, 0.0)
        assert timing.recovering == self.promises.recovering.get(request_id, 0.0)
        assert timing.queued + timing.paused + timing.recovering <= whole
        self.do(actions)

    def _end_job(self, job: Exclusive) -> None:
        if self.job_again:
            self.evict_idle()
        self.job, error = None, self.job_error
        left, again = self.job_left, self.job_again
        gone: tuple[str, ...] = ()
        match job:
            case Load():
                gone = job.evict if left is None else left
                if error is None:
                    self.residents.add(job.model)
            case Unload():
                gone = (() if error else (job.model,)) if left is None else left
        self.residents -= set(gone)
        self.ran[-1].ended = self.now
        self.job_error, self.job_left, self.job_again = None, None, False
        self.do(self.guard.job_ended(self.now, job.job_id, error=error, left=left, again=again))

    # ---- what the guard says -------------------------------------------------------------

    def do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Start():
                    self._start(action)
                case Stop():
                    generation = self.generations[action.request_id]
                    generation.error, generation.left = action.error, min(generation.left, 1)
                case Fail():
                    assert action.request_id not in self.generations
                    if self.ledger is not None:
                        for model in self.sizes:
                            self.ledger.forget_request(action.request_id, model)
                    self._end(action.request_id, Ended(self.now, action.error))
                case Settle():
                    assert action.job_id in self.callers, "settled twice, or nobody asked"
                    self.callers.remove(action.job_id)
                    self.settled[action.job_id] = action
                case _:
                    self._begin(action)
        self.check()

    def _start(self, action: Start) -> None:
        assert self.job is None and self.back_at is None, "a start while a job runs"
        assert action.model in self.residents
        assert not any(j.urgent or j.recovers for j in self.state.jobs.values()), "too early"
        assert action.request_id in self.open and action.request_id not in self.generations
        self.generations[action.request_id] = Generation(
            action.model, self.durations[action.request_id]
        )
        of_model = [g for g in self.generations.values() if g.model == action.model]
        assert len(of_model) <= self.max_active

    def _begin(self, job: Exclusive) -> None:
        assert self.job is None and self.back_at is None, "two jobs in flight"
        assert set(job.paused) == set(self.generations), "a generation could step"
        if self.on_load_deadline == "raise":
            assert not job.paused
        busy = {g.model for g in self.generations.values()}
        if isinstance(job, Load):
            assert job.model not in self.residents
            assert set(job.evict) <= self.residents - busy
            assert not any(self.state.models[name].pinned for name in job.evict)
        elif isinstance(job, Unload):
            assert job.model in self.residents - busy
        assert self.state.running is not None
        if self.state.running.recovers:
            assert isinstance(job, Load) and not job.evict and not job.paused
        if not self.state.running.urgent:
            assert not any(other.urgent for other in self.state.jobs.values()), "too early"
        seconds = self.load_seconds if isinstance(job, Load | Run) else 1.0
        self.job, self.job_ends = job, self.now + seconds
        self.ran.append(Ran(job.job_id, self.now))

    def _end(self, request_id: str, end: Ended) -> None:
        if request_id in self.ends and request_id not in self.open:
            raise AssertionError(f"{request_id} ended twice")
        self.open.discard(request_id)
        self.ends[request_id] = end

    # ---- what always holds -------------------------------------------------------------------

    def check(self) -> None:
        guard, state = self.guard, self.state
        assert guard.may_step == (self.job is None)
        assert set(state.active) == set(self.generations)
        assert set(state.requests) == self.open
        if len(state.requests) <= MANY:
            self._check_statuses()
        assert set(state.callers) == self.callers
        assert set(state.residents) == self.residents
        assert {m.name for m in guard.models() if m.resident} == self.residents
        assert not any(m.forgotten for m in guard.models())
        assert guard.quiet == (not self.open and not state.jobs and self.job is None)
        orders = [job.place for job in state.jobs.values()]
        assert orders == sorted(orders), "jobs out of order"
        deadline = guard.next_deadline()
        assert deadline is None or deadline >= self.now
        for model in guard.models():
            assert set(model.active) == {
                r for r, g in self.generations.items() if g.model == model.name
            }
            waits = state.find(model.load) is not None
            assert model.resident or not model.waiting or waits, "waits for a load that none runs"
        if self.ledger is not None:
            leaving = state.running.leaving if state.running else ()
            staying = self.ledger._others("", leaving)
            assert self.ledger._used(staying) <= self.ledger.budget_bytes
            assert set(self.ledger._running) == set(self.generations)
            for account in self.ledger._accounts.values():
                for request_id, tokens in {**account.wanted, **account.running}.items():
                    assert tokens == self.tokens[request_id]
            loading = {self.job.model} if isinstance(self.job, Load) else set()
            for name in self.sizes:
                counted = self.ledger.model_bytes(name) > 0
                assert counted == (name in self.residents | loading)

    def _check_statuses(self) -> None:
        """Each says where the request is in fact."""
        state = self.state
        found: dict[Status, set[str]] = defaultdict(set)
        for request in state.requests.values():
            found[request.status].add(request.id)
        assert state.early.keys() == found[Status.FETCHING] | found[Status.PREPARING]
        running, paused, stopping = (
            found[status] for status in (Status.RUNNING, Status.PAUSED, Status.STOPPING)
        )
        assert state.active.keys() == running | paused | stopping
        assert paused == state.paused.keys() - stopping
        waiting = {name for model in state.models.values() for name in model.waiting}
        assert waiting == found[Status.WAITING] | found[Status.INTERRUPTED]
        assert not found[Status.FINISHED]

    def _hear(self, event: Event) -> None:
        assert event.time == self.now
        self.events.append(event)
        self.promises.hear(event)


# ---- for the tests -------------------------------------------------------------------


def submit(
    guard: Guard, now: float, request_id: str, model: str, *, expires: float | None = None
) -> list[Action]:
    """A request that has at once all that it takes to start."""
    guard.submit(now, request_id, model, expires=expires)
    guard.fetched(request_id)
    return guard.prepared(now, request_id)


def resident(*models: str, **options: object) -> Simulation:
    """A simulation in which these models have been loaded and nothing runs."""
    sim = Simulation(**options)  # type: ignore[arg-type]
    for model in models:
        sim.ask_load(model)
    sim.finish()
    assert sim.residents == set(models)
    return sim


def outage(sim: Simulation, seconds: float = 5) -> None:
    """The engine dies, and the next one works after `seconds`."""
    sim.die(seconds)
    sim.advance(seconds)


def kinds(sim: Simulation, subject: str) -> list[str]:
    return [e.kind.split(".")[1] for e in sim.events if e.kind.startswith(subject + ".")]


def event(sim: Simulation, kind: str, **fields: str) -> Event:
    """The last event of this kind."""
    return [
        e
        for e in sim.events
        if e.kind == kind and all(getattr(e, name) == value for name, value in fields.items())
    ][-1]


def loads(sim: Simulation) -> list[str | None]:
    return [e.model for e in sim.events if e.kind == "load.started"]
