"""The dispatcher: one thread that makes every decision of a backend.

Callers and the engine post to it and never wait for it. It asks the guard what may begin, and
carries out the answer. Because only this thread touches the guard and the ledger, no lock is
needed, and a KeyboardInterrupt, which strikes the main thread, leaves both intact.

A request goes through this file from top to bottom. The guard has its status:

1. `submit` refuses it, or tells the guard of it. FETCHING
2. `advance` finds the files of its model. PREPARING
3. `advance` sends it to the engine, which turns its prompt into tokens.
4. `_prepared` enters their number in the ledger. WAITING
5. `_begin` starts it, when the guard says so. RUNNING
6. `ended` gives its caller the answer. FINISHED

It may end in each of them: `cancel` asks the guard, which answers with `Stop` or `Fail`. After
the death of an engine, `died` sends the requests it had to step 3 again, with the tokens that
their callers already have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ..engine import protocol
from ..engine.protocol import (
    Broken,
    Cancel,
    Delta,
    Ended,
    FirstToken,
    JobEnded,
    LoadPrepared,
    Measured,
    Moved,
    Prepared,
    PrepareLoad,
    Ready,
    Report,
    Stopped,
)
from ..errors import (
    BackendClosed,
    EngineDied,
    GenerationFailed,
    GuardedLLMError,
    MemoryRefused,
)
from ..guard import (
    Action,
    Exclusive,
    Fail,
    Guard,
    GuardLimits,
    Load,
    Settle,
    Start,
    Status,
    Stop,
    Timing,
    Unload,
)
from ..holder import held_bytes
from ..logs import get_logger
from ..memory.ledger import Ledger
from ..models import Catalog, ModelFiles, ModelSpec
from ..models.spec import OnProgress, Progress
from ..record import Event, Record
from ..record.events import Kind
from ..worker.parent.death import Death, Died
from ..worker.parent.stderr_excerpt import stderr_excerpt
from .callbacks import Callbacks
from .claims import Claims
from .crashes import Crashes
from .health import Health
from .jobs import Job
from .listeners import Listeners
from .loop import Loop
from .model_info import ModelInfo, model_infos
from .model_registry import ModelRegistry
from .names import Names
from .outlook import Outlook
from .pending import Pending
from .programs import Claim, Programs
from .quarantine import Quarantine
from .request_status import RequestState, RequestStatus
from .requests import Request, TokensRequest
from .supervisor import Launcher, Supervisor

logger = get_logger("backend")

GIB = 1024**3
_STATES: Mapping[Status, RequestState] = {
    Status.FETCHING: "fetching",
    Status.PREPARING: "preparing",
    Status.WAITING: "waiting",
    Status.RUNNING: "running",
    Status.PAUSED: "paused",
    Status.STOPPING: "stopping",
    Status.INTERRUPTED: "interrupted",
}
# An engine has to prepare these; one that takes over from another has to do it again.
_TO_PREPARE = (Status.PREPARING, Status.WAITING, Status.INTERRUPTED)


class Dispatcher(Loop):
    """See the module. Everything except `post`, `call` and `join` runs on its thread.

    Args:
        limits: the guard's.
        launcher: starts engines.
        quarantine: which models may not be loaded.
        crashes: where deaths of the engine are written down.
        catalog: finds models.
        names: what callers call them.
        offline: never use the network.
        record: takes every event.
        on_progress: hears of every download, load and prefill.
        programs: where memory is claimed; None counts what this backend holds, and no more.
        name_others: refusals name the programs that hold the memory.

    Attributes:
        guard: knows the status of every request and job.
        ledger: None until an engine has worked for the first time.
    """

    def __init__(
        self,
        *,
        limits: GuardLimits,
        launcher: Launcher,
        quarantine: Quarantine,
        crashes: Crashes,
        catalog: Catalog,
        names: Names,
        offline: bool,
        record: Record,
        on_progress: OnProgress | None,
        programs: Programs | None,
        name_others: bool,
    ) -> None:
        super().__init__("mlx-guarded-dispatch")
        self._limits = limits
        self._record = record
        self.guard = self._new_guard()
        self.ledger: Ledger | None = None
        self.names = names
        self.registry = ModelRegistry(catalog, offline, self._report_fetch)
        self.supervisor = Supervisor(launcher, self._report)
        self.quarantine = quarantine
        self.crashes = crashes
        self._loads_tried_again: set[str] = set()  # jobs whose load ran out of memory once
        self._dead: GuardedLLMError | None = None  # nothing works any more, and why
        self._callbacks = Callbacks()
        self.listeners = Listeners(on_progress, self._callbacks.tell)
        self.pending = Pending(limits.max_queue + 8 * limits.max_active)
        self.outlook = Outlook(self.pending, self.registry, self.listeners)
        self.claims = Claims(programs, self.post, self._share)
        self._name_others = name_others
        self.start()

    # ---- a request, from its submission to its end --------------------------------

    def submit(self, request: Request) -> None:
        """Take a new request. Its `put` is called until it has its end.

        1. The backend is closed or broken, the model is not loaded any more because of what
           it did, or too much is under way: the request is refused.
        2. Otherwise the guard knows it from now on, and it advances.
        """
        request.key = self.names.key(request.spec)
        refusal = self._refusal or self._model_refusal(request.key) or self.pending.refusal(request)
        if refusal is not None:
            self._deliver(request, refusal)
            return
        self.pending.add(request)
        now = time.monotonic()
        self.guard.submit(
            now, request.id, request.key, expires=request.expires, priority=request.priority
        )
        self.advance(request)

    def advance(self, request: Request) -> None:
        """Take a request on as far as it can go now.

        Whatever a request waits for calls this when it comes. An exception in here ends this
        request, and no other.
        """
        self._for_request(request, lambda: self._advance(request))

    def _for_request(self, request: Request, work: Callable[[], None]) -> None:
        """Do something for a request, which alone ends if that raises."""
        try:
            work()
        except GuardedLLMError as error:
            self.cancel(request.id, error)
        except BaseException as error:
            self.request_failed(request, error)

    def _advance(self, request: Request) -> None:
        """See `advance`.

        1. The files of its model are not known: they are looked for, and `_fetched` goes on.
        2. An engine has it, or it needs none: there is nothing to do.
        3. No engine works: one starts, and `_on_ready` goes on.
        4. It is new, and the prompt or the model could never fit: it is refused.
        5. Otherwise the engine gets it, and `_prepared` goes on.
        """
        status = self.guard.status(request.id)
        if status is Status.FETCHING:
            request.files = request.files or self._files(request.key, request.spec)
            if request.files is None:
                return
            self.guard.fetched(request.id)
            status = Status.PREPARING
        if request.in_engine or status not in _TO_PREPARE:
            return
        if not self.supervisor.works():
            return
        assert request.files is not None
        if status is Status.PREPARING and not isinstance(request, TokensRequest):
            request.check(request.files)
            self._enter_model(request.key, request.files)
        request.in_engine = "preparing"
        self.supervisor.send(request.command(request.files))

    def _prepared(self, report: Prepared) -> None:
        """The engine has turned a prompt into tokens.

        1. The request has ended meanwhile: the engine forgets it.
        2. It was running in an engine that died, or it may run by now: it goes on.
        3. It is new: the ledger counts its tokens. When the memory is claimed, `_queue` goes on.
        """
        request = self.pending.by_engine_id.get(report.request_id)
        if request is None or self.ledger is None:
            return
        request.in_engine = "prepared"
        status = self.guard.status(request.id)
        if status in (Status.STOPPING, Status.FINISHED):
            self.supervisor.send(Cancel(request.engine_id))
        elif status.started:
            self.supervisor.send(protocol.Start(request.engine_id))
        elif status is Status.PREPARING:
            request.counted = True
            request.prompt_tokens, request.max_tokens = report.prompt_tokens, report.max_tokens
            self._know_ranks(report)
            try:
                tokens = report.prompt_tokens + report.max_tokens
                self.ledger.know_request(request.id, request.key, tokens)
            except GuardedLLMError as error:
                self.cancel(request.id, error)
            else:
                work = partial(self._queue, request)
                self.claims.after(partial(self._for_request, request, work))

    def _queue(self, request: Request) -> None:
        """The guard decides when a request begins."""
        counted = {"prompt_tokens": request.prompt_tokens}
        if request.tokens:
            counted["emitted"] = len(request.tokens)
        self.do(self.guard.prepared(time.monotonic(), request.id, **counted))

    def _begin(self, request: Request) -> None:
        request.started = request.started or time.monotonic()
        if request.in_engine == "prepared":  # otherwise `_prepared` starts it
            self.supervisor.send(protocol.Start(request.engine_id))

    def _first_token(self, report: FirstToken) -> None:
        self.supervisor.progressed = True
        request = self.pending.by_engine_id.get(report.request_id)
        if request is None or request.first_token is not None:
            return
        request.first_token = time.monotonic()
        self.guard.first_token(
            request.first_token,
            request.id,
            seconds=report.seconds,
            cached_tokens=report.cached_tokens,
        )

    def ended(self, report: Ended) -> None:
        """The engine is done with a request.

        1. Its batch ran out of memory for the first time: it goes on, see `_out_of_memory`.
        2. It was running: its caller gets the answer, or why there is none.
        3. Its token ids were asked for: its caller gets them.
        4. Its caller has its end already: its id is free now.
        5. Its prompt could not be prepared: it fails.
        """
        request = self.pending.by_engine_id.get(report.request_id)
        if request is None:
            return
        if report.out_of_memory:
            last = self._out_of_memory(request, report)
            if last is None:
                return
            report = last
        request.in_engine = ""
        now, status = time.monotonic(), self.guard.status(request.id)
        if status.started:
            self.pending.remove(request)
            timing, actions = self.guard.ended(
                now,
                request.id,
                error=report.error,
                cause=report.finish_reason or "",
                prefill=report.prefill,
                decode=report.decode,
                **report.counts,
            )
            self._deliver(request, request.answer(report, timing))
            self.do(actions)
        elif status is Status.PREPARING and report.value is not None:
            self.guard.answered(request.id)
            self.pending.remove(request)
            self._deliver(request, report.value)
        elif status is Status.FINISHED:
            self.pending.remove(request)
        else:
            self.do(self.guard.cancel(now, request.id, error=report.error))

    def cancel(self, request_id: str, error: GuardedLLMError | None = None) -> None:
        """End a request, whatever its status. An unknown or finished one is ignored."""
        self.do(self.guard.cancel(time.monotonic(), request_id, error=error))

    def _stop(self, action: Stop) -> None:
        """The guard wants a running request stopped."""
        request = self.pending.requests[action.request_id]
        self.supervisor.send(Cancel(request.engine_id))
        if action.error is not None:
            self._fail(request, action.error)

    def _failed(self, action: Fail) -> None:
        """A request that was not running has ended."""
        request = self.pending.requests.get(action.request_id)
        if request is None:
            return
        if request.in_engine:
            self.supervisor.send(Cancel(request.engine_id))
        if self.ledger is not None:
            self.ledger.forget_request(request.id, request.key)
        if action.error is None and request.tokens:  # cancelled while it was interrupted
            request.in_engine = ""
            self.pending.remove(request)
            self._deliver(request, request.answer(request.cut(), Timing()))
        else:
            self._fail(request, action.error)

    def request_failed(self, request: Request, error: BaseException) -> None:
        """Something raised while a request was handled. It ends; the others go on."""
        logger.error("request %s failed in the dispatcher", request.id, exc_info=error)
        unforeseen = _unforeseen(error)
        if self.pending.requests.get(request.id) is request:
            self.cancel(request.id, unforeseen)
        self._deliver(request, unforeseen)

    def _fail(self, request: Request, error: GuardedLLMError | None) -> None:
        """Give a caller an error. The engine may still have to stop the request."""
        if not request.in_engine:
            self.pending.remove(request)
        self._deliver(request, error or request.cancelled())

    def _deliver(self, request: Request, item: Any) -> None:
        """Give a caller its end, once."""
        self.listeners.stopped(request.key, request.id)
        if isinstance(item, GuardedLLMError):
            item = self.outlook.tell(self.guard, item, request)
        request.deliver(item)

    # ---- a job: a load, an unload or a user's function -----------------------------

    def submit_job(self, job: Job) -> None:
        """Take a new job. Its promise is settled when it has ended."""
        if job.spec is not None:
            job.key = self.names.key(job.spec)
        refusal = self._refusal
        if refusal is None and job.kind == "load":
            refusal = self._model_refusal(job.key)
        if refusal is not None:
            job.promise.fail(refusal)
            return
        self.pending.jobs[job.id] = job
        self._advance_job(job)

    def _advance_job(self, job: Job) -> None:
        """As `advance`."""
        self._for_job(job, lambda: self._ask_guard(job))

    def _for_job(self, job: Job, work: Callable[[], None]) -> None:
        """As `_for_request`."""
        try:
            work()
        except GuardedLLMError as error:
            job.promise.fail(error)
            self.cancel_job(job.id)
        except BaseException as error:
            self.job_failed(job, error)
            self.cancel_job(job.id)

    def _ask_guard(self, job: Job) -> None:
        """Have the guard queue a job.

        1. It has it already, or the engine prepares it: there is nothing to do.
        2. The files of the model to load are not known: `_fetched` goes on.
        3. No engine works: one starts, and `_on_ready` goes on.
        4. It is a load, and could never fit: it is refused.
        5. It is a load: the engine prepares it, and `_load_prepared` goes on.
        6. Otherwise the guard gets it.
        """
        if job.asked or job.in_engine:
            return
        if job.kind == "load":
            assert job.spec is not None
            job.files = job.files or self._files(job.key, job.spec)
            if job.files is None:
                return
        if not self.supervisor.works():
            return
        if job.files is not None:
            refusal = self._model_refusal(job.key)  # engines may have died while they prepared it
            if refusal is not None:
                raise refusal
            self._enter_model(job.key, job.files)
            job.in_engine = True
            self.supervisor.send(PrepareLoad(job.id, job.key, job.files))
            return
        job.asked = True
        now = time.monotonic()
        if job.kind == "unload":
            self.do(self.guard.ask_unload(now, job.id, job.key))
        else:
            self.do(self.guard.ask_run(now, job.id, job.key))

    def _load_prepared(self, report: LoadPrepared) -> None:
        """The engine has prepared a load, which can be queued when its memory is claimed."""
        if report.job_id is None:
            self._can_come_back(report)
            return
        job = self.pending.jobs.get(report.job_id)
        if job is None or not job.in_engine:
            return
        job.in_engine, job.asked = False, True

        def enter() -> None:
            assert self.ledger is not None
            if report.error is not None:
                raise report.error
            self._know_ranks(report)
            self.ledger.check_model(job.key)
            self.claims.after(partial(self._for_job, job, partial(self._ask_load, job)))

        self._for_job(job, enter)

    def _ask_load(self, job: Job) -> None:
        if self.pending.jobs.get(job.id) is job:
            self.do(self.guard.ask_load(time.monotonic(), job.id, job.key, pin=job.pin))

    def _run_job(self, action: Exclusive) -> None:
        """The guard says that a job begins."""
        name, paused = action.job_id, bool(action.paused)
        command: protocol.Command
        if isinstance(action, Load):
            files = self.registry.files[action.model]
            command = protocol.Load(name, action.model, files, action.evict, paused)
        elif isinstance(action, Unload):
            command = protocol.Unload(name, action.model, paused)
        else:
            job = self.pending.jobs.get(name)
            fn = job.fn if job is not None and job.fn is not None else _nothing
            command = protocol.Run(name, job.key if job else "", fn, paused)
        self.supervisor.send(command)

    def _job_ended(self, report: JobEnded) -> None:
        """The engine is done with a job."""
        self.listeners.load_stopped()
        job = self.pending.jobs.get(report.job_id)
        again = self._load_again(report)
        if job is not None and not again:
            job.value = report.value
            job.error = report.error
        error = report.error
        if error is None:
            self.supervisor.progressed = True
        elif not isinstance(error, GuardedLLMError):
            error = GuardedLLMError(f"{type(error).__name__}: {error}")
        self.do(
            self.guard.job_ended(
                time.monotonic(),
                report.job_id,
                error=error,
                left=report.left,
                again=again,
                **report.details,
            )
        )

    def _settle(self, action: Settle) -> None:
        """The guard says that a job is over for whoever waits for it."""
        job = self.pending.jobs.pop(action.job_id, None)
        if job is None:
            return
        if job.kind == "load" and action.error is None:
            if job.declares and job.spec is not None:
                self.names.declare(job.spec)
            name = self.names.shown(job.key)
            job.value = next((info for info in self.models() if info.name == name), None)
        job.settle(action.error, ran=action.ran)

    def cancel_job(self, job_id: str) -> None:
        """Whoever waited for a job no longer does."""
        if self.pending.jobs.pop(job_id, None) is not None:
            self.do(self.guard.cancel_job(time.monotonic(), job_id))

    def job_failed(self, job: Job, error: BaseException) -> None:
        """Something raised while a job was handled. Its caller is told; the others go on."""
        logger.error("a %s of %s failed in the dispatcher", job.kind, job.key, exc_info=error)
        job.promise.fail(_unforeseen(error))

    # ---- models --------------------------------------------------------------------

    def _files(self, key: str, spec: ModelSpec) -> ModelFiles | None:
        """The verified files of a model; None while they are being found."""
        if self.guard.has(key):
            return self.registry.files[key]
        self.registry.find(key, spec)
        return None

    def _report_fetch(self, key: str, news: Progress | ModelFiles | GuardedLLMError) -> None:
        """From any thread."""
        if isinstance(news, Progress):
            self.post(lambda: self.listeners.moved(key, news, self.pending.listeners(key)))
        else:
            self.post(lambda: self._fetched(key, news))

    def _fetched(self, key: str, found: ModelFiles | GuardedLLMError) -> None:
        """Everybody who waits for the files of a model goes on, or ends."""
        self.registry.found(key)
        self.listeners.stopped(key)
        for request in list(self.pending.requests.values()):
            if request.key != key or self.guard.status(request.id) is not Status.FETCHING:
                continue
            if isinstance(found, GuardedLLMError):
                self.cancel(request.id, found)
            else:
                request.files = found
                self.advance(request)
        for job in list(self.pending.jobs.values()):
            if job.kind != "load" or job.key != key or job.files is not None:
                continue
            if isinstance(found, GuardedLLMError):
                job.promise.fail(found)
                self.cancel_job(job.id)
            else:
                job.files = found
                self._advance_job(job)

    def _enter_model(self, key: str, files: ModelFiles) -> None:
        """Enter a model in the ledger.

        Raises:
            MemoryRefused: it cannot fit even alone.
        """
        assert self.ledger is not None
        if not self.guard.has(key):
            self.registry.enter(key, files, self.ledger)

    def _know_ranks(self, report: Prepared | LoadPrepared) -> None:
        """What the ranks of a model that is spread may take, if it is."""
        if self.ledger is not None and report.rank_limit is not None:
            self.ledger.rank_limit = report.rank_limit

    def models(self) -> list[ModelInfo]:
        """Every model that is resident, wanted or quarantined, by name."""
        infos = model_infos(
            self.guard.models(),
            self.guard.stage,
            self.registry.files,
            self.ledger,
            time.monotonic(),
            self.quarantine,
        )
        named = [
            replace(info, name=self.names.shown(info.name), identity=self.names.identity(info.name))
            for info in infos
        ]
        return sorted(named, key=lambda info: info.name)

    def memory(self) -> tuple[int, int]:
        """Bytes promised to models and requests, and the budget."""
        if self.ledger is None:
            return 0, 0
        return self.ledger.used_bytes, self.ledger.budget_bytes

    def unpin(self, key: str) -> bool:
        """Let a model be evicted again. Returns whether it was pinned."""
        pinned = any(state.name == key and state.pinned for state in self.guard.models())
        self.do(self.guard.unpin(time.monotonic(), key))
        return pinned

    def forgive(self, key: str) -> bool:
        """Take a model out of quarantine. Returns whether it was in it."""
        forgiven = self.quarantine.forgive(key)
        if forgiven:
            self._note("model.forgiven", model=key)
        return forgiven

    # ---- what the guard decided, and what the engine reports -----------------------

    def do(self, actions: list[Action]) -> None:
        """Carry out what the guard decided."""
        for action in actions:
            if isinstance(action, Start):
                self._begin(self.pending.requests[action.request_id])
            elif isinstance(action, Stop):
                self._stop(action)
            elif isinstance(action, Fail):
                self._failed(action)
            elif isinstance(action, Settle):
                self._settle(action)
            else:
                self._run_job(action)

    def _report(self, report: Report | Died) -> None:
        """From any thread. Text goes straight to its caller: no decision depends on it."""
        if isinstance(report, Delta):
            self.pending.pass_on(report)
        else:
            self.post(lambda: self._take(report))

    def _take(self, report: Report | Died) -> None:
        if isinstance(report, Ended):
            self.ended(report)
        elif isinstance(report, FirstToken):
            self._first_token(report)
        elif isinstance(report, Prepared):
            self._prepared(report)
        elif isinstance(report, LoadPrepared):
            self._load_prepared(report)
        elif isinstance(report, JobEnded):
            self._job_ended(report)
        elif isinstance(report, Moved):
            self._moved(report)
        elif isinstance(report, Measured):
            if self.ledger is not None:
                self.registry.correct(report, self.ledger)
        elif isinstance(report, Ready):
            self._on_ready(report)
        elif isinstance(report, Died) and self._dead is None:
            self.died(report.death)
        elif isinstance(report, Broken):
            self._break(report.error)
        elif isinstance(report, (Stopped, Died)):
            self._note("engine.stopped")
            # It stops without being asked only when the interpreter exits.
            self._end_all(self._dead or BackendClosed("the engine has stopped."))
            self._stop_loop()

    def _moved(self, report: Moved) -> None:
        """A load or a prefill has come further."""
        if report.request_id is None:
            others = self.pending.listeners(report.model)
            self.listeners.moved(report.model, report.progress, others)
            return
        request = self.pending.by_engine_id.get(report.request_id)
        if request is not None and request.put is not None:
            self.listeners.moved(
                report.model, report.progress, [request.on_progress], request_id=request.id
            )

    def _on_ready(self, ready: Ready) -> None:
        """An engine works. The first one waits until it is known what other programs hold."""
        if self.ledger is not None:
            self._works(ready)
            return
        engine = self.supervisor.engine

        def then() -> None:
            if self.supervisor.engine is engine and self._dead is None:
                self._works(ready)

        device = str(ready.device.get("uuid") or ready.device["device"])
        self.claims.begin(partial(self._wanted, device), then)

    def _works(self, ready: Ready) -> None:
        """An engine works: everything that waited for one goes on."""
        self.supervisor.ready = ready
        self._note(
            "engine.started",
            device=ready.device.get("device_name"),
            budget=ready.limits.budget_bytes,
            wired=ready.wired_bytes,
            wirable=ready.device.get("max_recommended_working_set_size") or 0,
            **self.supervisor.details,
        )
        if self.ledger is None:
            limits = ready.limits
            held = held_bytes(self.claims.others)
            self.ledger = Ledger(
                limits.budget_bytes + int(limits.share_of_free * held),
                prefix_cache_bytes=limits.prefix_cache_bytes,
                prefill_tokens=limits.prefill_step_size,
            )
            self.claims.budget = self.ledger.budget_bytes
            self._share()
        # The engine prepares them in this order: interrupted answers go on first.
        rank = {Status.INTERRUPTED: 0, Status.WAITING: 1}
        requests = self.pending.requests.values()
        for request in sorted(requests, key=lambda r: rank.get(self.guard.status(r.id), 2)):
            self.advance(request)
        for key in self.guard.held():
            self.supervisor.send(PrepareLoad(None, key, self.registry.files[key]))
        self.do(self.guard.back(time.monotonic(), self.ledger))
        for job in list(self.pending.jobs.values()):
            self._advance_job(job)

    # ---- memory that other programs hold -------------------------------------------

    def _wanted(self, device: str) -> Claim:
        """What is to be claimed for all that is in memory or wanted."""
        if self.ledger is None:
            return Claim(device=device, bytes=0, models={})
        models = {state.name for state in self.guard.models()}
        models |= {job.key for job in self.pending.jobs.values() if job.kind == "load"}
        size, held = self.ledger.wanted(models, self._limits.max_active)
        named = {self.names.shown(key): held[key] for key in held}
        return Claim(device=device, bytes=size, models=named)

    def _share(self) -> None:
        """Others hold more or less than before: something may begin, or has to leave."""
        if self.ledger is None:
            return
        others = self.claims.others
        held = held_bytes(others)
        self.ledger.share(held, others if self._name_others else ())
        self.do(self.guard.tick(time.monotonic()))

    # ---- the death of an engine ----------------------------------------------------
    # Nothing of an engine survives it except what this process knows: the requests, and the
    # tokens it has passed on. From there a request goes on in the next engine.

    def died(self, death: Death) -> None:
        """The engine's process is gone.

        1. Every request it had is interrupted, or waits to be prepared again.
        2. The model that was at work is counted against; it may be quarantined.
        3. So is a request that was being prepared; it may fail.
        4. After too many deaths in a row everybody fails, and only a new request starts
           another engine.
        """
        self._note(
            "engine.died",
            model=death.model or None,
            cause=death.text,
            pid=death.pid,
            code=death.code,
            how=death.cause,
            work=death.work,
            lived=death.lived,
            stderr=stderr_excerpt(death.stderr),
        )
        now = time.monotonic()  # what follows from the death comes after it in the record
        self.crashes.add(death)
        gave_up = self.supervisor.died(now, death)
        self.listeners.load_stopped()
        by_engine_id = self.pending.by_engine_id
        suspects = [by_engine_id[name] for name in death.preparing if name in by_engine_id]
        self._interrupt_all(now, death)
        self._hold_spread()
        self._blame_model(death, now)
        for request in suspects:
            error = request.preparing_killed(death)
            if error is not None:
                self.cancel(request.id, error)
        if gave_up is not None:
            self._note("engine.failed", cause=str(gave_up))
            self.do(self.guard.end_all(time.monotonic(), gave_up))
            self._deliver_all(gave_up)

    def _interrupt_all(self, now: float, death: Death) -> None:
        """Take every request out of the engine."""
        requests = list(self.pending.requests.values())
        for request in requests:
            request.in_engine = ""
        for job in self.pending.jobs.values():
            job.in_engine = False
        emitted = {request.id: len(request.tokens) for request in requests if request.tokens}
        self.do(self.guard.lost(now, death.text, emitted=emitted))
        for request in requests:
            status = self.guard.status(request.id)
            if status is Status.INTERRUPTED:
                request.resumed = True
            elif status is Status.FINISHED:  # only the engine still had it
                self.pending.remove(request)

    def _hold_spread(self) -> None:
        """Nobody waits for a machine that is away, except for its own models."""
        for state in self.guard.models():
            files = self.registry.files.get(state.name)
            if files is not None and files.hosts is not None:
                self.guard.hold(state.name)

    def _can_come_back(self, report: LoadPrepared) -> None:
        """The machines of a model are there again, or not."""
        self._know_ranks(report)
        now = time.monotonic()
        if report.error is not None:
            self.do(self.guard.refuse(now, report.model, report.error))
        self.do(self.guard.release(now, report.model))

    def _blame_model(self, death: Death, now: float) -> None:
        """Count a death against the model that was at work."""
        key = death.model
        if self.quarantine.blame(now, key, death):
            error = self.quarantine.error(key)
            assert error is not None
            self._note("model.quarantined", model=key, cause=error.message)
        refusal = self._model_refusal(key)
        if refusal is not None:
            self.do(self.guard.refuse(now, key, refusal))

    def _model_refusal(self, key: str) -> GuardedLLMError | None:
        """Why a model is not loaded any more after what it did, or None."""
        if self.quarantine.refuses(time.monotonic(), key):
            return self._no_memory(key, None, "the kernel ended its process")
        return self.quarantine.error(key)

    # ---- running out of memory -----------------------------------------------------

    def _out_of_memory(self, request: Request, ended: Ended) -> Ended | None:
        """The batch of a request ran out of memory.

        The first time all idle models are evicted and the request goes on.

        Returns:
            The end of the request, or None when it goes on.
        """
        cause = "out of memory"
        if self.guard.status(request.id) not in (Status.RUNNING, Status.PAUSED):
            return ended
        if request.made_room:
            tokens = request.prompt_tokens + len(request.tokens)
            error = self._no_memory(request.key, tokens, str(ended.error))
            return replace(ended, error=error)
        now = time.monotonic()
        request.made_room = request.resumed = True
        request.in_engine = ""
        self.do(self.guard.evict_idle(now, cause))
        emitted = len(request.tokens)
        actions = self.guard.interrupted(now, request.id, cause, emitted=emitted)
        self.advance(request)
        self.do(actions)
        return None

    def _load_again(self, ended: JobEnded) -> bool:
        """Whether a load that ran out of memory is tried again, once, without idle models."""
        again = ended.out_of_memory and ended.job_id not in self._loads_tried_again
        if again and self.guard.idle():
            self._loads_tried_again.add(ended.job_id)
            self.do(self.guard.evict_idle(time.monotonic(), "out of memory"))
            return True
        self._loads_tried_again.discard(ended.job_id)
        return False

    def _no_memory(self, key: str, tokens: int | None, cause: str) -> MemoryRefused:
        ledger = self.ledger
        needed = ledger.needed_bytes(key, tokens) if ledger is not None else 0
        budget = ledger.budget_bytes if ledger is not None else 0
        return MemoryRefused(
            f"{key} ran out of memory twice, the second time without any idle model beside it "
            f"({cause}); it was expected to take {needed / GIB:.2f} GiB of {budget / GIB:.2f}.",
            needed_bytes=needed,
            budget_bytes=budget,
            hint="Lower memory_budget, max_tokens or max_active, or take a smaller model.",
        )

    # ---- the end of everything -----------------------------------------------------

    @property
    def _refusal(self) -> GuardedLLMError | None:
        """Why nothing new is taken, or None."""
        if self._dead is not None or self._running:
            return self._dead
        return BackendClosed("the backend is closed.")

    def close(self) -> None:
        """Take nothing more, end everything, and have the engine drop its models."""
        error = BackendClosed("the backend was closed.")
        self.registry.close()
        try:
            self.do(self.guard.close(time.monotonic(), error))
        finally:
            self._end_all(self._dead or error)
            self._callbacks.close()
            if not self.supervisor.close():
                self._stop_loop()

    def _stop_loop(self) -> None:
        """There is no engine any more, and never will be."""
        self.claims.close()
        self._running = False

    def _break(self, error: GuardedLLMError) -> None:
        """Nothing works any more: everything ends, and nothing new is taken."""
        if self._dead is None:
            self._note("engine.failed", cause=str(error))
            self._end_all(error)
            if not self.supervisor.close():
                self.claims.close()

    def _end_all(self, error: GuardedLLMError) -> None:
        self._dead = error
        self._deliver_all(error)
        self.guard = self._new_guard()  # to what comes late, everything has ended

    def _deliver_all(self, error: GuardedLLMError) -> None:
        """Give everybody this error, and forget them."""
        for request in list(self.pending.requests.values()):
            self._deliver(request, error)
            self.pending.remove(request)
        for job in list(self.pending.jobs.values()):
            job.promise.fail(error)
        self.pending.jobs.clear()
        self.listeners.all_stopped()

    # ---- the loop's clock, and its failures ------------------------------------------

    def deadline(self) -> float | None:
        """See `Loop.deadline`."""
        dues = [self.guard.next_deadline(), self.supervisor.deadline()]
        if self._dead is None:  # otherwise the claims are held until the engine has stopped
            dues.append(self.claims.deadline())
        return min((due for due in dues if due is not None), default=None)

    def tick(self, now: float) -> None:
        """See `Loop.tick`."""
        due = self.guard.next_deadline()
        if due is not None and due <= now:
            self.do(self.guard.tick(now))
        self.supervisor.tick(now)
        if self._dead is None:
            self.claims.tick(now)

    def failed(self, error: BaseException) -> None:
        """See `Loop.failed`."""
        self._break(EngineDied(f"the dispatcher failed ({type(error).__name__}: {error})."))

    # ---- health, and what is expected ------------------------------------------------

    def health(self) -> Health:
        """See `Backend.health`."""
        now, ledger = time.monotonic(), self.ledger
        waiting, oldest = self.guard.waiting(now)
        if self._dead is None:
            self.claims.look()
        return Health(
            engine="failed" if self._dead is not None else self.supervisor.state,
            stalled=self.supervisor.stalled,
            running=self.guard.running(),
            waiting=waiting,
            oldest_waiting=oldest,
            full=self.guard.full(),
            room=self.outlook.room(self.guard) if self.guard.full() else 0.0,
            memory_bytes=ledger.used_bytes if ledger is not None else 0,
            budget_bytes=ledger.budget_bytes if ledger is not None else 0,
            held_by=self.claims.others,
            tokens={r.id: len(r.tokens) for r in self.pending.requests.values() if r.tokens},
        )

    def expected_wait(self, request_id: str) -> float | None:
        """See `Backend.expected_wait`."""
        return self.outlook.wait(self.guard, request_id)

    def status(self, request_id: str) -> RequestStatus | None:
        """See `Backend.status`. It is without words, which the record has."""
        request = self.pending.find(request_id)
        status = None if request is None else self._status(request)
        if request is None or status is None:
            return None
        return replace(status, expected_wait=self.outlook.wait(self.guard, request.id))

    def requests(self) -> list[RequestStatus]:
        """See `Backend.requests`. They are without words."""
        found = map(self._status, self.pending.requests.values())
        return [status for status in found if status is not None]

    def _status(self, request: Request) -> RequestStatus | None:
        state = _STATES.get(self.guard.status(request.id))
        if state is None:
            return None
        return RequestStatus(
            request_id=request.id,
            model=self.names.shown(request.key) if request.key else request.name,
            state=state,
            tokens=len(request.tokens),
            resumed=request.resumed,
        )

    # ---- the record ------------------------------------------------------------------

    def _new_guard(self) -> Guard:
        return Guard(self._limits, emit=self._emit, lost=True)

    def _emit(self, event: Event) -> None:
        if event.kind == "load.deferred" and event.model is not None:
            self.registry.warm(event.model)
        self._keep(event)

    def _note(self, kind: Kind, *, model: str | None = None, cause: str = "", **more: Any) -> None:
        self._keep(Event(kind=kind, time=time.monotonic(), model=model, cause=cause, details=more))

    def _keep(self, event: Event) -> None:
        self.outlook.speeds.learn(event)
        self._record.append(event)


def _nothing() -> None:
    """The caller of a function went away before it began."""


def _unforeseen(error: BaseException) -> GenerationFailed:
    return GenerationFailed(
        f"it failed in the dispatcher ({type(error).__name__}: {error}).",
        hint="Nobody else is concerned; the same call can be made again.",
    )
