"""The dispatcher: one thread that makes every decision of a backend.

Callers and the engine post to it and never wait for it; it asks the guard, and carries
out what the guard says. Because only this thread touches the guard and the ledger, no
lock is needed, and a KeyboardInterrupt, which strikes the main thread, leaves both whole.
"""

from __future__ import annotations

import heapq
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
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
    Prepare,
    Prepared,
    Ready,
    Report,
    Run,
    Start,
    Stopped,
)
from ..engine.protocol import Load as LoadCommand
from ..engine.protocol import Unload as UnloadCommand
from ..errors import (
    BackendClosed,
    EngineDied,
    GuardedLLMError,
    InvalidRequest,
    QueueFull,
    RequestTimeout,
)
from ..guard import Action, Fail, Guard, Load, Settle, Start as StartAction, Stop, Timing, Unload
from ..memory.corrections import Corrections
from ..memory.footprint import predict
from ..memory.ledger import Ledger
from ..models import Catalog, ModelFiles, ModelSpec
from ..models.spec import OnProgress, Progress
from ..record import Event, Record
from ..results import Chunk, Provenance
from .fetching import Warmer, fetch
from .work import Job, ModelInfo, Request, model_infos

logger = logging.getLogger("mlx_guarded_llm.backend")


class Dispatcher:
    """See the module. Everything but `post`, `call` and `join` runs on its thread.

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
        self._guard_options = guard
        self._engine_options = engine
        self._catalog = catalog
        self._offline = offline
        self._record = record
        self._on_progress = on_progress
        self._max_queue: int = guard["max_queue"]
        self._corrections = Corrections(catalog.cache_dir / "measured.json")
        self._warmer = Warmer()
        self._engine: Engine | None = None
        self._guard: Guard | None = None
        self._ledger: Ledger | None = None
        self.ready: Ready | None = None
        self._dead: GuardedLLMError | None = None
        self._until_ready: list[Callable[[], None]] = []
        self._requests: dict[str, Request] = {}
        self._puts: dict[str, Callable[..., None]] = {}  # read by the engine's threads
        self._jobs: dict[str, Job] = {}
        self._early: list[tuple[float, str]] = []  # deadlines of requests not yet guarded
        self._files: dict[str, ModelFiles] = {}
        self._keys: dict[ModelSpec, str] = {}
        self._fetching: dict[str, list[Callable[[ModelFiles | GuardedLLMError], None]]] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._running = True
        self._thread = threading.Thread(target=self._run, name="mlx-guarded-dispatch", daemon=True)
        self._thread.start()

    # ---- from any thread -----------------------------------------------------------

    def post(self, call: Callable[[], None]) -> None:
        """Have `call` run on the dispatcher's thread. Never blocks."""
        self._inbox.put(call)
        if not self._running:
            self._refuse_rest()

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """As `post`, with a future for what it returns."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 - it belongs to the caller
                future.set_exception(error)

        self.post(run)
        return future

    def join(self, timeout: float) -> bool:
        """Wait until it has ended. Returns whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _report(self, report: Report) -> None:
        # Text takes the short way: no decision depends on it.
        if isinstance(report, Delta):
            put = self._puts.get(report.request_id)
            if put is not None:
                put(report.chunk)
        else:
            self.post(lambda: self._take(report))

    def _refuse_rest(self) -> None:
        """After the end: run what is still posted, which then only refuses."""
        try:
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            return

    # ---- the loop --------------------------------------------------------------------

    def _run(self) -> None:
        while self._running:
            try:
                self._inbox.get(timeout=self._until_deadline())()
            except queue.Empty:
                pass
            except Exception as error:
                logger.exception("the dispatcher failed")
                self._break(EngineDied(f"the dispatcher failed ({type(error).__name__}: {error})."))
            try:
                self._tick()
            except Exception as error:
                logger.exception("the dispatcher failed")
                self._break(EngineDied(f"the dispatcher failed ({type(error).__name__}: {error})."))
        self._refuse_rest()

    def _until_deadline(self) -> float | None:
        deadlines = [self._guard.next_deadline() if self._guard else None]
        deadlines.append(self._early[0][0] if self._early else None)
        first = min((d for d in deadlines if d is not None), default=None)
        return None if first is None else max(0.0, first - time.monotonic())

    def _tick(self) -> None:
        now = time.monotonic()
        while self._early and self._early[0][0] <= now:
            request = self._requests.get(heapq.heappop(self._early)[1])
            if request is not None and request.expired_early(now):
                waited = now - request.submitted
                self._end_early(
                    request,
                    RequestTimeout(
                        f"request {request.id} to {request.name} timed out after {waited:.1f} s, "
                        f"{request.stage}.",
                        hint="Pull the model first, or raise timeout.",
                    ),
                )
        if self._guard is not None:
            deadline = self._guard.next_deadline()
            if deadline is not None and deadline <= now:
                self._do(self._guard.tick(now))

    # ---- requests ------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """A new request. Its `put` is called until it has an end."""
        if self._dead is not None or not self._running:
            request.put(self._dead or BackendClosed("the backend is closed."))
            return
        if request.id in self._requests:
            request.put(
                InvalidRequest(
                    f"a request {request.id!r} is already under way.",
                    hint="Give each request a name of its own, or none.",
                )
            )
            return
        if len(self._requests) >= self._limit:
            request.put(
                QueueFull(
                    f"{len(self._requests)} requests are under way already.",
                    hint="Try again later, or raise max_queue.",
                )
            )
            return
        self._requests[request.id] = request
        self._puts[request.id] = request.put
        if request.expires is not None:
            heapq.heappush(self._early, (request.expires, request.id))
        request.key = self._key(request.spec)
        self._with_files(request.key, request.spec, lambda found: self._fetched(request, found))

    @property
    def _limit(self) -> int:
        return self._max_queue + int(self._guard_options["max_active"]) * 8

    def _fetched(self, request: Request, found: ModelFiles | GuardedLLMError) -> None:
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
        try:
            self._know(request.key, files)
        except GuardedLLMError as error:
            self._end_early(request, error)
            return
        request.stage = "preparing its prompt"
        request.fingerprint = files.fingerprint
        request.in_engine = True
        self._engine.send(
            Prepare(
                request_id=request.id,
                model=request.key,
                files=files,
                prompt=request.prompt,
                params=request.params,
                seed=request.seed,
            )
        )

    def _prepared(self, report: Prepared) -> None:
        request = self._requests.get(report.request_id)
        if self._guard is None or self._ledger is None:
            return  # it came after the end
        if request is None or request.told:
            self._send(Cancel(report.request_id))
            return
        try:
            tokens = report.prompt_tokens + report.max_tokens
            self._ledger.know_request(request.id, request.key, tokens)
        except GuardedLLMError as error:
            self._send(Cancel(request.id))
            self._end_early(request, error)
            return
        request.guarded = True
        now = time.monotonic()
        request.prepared = now
        self._do(self._guard.submit(now, request.id, request.key, expires=request.expires))

    def cancel(self, request_id: str, error: GuardedLLMError | None = None) -> None:
        """Take a request back; unknown and ended ones are ignored."""
        request = self._requests.get(request_id)
        if request is None or request.told:
            return
        if request.guarded:
            assert self._guard is not None
            self._do(self._guard.cancel(time.monotonic(), request_id, error=error))
        else:
            self._end_early(request, error)

    def _end_early(self, request: Request, error: GuardedLLMError | None) -> None:
        """End a request that the guard has not seen."""
        self._record.append(
            Event(
                kind="request.failed",
                time=time.monotonic(),
                model=request.key,
                request_id=request.id,
                cause=f"{type(error).__name__}: {error}" if error else "cancelled",
            )
        )
        self._settle(request, error)

    def _settle(self, request: Request, error: GuardedLLMError | None) -> None:
        """The caller gets its end; the engine may still have to stop."""
        if not request.in_engine:
            self._requests.pop(request.id, None)
        self._tell(request, error or request.cancelled())

    def _tell(self, request: Request, item: Chunk | GuardedLLMError) -> None:
        """Give the caller its end, once."""
        self._puts.pop(request.id, None)
        if request.told:
            return
        request.told = True
        try:
            request.put(item)
        except Exception:
            logger.exception("the caller of %s cannot be told", request.id)

    def _ended(self, report: Ended) -> None:
        request = self._requests.pop(report.request_id, None)
        if request is None or self._guard is None:
            return
        request.in_engine = False
        if not request.guarded:
            if not request.told:
                self._end_early(request, report.error)
            return
        usage = report.usage
        counts = {} if usage is None else {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
        }
        timing, actions = self._guard.ended(
            time.monotonic(),
            report.request_id,
            error=report.error,
            cause=report.finish_reason or "",
            prefill=report.prefill,
            decode=report.decode,
            **counts,
        )
        if report.chunk is None:
            self._tell(request, report.error or request.cancelled())
        else:
            guard = self._provenance(request, report, timing)
            self._tell(request, report.chunk.with_guard(guard))
        self._do(actions)

    def _provenance(self, request: Request, report: Ended, timing: Timing) -> Provenance:
        return Provenance(
            request_id=request.id,
            requested_model=request.name,
            served_model=request.key,
            fingerprint=request.fingerprint,
            seed=request.seed,
            queued=timing.queued + request.prepared - request.submitted,
            deferred=timing.deferred,
            loading=timing.loading,
            prefill=report.prefill,
            decode=report.decode,
            paused=timing.paused,
        )

    # ---- jobs ------------------------------------------------------------------------------

    def ask(self, job: Job) -> None:
        """A load, an unload or foreign work, asked for by name."""
        if self._dead is not None or not self._running:
            job.fail(self._dead or BackendClosed("the backend is closed."))
            return
        self._jobs[job.id] = job
        if job.kind == "load":
            assert job.spec is not None
            key = job.key = self._key(job.spec)
            self._with_files(key, job.spec, lambda found: self._load_fetched(job, found))
        else:
            if job.spec is not None:
                job.key = self._key(job.spec)
            self._when_ready(lambda: self._ask_guard(job))

    def _load_fetched(self, job: Job, found: ModelFiles | GuardedLLMError) -> None:
        if isinstance(found, GuardedLLMError):
            self._jobs.pop(job.id, None)
            job.fail(found)
        else:
            self._when_ready(lambda: self._ask_load(job, found))

    def _ask_load(self, job: Job, files: ModelFiles) -> None:
        try:
            self._know(job.key, files)
        except GuardedLLMError as error:
            self._jobs.pop(job.id, None)
            job.fail(error)
            return
        self._ask_guard(job)

    def _ask_guard(self, job: Job) -> None:
        if job.id not in self._jobs:
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
        if self._jobs.pop(job_id, None) is not None and self._guard is not None:
            self._do(self._guard.cancel_job(time.monotonic(), job_id))

    def _job_ended(self, report: JobEnded) -> None:
        if self._guard is None:
            return  # it came after the end
        job = self._jobs.get(report.job_id)
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

    # ---- what the guard says -------------------------------------------------------------------

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, StartAction):
                self._send(Start(action.request_id))
            elif isinstance(action, Stop):
                self._send(Cancel(action.request_id))
                request = self._requests.get(action.request_id)
                if request is not None and action.error is not None:
                    self._settle(request, action.error)
            elif isinstance(action, Fail):
                self._failed(action)
            elif isinstance(action, Settle):
                job = self._jobs.pop(action.job_id, None)
                if job is not None:
                    if job.kind == "load":
                        job.value = {info.name: info for info in self.models()}.get(job.key)
                    job.settle(action.error, ran=action.ran)
            else:
                self._begin(action)

    def _failed(self, action: Fail) -> None:
        self._send(Cancel(action.request_id))  # it was prepared and will not start
        request = self._requests.get(action.request_id)
        if request is not None:
            if self._ledger is not None:
                self._ledger.forget_request(request.id, request.key)
            self._settle(request, action.error)

    def _begin(self, action: Any) -> None:
        paused = bool(action.paused)
        if isinstance(action, Load):
            files = self._files[action.model]
            self._send(LoadCommand(action.job_id, action.model, files, action.evict, paused))
        elif isinstance(action, Unload):
            self._send(UnloadCommand(action.job_id, action.model, paused))
        else:
            job = self._jobs.get(action.job_id)
            fn = job.fn if job is not None and job.fn is not None else _nothing
            self._send(Run(action.job_id, job.key if job else "", fn, paused))

    def _send(self, command: Any) -> None:
        assert self._engine is not None
        self._engine.send(command)

    # ---- what the engine says --------------------------------------------------------------------

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
            self._moved(report.model, report.request_id, report.progress)
        elif isinstance(report, Measured):
            self._correct(report)
        elif isinstance(report, Ready):
            self._on_ready(report)
        elif isinstance(report, Broken):
            self._break(report.error)
        elif isinstance(report, Stopped):
            self._note("engine.stopped")
            self._end_all(self._dead or EngineDied("the engine has stopped."))
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
                self._engine = Engine(self._report, self._engine_options)

    def _on_ready(self, ready: Ready) -> None:
        self.ready = ready
        self._ledger = Ledger(
            ready.budget_bytes,
            prefix_cache_bytes=ready.prefix_cache_bytes,
            prefill_tokens=ready.prefill_step_size,
        )
        self._guard = Guard(**self._guard_options, room=self._ledger, emit=self._emit)
        self._note(
            "engine.started",
            device=ready.device.get("device_name"),
            budget=ready.budget_bytes,
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
        for request in list(self._requests.values()):
            self._settle(request, error)
        self._requests.clear()
        for job in list(self._jobs.values()):
            job.fail(error)
        self._jobs.clear()
        self._guard = None

    # ---- closing ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take nothing more, tell everybody, have the engine drop its models."""
        error = BackendClosed("the backend was closed.")
        self._warmer.stop()
        if self._guard is not None:
            self._do(self._guard.close(time.monotonic(), error))
        self._end_all(self._dead or error)
        if self._engine is None:
            self._running = False
        else:
            self._engine.close()

    # ---- models ---------------------------------------------------------------------------------------

    def models(self) -> list[ModelInfo]:
        """Every model that is resident or wanted."""
        states = self._guard.models() if self._guard is not None else []
        return model_infos(states, self._files, self._ledger, time.monotonic())

    def memory(self) -> tuple[int, int]:
        """Bytes promised and bytes there are."""
        if self._ledger is None:
            return 0, 0
        return self._ledger.used_bytes, self._ledger.budget_bytes

    def _key(self, spec: ModelSpec) -> str:
        """The one name under which everybody who means this model meets."""
        canonical = spec.unnamed()
        key = self._keys.get(canonical)
        if key is None:
            taken = set(self._keys.values())
            key, n = spec.name, 1
            while key in taken:
                n += 1
                key = f"{spec.name}#{n}"
            self._keys[canonical] = key
        return key

    def _with_files(
        self, key: str, spec: ModelSpec, then: Callable[[ModelFiles | GuardedLLMError], None]
    ) -> None:
        """Call `then` with the verified files; one fetch serves all who ask meanwhile."""
        if self._in_memory(key):
            then(self._files[key])
            return
        waiting = self._fetching.setdefault(key, [])
        waiting.append(then)
        if len(waiting) > 1:
            return

        def found(result: ModelFiles | GuardedLLMError) -> None:
            self.post(lambda: self._found(key, result))

        def progress(step: Progress) -> None:
            self.post(lambda: self._moved(key, None, step))

        fetch(self._catalog, spec, self._offline, progress, found)

    def _found(self, key: str, result: ModelFiles | GuardedLLMError) -> None:
        for then in self._fetching.pop(key, ()):
            then(result)

    def _in_memory(self, key: str) -> bool:
        if self._guard is None:
            return False
        return any(m.name == key and (m.resident or m.load) for m in self._guard.models())

    def _know(self, key: str, files: ModelFiles) -> None:
        """Enter a model in the ledger.

        Raises:
            MemoryRefused: it cannot fit even alone.
        """
        assert self._ledger is not None
        if self._in_memory(key):
            return
        self._files[key] = files
        footprint = self._corrections.apply(files.fingerprint, predict(files))
        self._ledger.know_model(key, footprint)
        self._ledger.check_model(key)

    def _correct(self, measured: Measured) -> None:
        """Keep what was measured of a model, and count with it from now on."""
        if self._ledger is not None:
            files = self._files[measured.model]
            self._corrections.record(
                files.fingerprint,
                weight_bytes=measured.weight_bytes,
                peak_bytes=measured.peak_bytes,
            )
            footprint = self._corrections.apply(files.fingerprint, predict(files))
            self._ledger.know_model(measured.model, footprint)

    def _moved(self, key: str, request_id: str | None, progress: Progress) -> None:
        listeners: list[OnProgress | None] = [self._on_progress]
        if request_id is not None:
            request = self._requests.get(request_id)
            listeners.append(request.on_progress if request else None)
        else:
            listeners += [r.on_progress for r in self._requests.values() if r.key == key]
            listeners += [j.on_progress for j in self._jobs.values() if j.key == key]
        for listener in listeners:
            if listener is not None:
                try:
                    listener(progress)
                except Exception:
                    logger.exception("a progress callback failed")

    # ---- the record ---------------------------------------------------------------------------------

    def _emit(self, event: Event) -> None:
        if event.kind == "load.deferred" and event.model in self._files:
            self._warmer.warm(self._files[event.model])
        self._record.append(event)

    def _note(self, kind: Any, **details: Any) -> None:
        cause = details.pop("cause", "")
        self._emit(Event(kind=kind, time=time.monotonic(), cause=cause, details=details))


def _nothing() -> None:
    """The caller of a foreign function went away before it began."""
