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

from ..engine.engine import Engine
from ..engine.protocol import (
    Broken,
    Cancel,
    Delta,
    Ended,
    EngineOptions,
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
from ..guard import Action, Fail, Guard, Settle, Stop
from ..guard import Start as StartAction
from ..memory.ledger import Ledger
from ..models import Catalog, ModelFiles, ModelSpec
from ..models.spec import OnProgress, Progress
from ..record import Event, Record
from .callers import Callers
from .commands import exclusive
from .library import Found, Library
from .loop import Loop
from .requests import Request, TokensRequest
from .work import Job, ModelInfo, model_infos


class Dispatcher(Loop):
    """See the module. All but `post`, `call` and `join` runs on its thread.

    Args:
        guard: arguments of the `Guard`, less room and emit.
        engine: how the engine works.
        catalog: finds models.
        offline: never use the network.
        record: takes every event.
        on_progress: told of every download, load and prefill.
    """

    def __init__(
        self,
        *,
        guard: dict[str, Any],
        engine: EngineOptions,
        catalog: Catalog,
        offline: bool,
        record: Record,
        on_progress: OnProgress | None,
    ) -> None:
        super().__init__("mlx-guarded-dispatch")
        self._guard_options = guard
        self._engine_options = engine
        self._record = record
        self.library = Library(catalog, offline, self.post)
        self.ready: Ready | None = None
        self._engine: Engine | None = None
        self._guard: Guard | None = None
        self._ledger: Ledger | None = None
        self._dead: GuardedLLMError | None = None
        self._until_ready: list[Callable[[], None]] = []
        limit = int(guard["max_queue"]) + 8 * int(guard["max_active"])
        self.callers = Callers(on_progress, limit)
        self._early: list[tuple[float, str]] = []  # deadlines of requests not yet guarded
        self.start()

    def _report(self, report: Report) -> None:
        # Text takes the short way: no decision depends on it.
        if isinstance(report, Delta):
            self.callers.pass_on(report)
        else:
            self.post(lambda: self._take(report))

    # ---- the clock ---------------------------------------------------------------

    def deadline(self) -> float | None:
        """See `Loop.deadline`."""
        early = self._early[0][0] if self._early else None
        guarded = self._guard.next_deadline() if self._guard else None
        return min((due for due in (early, guarded) if due is not None), default=None)

    def tick(self, now: float) -> None:
        """See `Loop.tick`."""
        while self._early and self._early[0][0] <= now:
            request = self.callers.requests.get(heapq.heappop(self._early)[1])
            if request is not None and request.expired_early(now):
                self._end_early(request, request.timeout(now))
        if self._guard is not None:
            due = self._guard.next_deadline()
            if due is not None and due <= now:
                self._do(self._guard.tick(now))

    def failed(self, error: Exception) -> None:
        """See `Loop.failed`."""
        self._break(EngineDied(f"the dispatcher failed ({type(error).__name__}: {error})."))

    # ---- requests ----------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """A new request. Its `put` is called until it has an end."""
        if self._dead is not None or not self._running:
            request.put(self._dead or BackendClosed("the backend is closed."))
            return
        refusal = self.callers.refusal(request)
        if refusal is not None:
            request.put(refusal)
            return
        self.callers.add(request)
        self._expect(request)
        request.key = self.library.key(request.spec)
        self._with_files(request.key, request.spec, lambda found: self._fetched(request, found))

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
        request.stage = "waiting for MLX to start"
        self._when_ready(lambda: self._prepare(request, found))

    def _prepare(self, request: Request, files: ModelFiles) -> None:
        if request.told:
            return
        assert self._engine is not None
        if not isinstance(request, TokensRequest):  # which needs no memory
            try:
                self._know(request.key, files)
            except GuardedLLMError as error:
                self._end_early(request, error)
                return
        request.stage = "being prepared"
        request.fingerprint, request.revision = files.fingerprint, files.revision
        request.in_engine = True
        self._engine.send(request.command(files))

    def _prepared(self, report: Prepared) -> None:
        request = self.callers.requests.get(report.request_id)
        if self._guard is None or self._ledger is None:
            return  # it came after the end
        if request is None or request.told:
            self._send(Cancel(report.request_id))
            return
        try:
            tokens = report.prompt_tokens + report.max_tokens
            self._ledger.know_request(request.id, request.key, tokens)
        except GuardedLLMError as error:
            self._end_early(request, error)
            return
        request.guarded = True
        now = time.monotonic()
        request.prepared = now
        self._do(self._guard.submit(now, request.id, request.key, expires=request.expires))

    def cancel(self, request_id: str, error: GuardedLLMError | None = None) -> None:
        """Take a request back; unknown and ended ones are ignored."""
        request = self.callers.requests.get(request_id)
        if request is None or request.told:
            return
        if request.guarded:
            assert self._guard is not None
            self._do(self._guard.cancel(time.monotonic(), request_id, error=error))
        else:
            self._end_early(request, error)

    def _end_early(self, request: Request, error: GuardedLLMError | None) -> None:
        """End a request that the guard has not seen."""
        if request.in_engine:
            self._send(Cancel(request.id))
        self._record.append(
            Event(
                kind="request.failed",
                time=time.monotonic(),
                model=request.key,
                request_id=request.id,
                cause=f"{type(error).__name__}: {error}" if error else "cancelled",
            )
        )
        self.callers.settle(request, error)

    def _ended(self, report: Ended) -> None:
        request = self.callers.requests.pop(report.request_id, None)
        if request is None or self._guard is None:
            return
        request.in_engine = False
        if not request.guarded:
            if report.value is not None:  # token ids
                self.callers.tell(request, report.value)
            elif not request.told:
                self._end_early(request, report.error)
            return
        timing, actions = self._guard.ended(
            time.monotonic(),
            report.request_id,
            error=report.error,
            cause=report.finish_reason or "",
            prefill=report.prefill,
            decode=report.decode,
            **report.counts,
        )
        self.callers.tell(request, request.answer(report, timing))
        self._do(actions)

    # ---- jobs --------------------------------------------------------------------

    def ask(self, job: Job) -> None:
        """A load, an unload or foreign work, asked for by name."""
        if self._dead is not None or not self._running:
            job.fail(self._dead or BackendClosed("the backend is closed."))
            return
        self.callers.jobs[job.id] = job
        if job.kind == "load":
            assert job.spec is not None
            key = job.key = self.library.key(job.spec)
            self._with_files(key, job.spec, lambda found: self._load_fetched(job, found))
        else:
            if job.spec is not None:
                job.key = self.library.key(job.spec)
            self._when_ready(lambda: self._ask_guard(job))

    def _load_fetched(self, job: Job, found: Found) -> None:
        if isinstance(found, GuardedLLMError):
            self.callers.jobs.pop(job.id, None)
            job.fail(found)
        else:
            self._when_ready(lambda: self._ask_load(job, found))

    def _ask_load(self, job: Job, files: ModelFiles) -> None:
        try:
            self._know(job.key, files)
        except GuardedLLMError as error:
            self.callers.jobs.pop(job.id, None)
            job.fail(error)
            return
        self._ask_guard(job)

    def _ask_guard(self, job: Job) -> None:
        if job.id not in self.callers.jobs:
            return
        assert self._guard is not None
        now = time.monotonic()
        if job.kind == "load":
            self._do(self._guard.ask_load(now, job.id, job.key, pin=job.pin))
        elif job.kind == "unload":
            self._do(self._guard.ask_unload(now, job.id, job.key))
        else:
            self._do(self._guard.ask_run(now, job.id, job.key))

    def cancel_job(self, job_id: str) -> None:
        """Whoever waited for a job no longer does."""
        if self.callers.jobs.pop(job_id, None) is not None and self._guard is not None:
            self._do(self._guard.cancel_job(time.monotonic(), job_id))

    def _job_ended(self, report: JobEnded) -> None:
        self.callers.loaded()
        if self._guard is None:
            return  # it came after the end
        job = self.callers.jobs.get(report.job_id)
        if job is not None:
            job.value = report.value
            job.error = report.error
        error = report.error
        if error is not None and not isinstance(error, GuardedLLMError):
            error = GuardedLLMError(f"{type(error).__name__}: {error}")
        self._do(
            self._guard.job_ended(
                time.monotonic(), report.job_id, error=error, left=report.left, **report.details
            )
        )

    # ---- what the guard says -----------------------------------------------------

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, StartAction):
                self._send(Start(action.request_id))
            elif isinstance(action, Stop):
                self._send(Cancel(action.request_id))
                request = self.callers.requests.get(action.request_id)
                if request is not None and action.error is not None:
                    self.callers.settle(request, action.error)
            elif isinstance(action, Fail):
                self._failed(action)
            elif isinstance(action, Settle):
                job = self.callers.jobs.pop(action.job_id, None)
                if job is not None:
                    if job.kind == "load":
                        job.value = {info.name: info for info in self.models()}.get(job.key)
                    job.settle(action.error, ran=action.ran)
            else:
                self._send(exclusive(action, self.library.files, self.callers.jobs))

    def _failed(self, action: Fail) -> None:
        self._send(Cancel(action.request_id))  # it was prepared and will not start
        request = self.callers.requests.get(action.request_id)
        if request is not None:
            if self._ledger is not None:
                self._ledger.forget_request(request.id, request.key)
            self.callers.settle(request, action.error)

    def _send(self, command: Any) -> None:
        assert self._engine is not None
        self._engine.send(command)

    # ---- what the engine says ----------------------------------------------------

    def _take(self, report: Report) -> None:
        if isinstance(report, Ended):
            self._ended(report)
        elif isinstance(report, FirstToken):
            if self._guard is not None:
                self._guard.first_token(
                    time.monotonic(),
                    report.request_id,
                    seconds=report.seconds,
                    cached_tokens=report.cached_tokens,
                )
        elif isinstance(report, Prepared):
            self._prepared(report)
        elif isinstance(report, JobEnded):
            self._job_ended(report)
        elif isinstance(report, Moved):
            self.callers.moved(report.model, report.request_id, report.progress)
        elif isinstance(report, Measured):
            if self._ledger is not None:
                self.library.correct(report, self._ledger)
        elif isinstance(report, Ready):
            self._on_ready(report)
        elif isinstance(report, Broken):
            self._break(report.error)
        elif isinstance(report, Stopped):
            self._note("engine.stopped")
            # Unasked for it stops only when the interpreter exits.
            self._end_all(self._dead or BackendClosed("the engine has stopped."))
            self._running = False

    def _when_ready(self, call: Callable[[], None]) -> None:
        """Run `call` once the engine works; the first call starts it."""
        if self._dead is not None:
            self._break(self._dead)
        elif self.ready is not None:
            call()
        else:
            self._until_ready.append(call)
            if self._engine is None:
                self._start_engine()

    def _start_engine(self) -> None:
        try:
            self._engine = Engine(self._report, self._engine_options)
        except GuardedLLMError as error:
            self._break(error.with_traceback(None))

    def _on_ready(self, ready: Ready) -> None:
        self.ready = ready
        self._ledger = Ledger(
            ready.limits.budget_bytes,
            prefix_cache_bytes=ready.limits.prefix_cache_bytes,
            prefill_tokens=ready.limits.prefill_step_size,
        )
        self._guard = Guard(**self._guard_options, room=self._ledger, emit=self._emit)
        self._note(
            "engine.started",
            device=ready.device.get("device_name"),
            budget=ready.limits.budget_bytes,
        )
        waiting, self._until_ready = self._until_ready, []
        for call in waiting:
            call()

    def _break(self, error: GuardedLLMError) -> None:
        """Nothing works any more: everybody is told, and nothing new is taken."""
        if self._dead is None:
            self._note("engine.failed", cause=str(error))
            self._end_all(error)
            if self._engine is not None:
                self._engine.close()

    def _end_all(self, error: GuardedLLMError) -> None:
        self._dead = error
        self._until_ready.clear()
        self.callers.end_all(error)
        self._guard = None

    # ---- closing -----------------------------------------------------------------

    def close(self) -> None:
        """Take nothing more, tell everybody, have the engine drop its models."""
        error = BackendClosed("the backend was closed.")
        self.library.close()
        if self._guard is not None:
            self._do(self._guard.close(time.monotonic(), error))
        self._end_all(self._dead or error)
        if self._engine is None:
            self._running = False
        else:
            self._engine.close()

    # ---- models ------------------------------------------------------------------

    def models(self) -> list[ModelInfo]:
        """Every model that is resident or wanted."""
        states = self._guard.models() if self._guard is not None else []
        return model_infos(states, self.library.files, self._ledger, time.monotonic())

    def memory(self) -> tuple[int, int]:
        """Bytes promised and bytes there are."""
        if self._ledger is None:
            return 0, 0
        return self._ledger.used_bytes, self._ledger.budget_bytes

    def _with_files(self, key: str, spec: ModelSpec, then: Callable[[Found], None]) -> None:
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
        if self._guard is None:
            return False
        return any(m.name == key and (m.resident or m.load) for m in self._guard.models())

    def _know(self, key: str, files: ModelFiles) -> None:
        """Enter a model in the ledger.

        Raises:
            MemoryRefused: it cannot fit even alone.
        """
        assert self._ledger is not None
        if not self._in_memory(key):
            self.library.enter(key, files, self._ledger)

    # ---- the record --------------------------------------------------------------

    def _emit(self, event: Event) -> None:
        if event.kind == "load.deferred" and event.model is not None:
            self.library.warm(event.model)
        self._record.append(event)

    def _note(self, kind: Any, **details: Any) -> None:
        cause = details.pop("cause", "")
        self._emit(Event(kind=kind, time=time.monotonic(), cause=cause, details=details))
