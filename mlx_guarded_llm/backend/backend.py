"""The backend: what callers hold. It checks what they ask and posts it to the dispatcher."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..embed_request import EmbedRequest
from ..engine.protocol import EngineOptions
from ..errors import InvalidRequest, ModelError
from ..guard import GuardLimits, LoadDeadline
from ..json_values import shown
from ..logs import flush as flush_logs
from ..models import LOAD_OPTIONS, Catalog, ModelCard, OnProgress
from ..models.spec import Task
from ..params import SamplingParams
from ..record import Event, Record
from ..record.reason import RECENT, reason
from ..request import PromptRequest
from ..worker.pickling import pack
from ..writer import flush as flush_writes
from ..writer import write_soon
from .base import CLOSE_GRACE, HEALTH_PATIENCE, BaseBackend, GiveUp, inside
from .crashes import FILE, Crashes
from .dispatcher import Dispatcher
from .health import Health
from .jobs import Job
from .model_info import ModelInfo, Models
from .names import Names
from .options import (
    byte_size,
    callback,
    checked_priority,
    choice,
    count,
    label,
    seconds,
    sort_options,
    switch,
    tokens_prompt,
    wired_size,
)
from .programs import PROGRAMS, are_counted
from .quarantine import Quarantine
from .request_status import RequestStatus
from .requests import AnswerRequest, Request, TokensRequest, VectorsRequest
from .servable import ServableBackend
from .streams import Promise, Put
from .supervisor import Isolation, launcher

T = TypeVar("T")

LEAST_STALL = 2.0  # seconds; a worker shows life twice a second
_ids = itertools.count(1)


class Backend(ServableBackend):
    """Runs several MLX models without one hurting another, or the program.

    Loads wait for running generations (`load_wait`), and at that deadline generations
    pause at a token boundary instead of being lost. One thread owns MLX, so no two
    Metal operations overlap, whoever calls from wherever. It lives in a process of its
    own: when that dies, another one continues every answer where it stopped.

        from mlx_guarded_llm import Backend

        with Backend() as backend:
            result = backend.generate("smollm2-135m", "What is the capital of France?")
            print(result.text, result.guard.deferred)

    Args:
        isolation: where the engine runs: in a child process, or with "thread" in this
            one, which an abort of MLX then ends.
        load_wait: seconds a load waits for running generations before they pause.
        fairness_window: seconds during which a newcomer may pass a waiting load, and
            that generations get between two pauses.
        batch_wait: seconds by which an interactive request may come later than one with
            `priority="batch"` and still go before it.
        on_load_deadline: at `load_wait`, "pause" the generations and load, or "raise"
            `LoadDeferredTimeout`.
        memory_budget: bytes models may use, or text such as "12GB"; None takes what
            the device recommends (on a CPU, 60 % of the free RAM).
        keep_alive: seconds after which an idle model is unloaded; None keeps it until
            its memory is needed.
        max_queue: requests that may wait, beyond which `QueueFull` is raised.
        max_active: requests of one model decoded together.
        timeout: seconds a request may take in all, unless it says otherwise.
        prefix_cache: bytes, or text, for KV caches of prompts that begin alike; None
            takes 5 % of the budget, 0 keeps none.
        wired_memory: on Metal, bytes (or text) of the models' memory that macOS must leave in
            place, or "recommended" for as much as the device recommends; None leaves that alone.
        prefill_step_size: prompt tokens, or tokens of texts to embed, computed at once;
            of a prompt a quarter, while others wait for their next token.
        catalog: finds models by name; None makes the default one.
        offline: never use the network.
        on_progress: hears of every download, load and prefill, on another thread.
        record_size: events kept.
        stall_timeout: seconds without progress after which the engine's process counts as
            hung and is replaced, at least 2; longer for models that are known to be slow.
            A request whose preparation takes that long fails.
        quarantine_after: how often a model may make the engine die within ten minutes
            before it is refused (`ModelQuarantined`); None for no limit.
        spare_worker: keep a second process waiting, so that the next engine need not
            start Python and import MLX first; it takes about 100 MB.
        count_others: the budget is for all programs of this user together, each of which tells
            the others what it holds. False, or the variable MLX_GUARDED_COUNT_OTHERS=0, makes it
            this backend's alone, of which the others then know nothing.
        name_others: a refusal names the programs that hold the memory; False for a backend that
            answers to other people.

    `quarantine_after`, `spare_worker` and everything about a process of its own have no meaning
    with isolation="thread".

    Raises:
        InvalidRequest: an argument is wrong.
    """

    _hint_closed = "Make a new Backend()."
    _hint_forked = "Make a backend in the child, started with the 'spawn' method."

    def __init__(
        self,
        *,
        isolation: Isolation = "process",
        load_wait: float = 120.0,
        fairness_window: float = 5.0,
        batch_wait: float = 30.0,
        on_load_deadline: LoadDeadline = "pause",
        memory_budget: int | str | None = None,
        keep_alive: float | None = None,
        max_queue: int = 1024,
        max_active: int = 32,
        timeout: float = 3600.0,
        prefix_cache: int | str | None = None,
        wired_memory: int | str | None = None,
        prefill_step_size: int | None = None,
        catalog: Catalog | None = None,
        offline: bool = False,
        on_progress: OnProgress | None = None,
        record_size: int = 100_000,
        stall_timeout: float = 60.0,
        quarantine_after: int | None = 3,
        spare_worker: bool = False,
        count_others: bool = True,
        name_others: bool = True,
    ) -> None:
        choice("isolation", isolation, ("process", "thread"))
        choice("on_load_deadline", on_load_deadline, ("pause", "raise"))
        self.isolation = isolation
        self.timeout = seconds("timeout", timeout)
        if not isinstance(catalog, Catalog | None):
            raise InvalidRequest(f"catalog is {shown(catalog)}; it must be a Catalog, or None.")
        self._catalog = catalog or Catalog()
        self._names = Names(self._catalog)
        self._record = Record(count("record_size", record_size))
        self._owner = os.getpid()
        patience = seconds("stall_timeout", stall_timeout, LEAST_STALL)
        options = EngineOptions(
            max_active=count("max_active", max_active),
            prepare_timeout=patience,
            memory_budget=None
            if memory_budget is None
            else byte_size("memory_budget", memory_budget, 1),
            prefill_step_size=None
            if prefill_step_size is None
            else count("prefill_step_size", prefill_step_size),
            prefix_cache_bytes=None
            if prefix_cache is None
            else byte_size("prefix_cache", prefix_cache, 0),
            wired_memory=wired_size(wired_memory),
        )
        self._dispatcher = Dispatcher(
            limits=GuardLimits(
                load_wait=seconds("load_wait", load_wait),
                fairness_window=seconds("fairness_window", fairness_window),
                batch_wait=seconds("batch_wait", batch_wait),
                on_load_deadline=on_load_deadline,
                max_queue=count("max_queue", max_queue),
                max_active=count("max_active", max_active),
                keep_alive=None if keep_alive is None else seconds("keep_alive", keep_alive),
            ),
            launcher=launcher(
                isolation,
                options,
                stall_timeout=patience,
                spare=switch("spare_worker", spare_worker),
            ),
            quarantine=Quarantine(
                None if quarantine_after is None else count("quarantine_after", quarantine_after)
            ),
            crashes=Crashes(self._catalog.cache_dir / FILE, write_soon),
            catalog=self._catalog,
            names=self._names,
            offline=switch("offline", offline),
            record=self._record,
            on_progress=callback("on_progress", on_progress),
            programs=PROGRAMS if switch("count_others", count_others) and are_counted() else None,
            name_others=switch("name_others", name_others),
        )
        self._closed = False

    # ---- generating --------------------------------------------------------------

    def cancel(self, request_id: str) -> None:
        """See `BaseBackend.cancel`."""
        name = label("request_id", request_id)
        self._dispatcher.post(lambda: self._dispatcher.cancel(name))

    # ---- texts ------------------------------------------------------------------

    def full_name(self, model: str | Path, **options: Any) -> str:
        """See `BaseBackend.full_name`."""
        return self._catalog.full_name(model, **options)

    def card(self, model: str | Path, **options: Any) -> ModelCard | None:
        """See `BaseBackend.card`."""
        try:
            return self._catalog.card_of(self._names.resolve(model, **options))
        except ModelError:
            return None

    def identity(self, model: str | Path, **options: Any) -> str:
        """See `ServableBackend.identity`."""
        return self._names.resolve(model, **options).identity

    def aliases(self) -> list[str]:
        """See `ServableBackend.aliases`."""
        return [*self._catalog.aliases()]

    # ---- models -----------------------------------------------------------------

    def models(self) -> list[ModelInfo]:
        """See `BaseBackend.models`."""
        return Models(self._query(self._dispatcher.models))

    def memory(self) -> tuple[int, int]:
        """See `BaseBackend.memory`."""
        used, budget = self._query(self._dispatcher.memory)
        return used, budget

    def unpin(self, model: str | Path, **options: Any) -> bool:
        """See `BaseBackend.unpin`."""
        to, key = self._dispatcher, self._names.key(self._names.resolve(model, **options))
        return bool(self._query(lambda: to.unpin(key)))

    def forgive(self, model: str | Path, **options: Any) -> bool:
        """See `BaseBackend.forgive`."""
        to = self._dispatcher
        keys = (self._names.key(self._names.resolve(model, **options)), str(model))
        return bool(self._query(lambda: any(to.forgive(key) for key in keys)))

    # ---- elsewhere ---------------------------------------------------------------

    @staticmethod
    def connect(url: str, *, key: str | None = None, timeout: float = 3600.0) -> BaseBackend:
        """A backend whose models a server runs; see `RemoteBackend`.

            backend = Backend.connect("http://127.0.0.1:8080")
            print(backend.generate("smollm2-135m", "What is the capital of France?").text)

        Args:
            url: "http://host:port", or "unix:///path" for a Unix socket.
            key: of the server, if it needs one; None takes the variable MLX_GUARDED_KEY.
            timeout: seconds a request may take in all, unless it says otherwise.

        Raises:
            InvalidRequest: the address is none, or the server refuses the key.
            ServerUnavailable: no server answers there.
        """
        try:
            from .remote.backend import RemoteBackend
        except ImportError as error:
            raise InvalidRequest(
                f"a server cannot be asked here ({error}).",
                hint="Run `pip install 'mlx-guarded-llm[remote]'`.",
            ) from None
        return RemoteBackend(url, key=key or os.environ.get("MLX_GUARDED_KEY"), timeout=timeout)

    # ---- the record --------------------------------------------------------------

    def expected_wait(self, request_id: str) -> float | None:
        """See `BaseBackend.expected_wait`."""
        to, name = self._dispatcher, label("request_id", request_id)
        wait: float | None = self._query(lambda: to.expected_wait(name))
        return wait

    async def aexpected_wait(
        self, request_id: str, *, timeout: float = HEALTH_PATIENCE
    ) -> float | None:
        """See `BaseBackend.aexpected_wait`."""
        self._check_open()
        to, name = self._dispatcher, label("request_id", request_id)
        wait: float | None = await to.call(lambda: to.expected_wait(name)).wait_async(
            timeout, give_up=lambda: None
        )
        return wait

    def fingerprint(self, request_id: str) -> str:
        """See `BaseBackend.fingerprint`."""
        return self._dispatcher.pending.fingerprint(request_id)

    def status(self, request_id: str) -> RequestStatus | None:
        """See `BaseBackend.status`."""
        to, name = self._dispatcher, label("request_id", request_id)
        return self._worded(self._query(lambda: to.status(name)))

    async def astatus(
        self, request_id: str, *, timeout: float = HEALTH_PATIENCE
    ) -> RequestStatus | None:
        """See `BaseBackend.astatus`."""
        self._check_open()
        to, name = self._dispatcher, label("request_id", request_id)
        found = await to.call(lambda: to.status(name)).wait_async(timeout, give_up=lambda: None)
        return self._worded(found)

    def requests(self) -> list[RequestStatus]:
        """See `BaseBackend.requests`."""
        return [self._words(status) for status in self._query(self._dispatcher.requests)]

    @property
    def record(self) -> Record:
        """See `ServableBackend.record`."""
        return self._record

    def follow_progress(self, follower: OnProgress) -> Callable[[], None]:
        """See `ServableBackend.follow_progress`."""
        to = self._dispatcher
        to.post(lambda: to.listeners.follow(follower))
        return lambda: to.post(lambda: to.listeners.leave(follower))

    def events(self) -> tuple[Event, ...]:
        """See `BaseBackend.events`."""
        return self._record.events()

    @property
    def worker_pid(self) -> int | None:
        """See `BaseBackend.worker_pid`."""
        return self._dispatcher.supervisor.pid

    # ---- the end -----------------------------------------------------------------

    def close(self, *, timeout: float = CLOSE_GRACE) -> bool:
        """See `BaseBackend.close`."""
        if self._owner != os.getpid():  # a forked child: the engine and all threads stayed behind
            self._closed = True
            return False
        if not self._closed:
            self._closed = True
            self._dispatcher.post(self._dispatcher.close)
        if inside():
            return False
        stopped = self._dispatcher.join(timeout)
        flush_logs()
        flush_writes()
        PROGRAMS.flush()
        return stopped

    def __del__(self) -> None:
        # Posting is safe wherever the garbage collector runs; waiting would not be.
        if not getattr(self, "_closed", True) and self._owner == os.getpid():
            self._dispatcher.post(self._dispatcher.close)

    # ---- small things ------------------------------------------------------------

    def _submit(
        self,
        put: Put,
        model: str | Path,
        prompt: str | Sequence[Mapping[str, Any] | int],
        timeout: float | None,
        request_id: str | None,
        on_progress: OnProgress | None,
        options: dict[str, Any],
        *,
        emitted: Sequence[int] = (),
        fingerprint: str = "",
    ) -> str:
        given = sort_options(options)
        common = self._common(
            put, model, timeout, request_id, on_progress, task="generate", loading=given.loading
        )
        params = SamplingParams(**given.sampling)
        request = AnswerRequest(
            **common,
            prompt=PromptRequest(prompt, **given.prompting),
            params=params,
            seed=params.seed if params.seed is not None else int.from_bytes(os.urandom(6)),
            tokens=list(emitted),
            fingerprint=fingerprint,
            resumed=bool(emitted),
            **given.scheduling,
        )
        self._post(request)
        return request.id

    def _run(self, promise: Promise[Any], fn: Callable[[], Any], name: str) -> GiveUp:
        self._check_open()
        if not callable(fn):
            raise InvalidRequest(f"fn is {shown(fn)}; it must be a function without arguments.")
        key = label("label", name)
        sent = pack(fn) if self.isolation == "process" else fn
        return self._ask("run", promise, key=key, fn=sent)

    def _embed(
        self,
        put: Put,
        model: str | Path,
        texts: Sequence[str | Sequence[int]],
        truncate: bool,
        timeout: float | None,
        request_id: str | None,
        on_progress: OnProgress | None,
        options: dict[str, Any],
    ) -> str:
        first = checked_priority(options.pop("priority", None))
        common = self._common(
            put, model, timeout, request_id, on_progress, task="embed", loading=options
        )
        checked = EmbedRequest(texts=texts, truncate=truncate)
        request = VectorsRequest(**common, texts=checked, priority=first)
        self._post(request)
        return request.id

    def _tokens(
        self,
        put: Put,
        model: str | Path,
        prompt: str | Sequence[Mapping[str, Any] | int],
        special_tokens: bool,
        timeout: float | None,
        options: dict[str, Any],
    ) -> str:
        given, checked = tokens_prompt(prompt, special_tokens, options)
        common = self._common(put, model, timeout, loading=given.loading)
        request = TokensRequest(**common, prompt=checked)
        self._post(request)
        return request.id

    def _load(
        self,
        promise: Promise[ModelInfo],
        model: str | Path,
        pin: bool,
        on_progress: OnProgress | None,
        options: dict[str, Any],
    ) -> GiveUp:
        spec = self._names.resolve(model, **options)
        declares = any(options.get(name) is not None for name in LOAD_OPTIONS)
        return self._ask(
            "load",
            promise,
            spec=spec,
            declares=declares,
            pin=switch("pin", pin),
            on_progress=callback("on_progress", on_progress),
        )

    def _unload(self, promise: Promise[bool], model: str | Path, options: dict[str, Any]) -> GiveUp:
        spec = self._names.resolve(model, **options)
        self._names.retract(spec)
        return self._ask("unload", promise, spec=spec)

    def _common(
        self,
        put: Put,
        model: str | Path,
        timeout: float | None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        *,
        task: Task | None = None,
        loading: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Check what every request has, and return the fields of `Request`.

        Args:
            task: what the model is to do.
            loading: the options it is to be loaded with.
        """
        self._check_open()
        spec = self._names.resolve(model, task=task, **loading)
        return {
            "id": self._identity(request_id),
            "name": self._catalog.full_name(model, **loading),
            "spec": spec,
            "shown": self._names.shown,
            "put": put,
            "expires": time.monotonic() + self._timeout(timeout),
            "on_progress": callback("on_progress", on_progress),
        }

    def _post(self, request: Request) -> None:
        to = self._dispatcher
        to.post(lambda: to.submit(request), lambda error: to.request_failed(request, error))

    def _ask(
        self, kind: Literal["load", "unload", "run"], promise: Promise[Any], **fields: Any
    ) -> GiveUp:
        self._check_open()
        # The guard calls the jobs that nobody asked for "load-1" and so on.
        job = Job(id=new_id(f"asked-{kind}"), kind=kind, promise=promise, **fields)
        to = self._dispatcher
        to.post(lambda: to.submit_job(job), lambda error: to.job_failed(job, error))
        return lambda: to.post(lambda: to.cancel_job(job.id))

    def _health(self) -> Promise[Health]:
        return self._dispatcher.call(self._dispatcher.health)

    def _identity(self, request_id: str | None) -> str:
        return (request_id is not None and label("request_id", request_id)) or new_id("request")

    def _worded(self, status: RequestStatus | None) -> RequestStatus | None:
        return None if status is None else self._words(status)

    def _words(self, status: RequestStatus) -> RequestStatus:
        latest = self._record.latest_first(RECENT)
        return replace(status, words=reason(latest, status.request_id, status.model)[0])

    def _query(self, function: Callable[[], Any]) -> Any:
        self._check_open()
        return self._dispatcher.call(function).wait(CLOSE_GRACE, give_up=lambda: None)


def new_id(kind: str) -> str:
    """A name for a request or a job."""
    return f"{kind}-{next(_ids)}"
