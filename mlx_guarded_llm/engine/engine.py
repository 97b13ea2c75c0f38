"""The engine: every MLX operation of a backend, done on the MLX thread.

It carries out commands and has no policy of its own. `send` takes commands from any thread;
their results go to `emit`, which must not block. The engine checks the invariant itself,
independently of its caller: it refuses exclusive work while generations are unfinished, unless
the command says that they are paused, and then nothing is in flight.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..back_end import import_hint
from ..errors import (
    BackendClosed,
    EngineDied,
    GenerationFailed,
    GuardedLLMError,
    MemoryRefused,
    RequestCancelled,
)
from ..logs import get_logger
from ..models.spec import Progress
from .importing import import_residents, shadows, working_folder_gone
from .observer import Observer, Observers, Work
from .output.embedding import Embedding, PreparedTexts
from .output.generation import Generation
from .prompt.prepare import Preparer
from .protocol import (
    Broken,
    Cancel,
    Command,
    Ended,
    EngineOptions,
    JobEnded,
    Load,
    Measured,
    Moved,
    PrepareLoad,
    Preparing,
    Ready,
    Report,
    Run,
    Start,
    Stopped,
    Unload,
)
from .ranks.ranks import Ranks, no_ranks
from .thread import MLXThread, mlx_thread
from .user_function import call_user_function

logger = get_logger("engine")

# Requests that arrive together should be prefilled together. So an engine that was idle, or has
# just loaded a model, waits up to `_GATHER` seconds for requests that are about to start, and
# looks for them every `_LOOK` seconds.
_GATHER = 0.05
_LOOK = 0.0005
_NOT_THERE = (ImportError, SystemExit)  # a module may call sys.exit() when it is imported
_DOCTOR = "`mlx-guarded doctor` may tell more."
_NETWORKS = ("[ring]", "[jaccl]")  # in MLX's errors about the other ranks
_NOTICED = 3.0  # seconds in which it is noticed that the process of another rank has ended
_HURRY = 2  # extra steps of a model that is about to produce the first token of an answer


class Engine:
    """Runs models on the MLX thread of this process.

    Args:
        emit: takes each report, on any thread; it must not raise.
        options: see `EngineOptions`.
        observer: watches this engine only, in addition to the observer of the process.
        ranks: other processes with which it may share models; None if it has none.

    Raises:
        BackendClosed: in a process that was forked after MLX was used.
    """

    def __init__(
        self,
        emit: Callable[[Report], None],
        options: EngineOptions,
        observer: Observer | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._emit = emit
        self._ranks = ranks
        self._observers = Observers(observer)
        self._options = options
        self._thread: MLXThread = mlx_thread()
        self._residents: dict[str, Any] = {}  # Resident, in the order they are stepped
        self._generations: dict[str, Generation | Embedding] = {}
        self._closed = False
        self._gather_until = 0.0  # seconds of `time.monotonic()`
        self._preparer = Preparer(
            emit, self._observers, options.prepare_timeout, ranks.ready if ranks else no_ranks
        )
        self._thread.post(self._boot)

    def send(self, command: Command) -> None:
        """Carry out a command soon. Call it from any thread; it never blocks."""
        if isinstance(command, Preparing | PrepareLoad):
            self._preparer.put(command)
        else:
            if isinstance(command, Cancel):
                self._preparer.cancel(command.request_id)
            self._thread.post(lambda: self._handle(command))

    def close(self) -> None:
        """Stop everything and free all memory, soon. Call it from any thread."""
        self._preparer.close()
        self._thread.post(self.stop)  # answer: `Stopped`

    # ---- from here on: on the MLX thread only ------------------------------------

    def step(self) -> bool:
        """One step of each model that has generations. See `thread.Steppable`."""
        if self._gathers():
            time.sleep(_LOOK)
            return True
        try:
            for resident in tuple(self._residents.values()):
                if len(resident.decoder) and not self._closed:
                    self._step(resident)
                    # These steps compute one token; another model's step may take long.
                    for _ in range(_HURRY):
                        if resident.decoder.begins and not self._closed:
                            self._step(resident)
        except BaseException as error:  # even a SystemExit would end the thread silently
            self._die(error)
        return bool(self._generations)

    def generating(self) -> set[str]:
        """See `thread.Steppable`."""
        return {generation.model for generation in self._generations.values()}

    def stop(self) -> None:
        """End all generations and drop all models. See `thread.Steppable`."""
        self._thread.check()
        try:
            if not self._closed:
                self._closed = True
                self._fail(self._generations.values(), BackendClosed("the backend was closed."))
                with self._alone():
                    self._drop(tuple(self._residents))
        finally:
            self._thread.remove(self)
            self._emit(Stopped())

    def _boot(self) -> None:
        try:
            residents = import_residents()  # the first import of mlx and mlx_lm in this process
            device = residents.device()
            self._residency = residents.Residency(self._options, device, self._ranks)
        except BaseException as error:  # a module may call sys.exit() when it is imported
            self._closed = True
            if isinstance(error, GuardedLLMError):  # an option that does not suit the device
                unusable = EngineDied(error.message, hint=error.hint)
            else:
                unusable = EngineDied(
                    f"MLX cannot be used ({type(error).__name__}: {error}).", hint=_hint(error)
                )
            self._preparer.fail(unusable, self._emit)
            return
        self._thread.add(self)
        self._preparer.open()
        self._emit(Ready(device, self._residency.limits, self._residency.wired_bytes))

    def _handle(self, command: Command) -> None:
        self._thread.check()
        try:
            self._carry_out(command)
        except BaseException as error:  # as in `step`
            self._die(error)

    def _carry_out(self, command: Command) -> None:
        if self._closed:
            self._refuse(command, BackendClosed("the backend was closed."))
        elif isinstance(command, Start):
            self._start(command.request_id)
        elif isinstance(command, Cancel):
            self._cancel(command.request_id)
        elif isinstance(command, (Load, Unload, Run)):
            self._exclusive(command)

    def _refuse(self, command: Command, error: GuardedLLMError) -> None:
        if isinstance(command, Start):
            self._emit(Ended(request_id=command.request_id, error=error))
        elif isinstance(command, (Load, Unload, Run)):
            self._emit(JobEnded(job_id=command.job_id, error=error))

    # ---- generations -------------------------------------------------------------

    def _start(self, request_id: str) -> None:
        prepared = self._preparer.take(request_id)
        if prepared is None:
            cancelled = RequestCancelled(f"request {request_id} was cancelled.")
            self._emit(Ended(request_id=request_id, error=cancelled))
            return
        resident = self._residents.get(prepared.model)
        if resident is None:
            error = EngineDied(f"{prepared.model} was not resident when {request_id} started.")
            self._emit(Ended(request_id=request_id, error=error))
            return
        generation: Generation | Embedding
        if isinstance(prepared, PreparedTexts):
            generation = Embedding(prepared, time.monotonic(), self._emit)
        else:
            generation = Generation(prepared, time.monotonic(), self._emit)
        try:
            generation.cached_tokens = resident.decoder.insert(prepared.entry)
        except Exception as error:
            if resident.split:
                self._condemn(resident, error)
            else:
                self._emit(Ended(request_id=request_id, error=_failure(error)))
            return
        self._observers.generation_began(resident.name, request_id)
        if not self._generations:
            self._gather_until = time.monotonic() + _GATHER
        self._generations[request_id] = generation
        # The model of a new request is stepped first. A step of another model would leave one
        # more token in flight on the device, and the prompt would have to wait for it.
        self._residents = {resident.name: resident, **self._residents}

    def _gathers(self) -> bool:
        """Whether to wait with the first step for requests that are about to join."""
        waits = time.monotonic() < self._gather_until and self._preparer.busy
        if not waits:
            self._gather_until = 0.0
        return waits

    def _cancel(self, request_id: str) -> None:
        if self._preparer.take(request_id) is not None:
            cancelled = RequestCancelled(f"request {request_id} was cancelled.")
            self._emit(Ended(request_id=request_id, error=cancelled))
        generation = self._generations.get(request_id)
        if generation is not None:
            self._leave(generation)
            generation.finish("cancelled")

    def _step(self, resident: Any) -> None:
        with self._at("step", resident.name):
            try:
                beside = len(self._generations) > len(resident.decoder)
                updates = resident.step(beside=beside)
            except Exception as error:
                self._observers.computed()
                self._condemn(resident, error)
                return
            self._observers.computed()
            for update in updates:
                generation = self._generations.get(update.request_id)
                if generation is None:
                    continue  # it ended earlier in this very step
                if generation.take(update):
                    self._leave(generation)
        if self._closed:
            return
        if resident.peak_bytes > resident.reported_bytes * 1.05:
            resident.reported_bytes = resident.peak_bytes
            self._emit(Measured(resident.name, peak_bytes=resident.peak_bytes))

    def _leave(self, generation: Generation | Embedding) -> None:
        """Forget a generation, and remove it from its batch if it is still there."""
        request_id = generation.request_id
        del self._generations[request_id]
        resident = self._residents[generation.model]
        try:
            resident.decoder.remove(request_id)
        except Exception as error:
            self._condemn(resident, error)
        self._observers.generation_ended(request_id)

    def _condemn(self, resident: Any, error: Exception) -> None:
        """After an exception a batch cannot be trusted: fail its requests and build a new one.

        Where other ranks have a part of the model, nobody knows how far they have come.
        """
        if resident.split:
            self._observers.failed("step", resident.name)
            text = f"{type(error).__name__}: {error}"
            gone = self._is_loss(error)
            self._break(EngineDied(f"a step of several ranks failed ({text})."), lost=gone)
            return
        if self._residency.condemns_process(error):
            self._observers.failed("step", resident.name)
            self._break(
                EngineDied(
                    "MLX failed in a way after which its results cannot be trusted "
                    f"({type(error).__name__}: {error}).",
                    hint="Start the process again.",
                )
            )
            return
        lost = [g for g in self._generations.values() if g.model == resident.name]
        self._fail(lost, _failure(error), out_of_memory=self._residency.out_of_memory(error))
        error.__traceback__ = None  # its frames hold the batch
        resident.rebuild()
        gc.collect()  # the old batch's generators must end on this thread

    def _is_loss(self, error: Exception) -> bool:
        """Whether MLX says that it lost another rank. If its end was noticed, that was told."""
        lost = self._ranks is not None and any(name in str(error) for name in _NETWORKS)
        if lost and self._ranks is not None:
            self._ranks.await_loss(_NOTICED)
        return lost

    def _die(self, error: BaseException) -> None:
        """Something failed that never should. No engine is better than a wrong one."""
        logger.error("the engine failed", exc_info=error)
        self._break(EngineDied(f"the engine failed ({type(error).__name__}: {error})."))

    def _break(self, error: GuardedLLMError, *, lost: bool = False) -> None:
        for request_id in self._generations:
            self._observers.generation_ended(request_id)
        self._generations.clear()
        self._closed = True
        self._residents.clear()
        gc.collect()  # as in `_condemn`
        self._thread.remove(self)
        self._emit(Broken(error, lost=lost))

    def _fail(
        self,
        generations: Iterable[Generation | Embedding],
        error: GuardedLLMError,
        *,
        out_of_memory: bool = False,
    ) -> None:
        for generation in tuple(generations):
            del self._generations[generation.request_id]
            self._observers.generation_ended(generation.request_id)
            generation.fail(error, out_of_memory=out_of_memory)

    @contextmanager
    def _at(self, work: Work, model: str) -> Iterator[None]:
        """A piece of MLX work, as the observers see it."""
        try:
            self._observers.began(work, model)
            yield
        finally:
            self._observers.ended()

    # ---- exclusive work ----------------------------------------------------------

    def _exclusive(self, command: Load | Unload | Run) -> None:
        if self._generations and not command.paused:
            holders = ", ".join(self._generations)
            error = EngineDied(f"{command.job_id} was to begin while {holders} were running.")
            self._emit(JobEnded(job_id=command.job_id, error=error))
            return
        with self._alone():
            if isinstance(command, Load):
                self._load(command)
            elif isinstance(command, Unload):
                self._unload(command)
            else:
                self._run(command)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Pause every generation of the process, including those of other engines."""
        self._residency.synchronize()  # between two tokens mlx-lm has the next one in flight
        self._observers.paused(self._thread.generating())
        try:
            yield
        finally:
            self._observers.resumed()

    def _load(self, command: Load) -> None:
        began = time.monotonic()
        freed = self._drop(command.evict)
        tokenizers = self._preparer.tokenizers

        def progress(done: int, total: int) -> None:
            self._observers.went_on()
            self._emit(Moved(command.model, None, Progress("load", done, total)))

        with self._at("load", command.model):
            resident, error = self._residency.load(
                command.model,
                command.files,
                tokenizer=tokenizers.get,
                progress=progress,
                stop=lambda: self._thread.stopping,
            )
        if error is not None and self._is_loss(error):
            self._break(EngineDied(error.message), lost=True)  # the load is tried again
            return
        if resident is not None:
            self._residents[command.model] = resident
            self._gather_until = time.monotonic() + _GATHER
            self._emit(Measured(command.model, weight_bytes=resident.nbytes))
        else:
            self._preparer.release(command.model)
        details = {
            "seconds": time.monotonic() - began,
            "bytes": resident.nbytes if resident else 0,
            "freed": freed,
        }
        if resident is not None and resident.prefix_tokens is not None:
            details["prefix_tokens"] = resident.prefix_tokens
        if resident is not None and resident.undrafted:
            details["undrafted"] = resident.undrafted
        self._emit(
            JobEnded(
                job_id=command.job_id,
                error=error,
                out_of_memory=isinstance(error, MemoryRefused),
                left=command.evict,
                details=details,
            )
        )

    def _unload(self, command: Unload) -> None:
        freed = self._drop((command.model,))
        left = (command.model,)
        self._emit(JobEnded(job_id=command.job_id, left=left, details={"freed": freed}))

    def _run(self, command: Run) -> None:
        with self._at("run", command.label):
            value, error = call_user_function(command.fn)
            self._residency.synchronize()
        self._emit(JobEnded(job_id=command.job_id, value=value, error=error))

    def _drop(self, models: Iterable[str]) -> int:
        """Unload models. Returns the bytes freed."""
        freed = 0
        for model in models:
            with self._at("unload", model):
                resident = self._residents.pop(model, None)
                self._preparer.release(model)
                if resident is not None:
                    freed += self._residency.release(resident)
        return freed


def _hint(error: BaseException) -> str:
    """What the user can do when MLX cannot be imported."""
    if files := shadows():
        return f"{files[0]} is taken for an installed package: rename it."
    if working_folder_gone():
        return "The working folder has been removed: change to another one first."
    return import_hint() if isinstance(error, _NOT_THERE) else _DOCTOR


def _failure(error: Exception) -> GuardedLLMError:
    return GenerationFailed(
        f"the generation failed in MLX ({type(error).__name__}: {error}).",
        hint="The batch was dropped and built anew; the same request can be sent again.",
    )
