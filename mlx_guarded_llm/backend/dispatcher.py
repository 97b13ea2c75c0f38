"""The dispatcher: one thread that makes every decision of a backend.

Callers and the engine post to it and never wait for it; it asks the guard, and carries
out what the guard says. Because only this thread touches the guard and the ledger, no
lock is needed, and a KeyboardInterrupt, which strikes the main thread, leaves both whole.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from typing import Any

from ..engine.protocol import (
    Broken,
    Cancel,
    Delta,
    Ended,
    FirstToken,
    JobEnded,
    Measured,
    Moved,
    Prepared,
    Ready,
    Report,
    Start,
    Stopped,
)
from ..errors import BackendClosed, EngineDied, GuardedLLMError
from ..guard import Action, Fail, Guard, Settle, Stop, Timing
from ..guard import Start as StartAction
from ..memory.ledger import Ledger
from ..models import Catalog, ModelFiles, ModelSpec
from ..models.spec import OnProgress, Progress
from ..record import Event, Record
from ..record.events import Kind
from ..worker.death import Died
from .callers import Callers
from .commands import exclusive
from .crashes import Crashes
from .jobs import Jobs
from .library import Found, Library
from .loop import Loop
from .machine import Hosts, Machine
from .quarantine import Quarantine
from .recovery import Recovery
from .requests import Request, TokensRequest
from .work import ModelInfo, model_infos


class Dispatcher(Loop):
    """See the module. All but `post`, `call` and `join` runs on its thread.

    Args:
        guard: arguments of the `Guard`, less room and emit.
        hosts: starts engines.
        quarantine: which models may not be loaded.
        crashes: where deaths of the engine are noted down.
        catalog: finds models.
        offline: never use the network.
        record: takes every event.
        on_progress: told of every download, load and prefill.

    Attributes:
        guard, ledger: None until the engine has worked for the first time.
    """

    def __init__(
        self,
        *,
        guard: dict[str, Any],
        hosts: Hosts,
        quarantine: Quarantine,
        crashes: Crashes,
        catalog: Catalog,
        offline: bool,
        record: Record,
        on_progress: OnProgress | None,
    ) -> None:
        super().__init__("mlx-guarded-dispatch")
        self._guard_options = guard
        self._record = record
        self.library = Library(catalog, offline, self.post)
        self.machine = Machine(hosts, self._report)
        self.quarantine = quarantine
        self.crashes = crashes
        self.guard: Guard | None = None
        self.ledger: Ledger | None = None
        self.jobs = Jobs(self)
        self.recovery = Recovery(self)
        self._dead: GuardedLLMError | None = None
        limit = int(guard["max_queue"]) + 8 * int(guard["max_active"])
        self.callers = Callers(on_progress, limit)
        self._early: list[tuple[float, str]] = []  # deadlines of requests not yet guarded
        self.start()

    def _report(self, report: Report | Died) -> None:
        # Text takes the short way: no decision depends on it.
        if isinstance(report, Delta):
            self.callers.pass_on(report)
        else:
            self.post(lambda: self._take(report))

    @property
    def refuses(self) -> GuardedLLMError | None:
        """Why nothing new is taken, or None."""
        if self._dead is not None or self._running:
            return self._dead
        return BackendClosed("the backend is closed.")

    # ---- the clock ---------------------------------------------------------------

    def deadline(self) -> float | None:
        """See `Loop.deadline`."""
        early = self._early[0][0] if self._early else None
        guarded = self.guard.next_deadline() if self.guard else None
        dues = (early, guarded, self.machine.deadline())
        return min((due for due in dues if due is not None), default=None)

    def tick(self, now: float) -> None:
        """See `Loop.tick`."""
        while self._early and self._early[0][0] <= now:
            request = self.callers.requests.get(heapq.heappop(self._early)[1])
            if request is not None and request.expired_early(now):
                self._end_early(request, request.timeout(now))
        if self.guard is not None:
            due = self.guard.next_deadline()
            if due is not None and due <= now:
                self.do(self.guard.tick(now))
        self.machine.tick(now)

    def failed(self, error: Exception) -> None:
        """See `Loop.failed`."""
        self._break(EngineDied(f"the dispatcher failed ({type(error).__name__}: {error})."))

    # ---- requests ----------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """A new request. Its `put` is called until it has an end."""
        if self.refuses is not None:
            request.put(self.refuses)
            return
        request.key = self.library.key(request.spec)
        refusal = self.recovery.refusal(request.key) or self.callers.refusal(request)
        if refusal is not None:
            request.put(refusal)
            return
        self.callers.add(request)
        self._expect(request)
        self.with_files(request.key, request.spec, lambda found: self._fetched(request, found))

    def _expect(self, request: Request) -> None:
        """Watch its deadline until the guard does."""
        if len(self._early) > 2 * len(self.callers.requests) + 64:  # most have ended long ago
            self._early = [due for due in self._early if due[1] in self.callers.requests]
            heapq.heapify(self._early)
        heapq.heappush(self._early, (request.expires, request.id))

    def _fetched(self, request: Request, found: Found) -> None:
        if request.told:
            return
        if isinstance(found, GuardedLLMError):
            self._end_early(request, found)
            return
        request.files = found
        self.until_ready(request)

    def until_ready(self, request: Request) -> None:
        """Prepare a request as soon as there is an engine for it."""
        request.stage = "waiting for MLX to start"
        self.when_ready(lambda: self._know_and_prepare(request))

    def _know_and_prepare(self, request: Request) -> None:
        if request.told:
            return
        assert request.files is not None
        if not isinstance(request, TokensRequest):  # which needs no memory
            try:
                self.know(request.key, request.files)
            except GuardedLLMError as error:
                self._end_early(request, error)
                return
        request.stage = "being prepared"
        self.prepare(request)

    def prepare(self, request: Request) -> None:
        """Have the engine prepare a request, for the first time or again."""
        assert request.files is not None
        request.in_engine = request.preparing = True
        self.machine.send(request.command(request.files))

    def _prepared(self, report: Prepared) -> None:
        request = self.callers.tickets.get(report.request_id)
        if request is None or self.guard is None or self.ledger is None:
            return  # it came after the end
        request.preparing = False
        if request.told or request.stopping:
            self.machine.send(Cancel(request.ticket))
            return
        if request.guarded:  # a new engine has prepared it again
            if request.active:
                self.machine.send(Start(request.ticket))
            return
        request.prompt_tokens = report.prompt_tokens
        try:
            tokens = report.prompt_tokens + report.max_tokens
            self.ledger.know_request(request.id, request.key, tokens)
        except GuardedLLMError as error:
            self._end_early(request, error)
            return
        request.guarded = True
        now = time.monotonic()
        request.prepared = now
        self.do(self.guard.submit(now, request.id, request.key, expires=request.expires))

    def cancel(self, request_id: str, error: GuardedLLMError | None = None) -> None:
        """Take a request back; unknown and ended ones are ignored."""
        request = self.callers.requests.get(request_id)
        if request is None or request.told:
            return
        if request.guarded:
            assert self.guard is not None
            self.do(self.guard.cancel(time.monotonic(), request_id, error=error))
        else:
            self._end_early(request, error)

    def _end_early(self, request: Request, error: GuardedLLMError | None) -> None:
        """End a request that the guard has not seen."""
        if request.in_engine:
            self.machine.send(Cancel(request.ticket))
        cause = f"{type(error).__name__}: {error}" if error else "cancelled"
        self.note("request.failed", model=request.key, request_id=request.id, cause=cause)
        self.callers.settle(request, error)

    def ended(self, report: Ended) -> None:
        """The engine is done with a request."""
        request = self.callers.tickets.get(report.request_id)
        if request is None or self.guard is None:
            return
        if report.out_of_memory:
            last = self.recovery.out_of_memory(request, report)
            if last is None:
                return
            report = last
        request.in_engine = False
        now = time.monotonic()
        if request.guarded and not (request.active or request.told):
            # A new engine could not prepare it again.
            self.do(self.guard.cancel(now, request.id, error=report.error))
            return
        self.callers.remove(request)
        if not request.guarded:
            if report.value is not None:  # token ids
                self.callers.tell(request, report.value)
            elif not request.told:
                self._end_early(request, report.error)
            return
        timing, actions = self.guard.ended(
            now,
            request.id,
            error=report.error,
            cause=report.finish_reason or "",
            prefill=report.prefill,
            decode=report.decode,
            **report.counts,
        )
        self.callers.tell(request, request.answer(report, timing))
        self.do(actions)

    # ---- what the guard says -----------------------------------------------------

    def do(self, actions: list[Action]) -> None:
        """Carry out what the guard decided."""
        for action in actions:
            if isinstance(action, StartAction):
                self._begin(self.callers.requests[action.request_id])
            elif isinstance(action, Stop):
                self._stop(self.callers.requests[action.request_id], action.error)
            elif isinstance(action, Fail):
                self._failed(action)
            elif isinstance(action, Settle):
                job = self.callers.jobs.pop(action.job_id, None)
                if job is not None:
                    if job.kind == "load":
                        job.value = {info.name: info for info in self.models()}.get(job.key)
                    job.settle(action.error, ran=action.ran)
            else:
                self.machine.send(exclusive(action, self.library.files, self.callers.jobs))

    def _begin(self, request: Request) -> None:
        request.active = True
        request.started = request.started or time.monotonic()
        if not request.preparing:  # else as soon as a new engine has prepared it again
            self.machine.send(Start(request.ticket))

    def _stop(self, request: Request, error: GuardedLLMError | None) -> None:
        request.stopping = True
        self.machine.send(Cancel(request.ticket))
        if error is not None:
            self.callers.settle(request, error)

    def _failed(self, action: Fail) -> None:
        request = self.callers.requests.get(action.request_id)
        if request is None:
            return
        self.machine.send(Cancel(request.ticket))  # it was prepared and will not start
        if self.ledger is not None:
            self.ledger.forget_request(request.id, request.key)
        if action.error is None and request.tokens:  # cancelled while it was to be resumed
            request.in_engine = False
            self.callers.remove(request)
            self.callers.tell(request, request.answer(request.cut(), Timing()))
        else:
            self.callers.settle(request, action.error)

    # ---- what the engine says ----------------------------------------------------

    def _take(self, report: Report | Died) -> None:
        if isinstance(report, Ended):
            self.ended(report)
        elif isinstance(report, FirstToken):
            self._first_token(report)
        elif isinstance(report, Prepared):
            self._prepared(report)
        elif isinstance(report, JobEnded):
            self.jobs.ended(report)
        elif isinstance(report, Moved):
            self.callers.moved(report.model, report.request_id, report.progress)
        elif isinstance(report, Measured):
            if self.ledger is not None:
                self.library.correct(report, self.ledger)
        elif isinstance(report, Ready):
            self._on_ready(report)
        elif isinstance(report, Died) and self._dead is None:
            self.recovery.died(report.death)
        elif isinstance(report, Broken):
            self._break(report.error)
        elif isinstance(report, (Stopped, Died)):
            self.note("engine.stopped")
            # Unasked for it stops only when the interpreter exits.
            self._end_all(self._dead or BackendClosed("the engine has stopped."))
            self._running = False

    def _first_token(self, report: FirstToken) -> None:
        self.machine.progressed = True
        request = self.callers.tickets.get(report.request_id)
        if request is None or self.guard is None or request.first_token is not None:
            return
        request.first_token = time.monotonic()
        self.guard.first_token(
            request.first_token,
            request.id,
            seconds=report.seconds,
            cached_tokens=report.cached_tokens,
        )

    def when_ready(self, call: Callable[[], None]) -> None:
        """Run `call` once the engine works; the first call starts it."""
        if self._dead is not None:
            self._break(self._dead)
        else:
            self.machine.when_ready(call)

    def _on_ready(self, ready: Ready) -> None:
        waiting = self.machine.works(ready)
        self.note(
            "engine.started",
            device=ready.device.get("device_name"),
            budget=ready.limits.budget_bytes,
            **self.machine.details,
        )
        if self.guard is None:
            limits = ready.limits
            self.ledger = Ledger(
                limits.budget_bytes,
                prefix_cache_bytes=limits.prefix_cache_bytes,
                prefill_tokens=limits.prefill_step_size,
            )
            self.guard = Guard(**self._guard_options, room=self.ledger, emit=self._emit)
        else:
            self.recovery.back()
        for call in waiting:
            call()

    def _break(self, error: GuardedLLMError) -> None:
        """Nothing works any more: everybody is told, and nothing new is taken."""
        if self._dead is None:
            self.note("engine.failed", cause=str(error))
            self._end_all(error)
            self.machine.close()

    def give_up(self, error: GuardedLLMError) -> None:
        """Everybody is told; who comes later may have better luck with another engine."""
        self.note("engine.failed", cause=str(error))
        self.machine.give_up()
        self.callers.end_all(error)
        self.guard = self.ledger = None

    def _end_all(self, error: GuardedLLMError) -> None:
        self._dead = error
        self.machine.give_up()
        self.callers.end_all(error)
        self.guard = None

    # ---- closing -----------------------------------------------------------------

    def close(self) -> None:
        """Take nothing more, tell everybody, have the engine drop its models."""
        error = BackendClosed("the backend was closed.")
        self.library.close()
        if self.guard is not None:
            self.do(self.guard.close(time.monotonic(), error))
        self._end_all(self._dead or error)
        if not self.machine.close():
            self._running = False

    # ---- models ------------------------------------------------------------------

    def models(self) -> list[ModelInfo]:
        """Every model that is resident or wanted."""
        states = self.guard.models() if self.guard is not None else []
        now = time.monotonic()
        return model_infos(states, self.library.files, self.ledger, now, self.quarantine)

    def forgive(self, key: str) -> bool:
        """Take a model out of quarantine. Returns whether it was in it."""
        forgiven = self.quarantine.forgive(key)
        if forgiven:
            self.note("model.forgiven", model=key)
        return forgiven

    def memory(self) -> tuple[int, int]:
        """Bytes promised and bytes there are."""
        if self.ledger is None:
            return 0, 0
        return self.ledger.used_bytes, self.ledger.budget_bytes

    def with_files(self, key: str, spec: ModelSpec, then: Callable[[Found], None]) -> None:
        """Call `then` with the verified files of a model, or with why there are none."""
        if self._in_memory(key):
            then(self.library.files[key])
            return

        def progress(step: Progress) -> None:
            self.post(lambda: self.callers.moved(key, None, step))

        def found(result: Found) -> None:
            self.callers.stopped(key)
            then(result)

        self.library.find(key, spec, progress, found)

    def _in_memory(self, key: str) -> bool:
        """Resident or about to be, so that its files are known."""
        return self.guard is not None and self.guard.has(key)

    def know(self, key: str, files: ModelFiles) -> None:
        """Enter a model in the ledger.

        Raises:
            MemoryRefused: it cannot fit even alone.
        """
        assert self.ledger is not None
        if not self._in_memory(key):
            self.library.enter(key, files, self.ledger)

    # ---- the record --------------------------------------------------------------

    def _emit(self, event: Event) -> None:
        if event.kind == "load.deferred" and event.model is not None:
            self.library.warm(event.model)
        self._record.append(event)

    def note(
        self,
        kind: Kind,
        *,
        model: str | None = None,
        request_id: str | None = None,
        cause: str = "",
        **details: Any,
    ) -> None:
        """Enter something in the record."""
        self._record.append(
            Event(
                kind=kind,
                time=time.monotonic(),
                model=model,
                request_id=request_id,
                cause=cause,
                details=details,
            )
        )
