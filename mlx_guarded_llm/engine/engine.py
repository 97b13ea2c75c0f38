"""The engine: every MLX operation of a backend, done on the MLX thread.

It does what it is told and knows no policy. `send` takes commands from any thread;
what comes of them goes to `emit`, which must not block. Its own check of the invariant
is independent of whoever commands it: exclusive work beside unfinished generations is
refused unless the command says that they are paused, and then nothing is in flight.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..errors import (
    BackendClosed,
    EngineDied,
    GenerationFailed,
    GuardedLLMError,
    MemoryRefused,
    RequestCancelled,
)
from ..models.spec import Progress
from . import rail
from .embedding import Embedding, PreparedTexts
from .foreign import call_foreign
from .generation import Generation
from .prepare import Preparer
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
    Preparing,
    ReadTokenizer,
    Ready,
    Report,
    Run,
    Start,
    Stopped,
    Unload,
)
from .pulse import NoPulse, Pulse, Work
from .thread import MLXThread, mlx_thread

logger = logging.getLogger("mlx_guarded_llm.engine")

# Requests that come together are to be prefilled together: an engine that was idle, or has
# loaded a model, gives those that are about to start so many seconds, looking in between.
_GATHER = 0.05
_LOOK = 0.0005
_HURRY = 2  # further steps of a model, when they bring out the first token of an answer


class Engine:
    """Runs models on the MLX thread of this process.

    Args:
        emit: takes each report, from whatever thread; it must not raise.
        options: see `EngineOptions`.
        pulse: told of each piece of work before it begins.

    Raises:
        BackendClosed: in a process that was forked after MLX was used.
    """

    def __init__(
        self, emit: Callable[[Report], None], options: EngineOptions, pulse: Pulse | None = None
    ) -> None:
        self._emit = emit
        self._pulse: Pulse = pulse or NoPulse()
        self._options = options
        self._thread: MLXThread = mlx_thread()
        self._residents: dict[str, Any] = {}  # Resident, in the order they are stepped
        self._generations: dict[str, Generation | Embedding] = {}
        self._closed = False
        self._gather_until = 0.0  # seconds of `time.monotonic()`
        self._preparer = Preparer(self._thread, emit)
        self._thread.post(self._boot)

    def send(self, command: Command) -> None:
        """Carry out a command soon. From any thread; never blocks."""
        if isinstance(command, Preparing | ReadTokenizer):
            self._preparer.put(command)
        else:
            self._thread.post(lambda: self._handle(command))

    def close(self) -> None:
        """Stop everything and give all memory back, soon. From any thread."""
        self._preparer.close()
        self._thread.post(self.stop)  # answer: `Stopped`

    # ---- on the MLX thread only, from here on ------------------------------------

    def step(self) -> bool:
        """One step of each model that has generations. See `thread.Worker`."""
        if self._gathers():
            time.sleep(_LOOK)
            return True
        try:
            for resident in tuple(self._residents.values()):
                if len(resident.decoder) and not self._closed:
                    self._step(resident)
                    # Steps of one token, where another model's may be long.
                    for _ in range(_HURRY):
                        if resident.decoder.begins and not self._closed:
                            self._step(resident)
        except BaseException as error:  # a SystemExit too would end the thread in silence
            self._die(error)
        return bool(self._generations)

    def generating(self) -> set[str]:
        """See `thread.Worker`."""
        return {generation.model for generation in self._generations.values()}

    def stop(self) -> None:
        """End all generations and drop all models. See `thread.Worker`."""
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
            from . import residents  # the first import of mlx and mlx_lm in this process

            device = residents.device()
            self._residency = residents.Residency(self._options, device)
        except BaseException as error:  # some module may exit when it is imported
            self._closed = True
            self._preparer.fail(
                EngineDied(
                    f"MLX cannot be used ({type(error).__name__}: {error}).",
                    hint="On Linux install mlx-guarded-llm[cpu] or [cuda13]; see the README.",
                ),
                self._emit,
            )
            return
        self._thread.add(self)
        self._preparer.open()
        self._emit(Ready(device, self._residency.limits))

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
            generation.cached_tokens = resident.decoder.insert(prepared.job)
        except Exception as error:
            self._emit(Ended(request_id=request_id, error=_failure(error)))
            return
        rail.current().generation_began(resident.name, request_id)
        if not self._generations:
            self._gather_until = time.monotonic() + _GATHER
        self._generations[request_id] = generation
        # Whoever begins is stepped first: a step of another model leaves one more token of
        # it on the device, which the prompt would wait for.
        self._residents = {resident.name: resident, **self._residents}

    def _gathers(self) -> bool:
        """Whether the first step waits for requests that are about to join it."""
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
        try:
            with self._at("step", resident.name):
                beside = len(self._generations) > len(resident.decoder)
                updates = resident.step(beside=beside)
        except Exception as error:
            self._condemn(resident, error)
            return
        for update in updates:
            generation = self._generations.get(update.request_id)
            if generation is None:
                continue  # it ended earlier in this very step
            if generation.take(update):
                self._leave(generation)
        if resident.peak_bytes > resident.told_bytes * 1.05:
            resident.told_bytes = resident.peak_bytes
            self._emit(Measured(resident.name, peak_bytes=resident.peak_bytes))

    def _leave(self, generation: Generation | Embedding) -> None:
        """Forget a generation, and take it out of its batch if it still is there."""
        request_id = generation.request_id
        del self._generations[request_id]
        resident = self._residents[generation.model]
        try:
            resident.decoder.remove(request_id)
        except Exception as error:
            self._condemn(resident, error)
        rail.current().generation_ended(request_id)

    def _condemn(self, resident: Any, error: Exception) -> None:
        """After an exception a batch cannot be trusted: fail all in it, build a new one."""
        if self._residency.condemns_process(error):
            self._pulse.began("step", resident.name)  # the last note is what it dies of
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

    def _die(self, error: BaseException) -> None:
        """Something failed that should not: better no engine than a wrong one."""
        logger.error("the engine failed", exc_info=error)
        self._break(EngineDied(f"the engine failed ({type(error).__name__}: {error})."))

    def _break(self, error: GuardedLLMError) -> None:
        for request_id in self._generations:
            rail.current().generation_ended(request_id)
        self._generations.clear()
        self._closed = True
        self._residents.clear()
        gc.collect()  # as in `_condemn`
        self._thread.remove(self)
        self._emit(Broken(error))

    def _fail(
        self,
        generations: Iterable[Generation | Embedding],
        error: GuardedLLMError,
        *,
        out_of_memory: bool = False,
    ) -> None:
        for generation in tuple(generations):
            del self._generations[generation.request_id]
            rail.current().generation_ended(generation.request_id)
            generation.fail(error, out_of_memory=out_of_memory)

    @contextmanager
    def _at(self, work: Work, model: str) -> Iterator[None]:
        """A piece of MLX work, as rail and pulse are told of it."""
        watcher = rail.current()
        sections = {
            "step": watcher.step,
            "load": watcher.load,
            "unload": watcher.unload,
            "run": watcher.foreign,
        }
        self._pulse.began(work, model)
        try:
            with sections[work](model):
                yield
        finally:
            self._pulse.ended()

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
        """Meanwhile every generation of the process, of other engines too, stands still."""
        watcher = rail.current()
        self._residency.synchronize()  # between two tokens mlx-lm has the next one in flight
        watcher.paused(self._thread.generating())
        try:
            yield
        finally:
            watcher.resumed()

    def _load(self, command: Load) -> None:
        began = time.monotonic()
        freed = self._drop(command.evict)
        tokenizers = self._preparer.tokenizers

        def progress(done: int, total: int) -> None:
            self._pulse.went_on()
            self._emit(Moved(command.model, None, Progress("load", done, total)))

        with self._at("load", command.model):
            resident, error = self._residency.load(
                command.model,
                command.files,
                tokenizer=partial(tokenizers.get, command.model, command.files),
                progress=progress,
                stop=lambda: self._thread.stopping,
            )
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
            value, error = call_foreign(command.fn)
            self._residency.synchronize()
        self._emit(JobEnded(job_id=command.job_id, value=value, error=error))

    def _drop(self, models: Iterable[str]) -> int:
        """Unload models. Returns the bytes that came back."""
        freed = 0
        for model in models:
            with self._at("unload", model):
                resident = self._residents.pop(model, None)
                self._preparer.release(model)
                if resident is not None:
                    freed += self._residency.release(resident)
        return freed


def _failure(error: Exception) -> GuardedLLMError:
    return GenerationFailed(
        f"the generation failed in MLX ({type(error).__name__}: {error}).",
        hint="The batch was dropped and built anew; the same request can be sent again.",
    )
