"""The backend: what users hold. It checks what they ask and hands it to the dispatcher."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from ..engine.protocol import EngineOptions
from ..errors import InvalidRequest
from ..guard import LoadDeadline
from ..models import Catalog, OnProgress
from ..params import SamplingParams
from ..record import Event, Record, Timeline, explain, timeline, write_perfetto
from ..request import PromptRequest
from ..results import Result
from ..worker.parcel import pack, unpack
from .asking import inside, new_id
from .calls import AsyncStream, Gathered, Put, Stream
from .crashes import FILE, Crashes
from .dispatcher import Dispatcher
from .hosts import Isolation, hosts
from .options import byte_size, count, seconds, sort_options
from .quarantine import Quarantine
from .requests import AnswerRequest
from .text_calls import TextCalls
from .waiting import await_, wait
from .work import Job, ModelInfo

T = TypeVar("T")

CLOSE_GRACE = 60.0  # seconds; a slice of a load, or foreign work, may have to end first


class Backend(TextCalls):
    """Runs several MLX models without one hurting another, or the program.

    Loads wait for running generations (`load_wait`), and at that deadline generations
    pause at a token boundary instead of being lost. One thread owns MLX, so no two
    Metal operations overlap, whoever calls from wherever. It lives in a process of its
    own: when that dies, another one goes on with every answer where it stopped.

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
        prefill_step_size: prompt tokens, or tokens of texts to embed, computed at once;
            of a prompt a quarter, while others wait for their next token.
        catalog: finds models by name; None makes the default one.
        offline: never use the network.
        on_progress: told of every download, load and prefill, from another thread.
        record_size: events kept.
        stall_timeout: seconds without progress after which the engine's process is taken
            for hung and replaced; longer for models that are known to be slow.
        quarantine_after: how often a model may make the engine die within ten minutes
            before it is refused (`ModelQuarantined`); None for any number.
        spare_worker: keep a second process waiting, so that the next engine need not
            start Python and import MLX first; it takes about 100 MB.

    The last three have no meaning with isolation="thread".

    Raises:
        InvalidRequest: an argument is wrong.
    """

    def __init__(
        self,
        *,
        isolation: Isolation = "process",
        load_wait: float = 120.0,
        fairness_window: float = 5.0,
        on_load_deadline: LoadDeadline = "pause",
        memory_budget: int | str | None = None,
        keep_alive: float | None = None,
        max_queue: int = 1024,
        max_active: int = 32,
        timeout: float = 3600.0,
        prefix_cache: int | str | None = None,
        prefill_step_size: int | None = None,
        catalog: Catalog | None = None,
        offline: bool = False,
        on_progress: OnProgress | None = None,
        record_size: int = 100_000,
        stall_timeout: float = 60.0,
        quarantine_after: int | None = 3,
        spare_worker: bool = False,
    ) -> None:
        if isolation not in ("process", "thread"):
            raise InvalidRequest(f"isolation is {isolation!r}; it must be 'process' or 'thread'.")
        if on_load_deadline not in ("pause", "raise"):
            raise InvalidRequest(
                f"on_load_deadline is {on_load_deadline!r}; it must be 'pause' or 'raise'."
            )
        self.isolation = isolation
        self.timeout = seconds("timeout", timeout)
        self._catalog = catalog or Catalog()
        self._record = Record(count("record_size", record_size))
        self._owner = os.getpid()
        options = EngineOptions(
            max_active=max_active,
            memory_budget=None
            if memory_budget is None
            else byte_size("memory_budget", memory_budget, 1),
            prefill_step_size=None
            if prefill_step_size is None
            else count("prefill_step_size", prefill_step_size),
            prefix_cache_bytes=None
            if prefix_cache is None
            else byte_size("prefix_cache", prefix_cache, 0),
        )
        self._dispatcher = Dispatcher(
            guard={
                "load_wait": seconds("load_wait", load_wait),
                "fairness_window": seconds("fairness_window", fairness_window),
                "on_load_deadline": on_load_deadline,
                "max_queue": count("max_queue", max_queue),
                "max_active": count("max_active", max_active),
                "keep_alive": None if keep_alive is None else seconds("keep_alive", keep_alive),
            },
            hosts=hosts(
                isolation,
                options,
                stall_timeout=seconds("stall_timeout", stall_timeout),
                spare=spare_worker,
            ),
            quarantine=Quarantine(
                None if quarantine_after is None else count("quarantine_after", quarantine_after)
            ),
            crashes=Crashes(self._catalog.cache_dir / FILE),
            catalog=self._catalog,
            offline=offline,
            record=self._record,
            on_progress=on_progress,
        )
        self._closed = False

    # ---- generating --------------------------------------------------------------

    def generate(
        self,
        model: str,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> Result:
        """Answer a prompt.

        Args:
            model: alias, folder or Hugging Face repository.
            prompt: a string, which is one user message (or, for a model without a
                chat template and with `raw=True`, text to continue), or a list of
                OpenAI-style messages.
            timeout: seconds for everything, waiting and loading included.
            request_id: a name of your own for the record.
            on_progress: told of this request's download, load and prefill.
            **options: fields of `SamplingParams` (max_tokens, temperature, seed, stop
                and so on) and of `PromptRequest` (raw, tools, thinking and so on).

        Returns:
            The whole answer; `result.guard` tells where it came from and what it
            waited for.

        Raises:
            GuardedLLMError: see `mlx_guarded_llm.errors` for the kinds.
        """
        gathered = Gathered()
        identity = self._submit(
            gathered.put, model, prompt, timeout, request_id, on_progress, options
        )
        return wait(gathered.future, lambda: self.cancel(identity))

    def stream(
        self,
        model: str,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> Stream:
        """Answer a prompt piece by piece. Takes what `generate` takes.

        Returns:
            An iterator of `Chunk`s; the last one carries usage and guard. Leaving the
            loop early stops the generation.
        """
        identity = request_id or new_id("request")
        stream = Stream(identity, self.cancel)
        self._submit(stream.mail.put, model, prompt, timeout, identity, on_progress, options)
        return stream

    async def agenerate(
        self,
        model: str,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> Result:
        """As `generate`, without blocking the event loop. Cancelling the task cancels it."""
        gathered = Gathered()
        identity = self._submit(
            gathered.put, model, prompt, timeout, request_id, on_progress, options
        )
        return await await_(gathered.future, lambda: self.cancel(identity))

    def astream(
        self,
        model: str,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> AsyncStream:
        """As `stream`, for `async for`. Call it inside a running event loop."""
        identity = request_id or new_id("request")
        stream = AsyncStream(identity, self.cancel)
        self._submit(stream.mail.put, model, prompt, timeout, identity, on_progress, options)
        return stream

    # ---- models ------------------------------------------------------------------

    def load(
        self,
        model: str,
        *,
        pin: bool = False,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> ModelInfo:
        """Make a model resident, fetching it first when needed.

        Args:
            model: alias, folder or Hugging Face repository.
            pin: keep it from being evicted for another model.
            timeout: seconds to wait; the load itself may go on afterwards.
            on_progress: told of the download and the load.
            **options: revision, adapter_path, kv_bits, kv_group_size, context_window,
                task ("generate" or "embed").

        Raises:
            GuardedLLMError: see `mlx_guarded_llm.errors` for the kinds.
        """
        job = self._ask_load(model, pin, on_progress, options)
        info: ModelInfo = wait(job.future, lambda: self._drop_job(job), self._timeout(timeout))
        return info

    async def aload(
        self,
        model: str,
        *,
        pin: bool = False,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> ModelInfo:
        """As `load`, without blocking the event loop."""
        job = self._ask_load(model, pin, on_progress, options)
        info: ModelInfo = await await_(
            job.future, lambda: self._drop_job(job), self._timeout(timeout)
        )
        return info

    def unload(self, model: str, *, timeout: float | None = None, **options: Any) -> bool:
        """Give a model's memory back, when its requests have ended.

        Returns:
            Whether there was anything to unload.
        """
        job = self._ask("unload", spec=self._resolve(model, **options))
        return bool(wait(job.future, lambda: self._drop_job(job), self._timeout(timeout)))

    async def aunload(self, model: str, *, timeout: float | None = None, **options: Any) -> bool:
        """As `unload`, without blocking the event loop."""
        job = self._ask("unload", spec=self._resolve(model, **options))
        return bool(await await_(job.future, lambda: self._drop_job(job), self._timeout(timeout)))

    def models(self) -> list[ModelInfo]:
        """Every model that is resident or wanted, by name. The list shows itself as a table."""
        from ..display.tables import Models

        return Models(self._query(self._dispatcher.models))

    def memory(self) -> tuple[int, int]:
        """Bytes promised to models and requests, and the budget. (0, 0) before first use."""
        used, budget = self._query(self._dispatcher.memory)
        return used, budget

    def forgive(self, model: str, **options: Any) -> bool:
        """Let a quarantined model be loaded again.

        Args:
            model: as it was asked for, or the name by which the error and `models()` tell
                it from another of the same name.
            options: those it was asked for with.

        Returns:
            Whether it was quarantined.
        """
        to = self._dispatcher
        if not options and model in self._query(to.quarantine.held):
            return bool(self._query(lambda: to.forgive(model)))
        spec = self._resolve(model, **options)
        return bool(self._query(lambda: to.forgive(to.library.key(spec))))

    # ---- foreign work ------------------------------------------------------------

    def run(self, fn: Callable[[], T], *, label: str = "run", timeout: float | None = None) -> T:
        """Call `fn()` on the MLX thread, under the guard.

        For MLX code of your own: an embedding model, whisper, a notebook cell. Like a
        load it waits for running generations, up to `load_wait`, and then pauses them.

        Args:
            fn: takes nothing and returns plain values, no `mx.array`. It runs in the
                engine's process: what it changes there (globals, files it has open) stays
                there, and if that process dies it is not run again.
            label: its name in the record.
            timeout: seconds to wait; the function itself may go on afterwards.

        Returns:
            What `fn` returned.

        Raises:
            Exception: whatever `fn` raised.
            InvalidRequest: it, or what it returned, cannot be sent to the other process;
                or it returned an `mx.array`.
            EngineDied: the engine died meanwhile.
        """
        job = self._ask_run(fn, label)
        value: T = unpack(wait(job.future, lambda: self._drop_job(job), self._timeout(timeout)))
        return value

    async def arun(
        self, fn: Callable[[], T], *, label: str = "run", timeout: float | None = None
    ) -> T:
        """As `run`, without blocking the event loop."""
        job = self._ask_run(fn, label)
        patience = self._timeout(timeout)
        value: T = unpack(await await_(job.future, lambda: self._drop_job(job), patience))
        return value

    # ---- the record --------------------------------------------------------------

    def events(self) -> tuple[Event, ...]:
        """Every transition, oldest first."""
        return self._record.events()

    def explain(self, request_id: str) -> str:
        """One request's story, in words."""
        return explain(self.events(), request_id)

    def timeline(self) -> Timeline:
        """Who generated, waited and loaded when. Draws itself in a notebook."""
        return timeline(self.events())

    def write_trace(self, path: str | Path) -> Path:
        """Write the record in the Chrome trace format, for ui.perfetto.dev."""
        return write_perfetto(self.events(), path)

    @property
    def closed(self) -> bool:
        """It was closed, or is about to be."""
        return self._closed

    @property
    def worker_pid(self) -> int | None:
        """Process id of the engine's own process.

        None with isolation="thread", before first use, and between a death and a restart.
        """
        return self._dispatcher.machine.pid

    # ---- the end -----------------------------------------------------------------

    def close(self, *, timeout: float = CLOSE_GRACE) -> bool:
        """Stop everything, tell everybody who waits, and give the memory back.

        Args:
            timeout: seconds to wait for the engine, which may be in the middle of a
                slice of a load or of foreign work.

        Returns:
            Whether the engine has stopped; if not, it will when that work ends.
        """
        if not self._closed:
            self._closed = True
            self._dispatcher.post(self._dispatcher.close)
        return not inside() and self._dispatcher.join(timeout)

    async def aclose(self) -> bool:
        """As `close`, without blocking the event loop."""
        return await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # Posting is safe wherever the garbage collector runs; waiting would not be.
        if not getattr(self, "_closed", True) and self._owner == os.getpid():
            self._dispatcher.post(self._dispatcher.close)

    # ---- small things ------------------------------------------------------------

    def _submit(
        self,
        put: Put,
        model: str,
        prompt: str | Sequence[Mapping[str, Any]],
        timeout: float | None,
        request_id: str | None,
        on_progress: OnProgress | None,
        options: dict[str, Any],
    ) -> str:
        common = self._common(put, model, timeout, request_id, on_progress, task="generate")
        sampling, prompting = sort_options(options)
        params = SamplingParams(**sampling)
        request = AnswerRequest(
            **common,
            prompt=PromptRequest(prompt, **prompting),
            params=params,
            seed=params.seed if params.seed is not None else int.from_bytes(os.urandom(6)),
        )
        self._post(request)
        return request.id

    def _ask_load(
        self, model: str, pin: bool, on_progress: OnProgress | None, options: dict[str, Any]
    ) -> Job:
        spec = self._resolve(model, **options)
        return self._ask("load", spec=spec, pin=pin, on_progress=on_progress)

    def _ask_run(self, fn: Callable[[], Any], label: str) -> Job:
        self._check_open()
        return self._ask("run", key=label, fn=pack(fn) if self.isolation == "process" else fn)

    def _ask(self, kind: Literal["load", "unload", "run"], **fields: Any) -> Job:
        self._check_open()
        job = Job(id=new_id(kind), kind=kind, future=Future(), **fields)
        self._dispatcher.post(lambda: self._dispatcher.jobs.ask(job))
        return job

    def _drop_job(self, job: Job) -> None:
        self._dispatcher.post(lambda: self._dispatcher.jobs.cancel(job.id))

    def _query(self, function: Callable[[], Any]) -> Any:
        self._check_open()
        return self._dispatcher.call(function).result(CLOSE_GRACE)
