"""What every backend can do, wherever its engine lives.

`Backend` runs models on this machine, `remote.RemoteBackend` asks a server. All that callers see
of either is here; what differs is how a request is checked and sent, and how it is answered. What
a server needs beside it of the backend behind it is in `servable`.
"""

from __future__ import annotations

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from ..errors import BackendClosed, InvalidRequest
from ..logs import THREAD_PREFIX
from ..models import ModelCard, OnProgress
from ..record import Event, Timeline, explain, timeline, write_perfetto
from ..results import Embeddings, Result
from ..worker.pickling import unpack
from .health import Health
from .model_info import ModelInfo
from .options import label, seconds
from .request_status import RequestStatus
from .streams import AsyncStream, GatheredAnswer, Promise, Put, Stream

T = TypeVar("T")
GiveUp = Callable[[], None]

CLOSE_GRACE = 60.0  # seconds; a slice of a load, or a user's function, may have to end first
HEALTH_PATIENCE = 5.0  # seconds


class BaseBackend(ABC):
    """The methods of a backend. All may be called from any thread.

    Attributes:
        timeout: seconds a request may take in all, unless it says otherwise.
    """

    timeout: float

    _hint_closed: ClassVar[str]
    _hint_forked: ClassVar[str]
    _owner: int  # the process that made it
    _closed: bool

    # ---- generating -----------------------------------------------------------

    def generate(
        self,
        model: str | Path,
        prompt: str | Sequence[Mapping[str, Any] | int],
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
                OpenAI-style messages; with `raw=True` also the ids of the model's tokens.
            timeout: seconds for everything, waiting and loading included.
            request_id: a name of your own for the record.
            on_progress: hears of this request's download, load and prefill.
            **options: fields of `SamplingParams` (max_tokens, temperature, seed, stop
                and so on) and of `PromptRequest` (raw, tools, thinking and so on), and
                what `load` takes, and `priority`: "interactive", or "batch" for what lets
                others go first (see `batch_wait`). None says nothing.

        Returns:
            The whole answer; `result.guard` tells where it came from and what it
            waited for.

        Raises:
            GuardedLLMError: see `mlx_guarded_llm.errors` for the kinds.
        """
        answer = GatheredAnswer()
        name = self._submit(answer.put, model, prompt, timeout, request_id, on_progress, options)
        return answer.wait(give_up=lambda: self.cancel(name))

    def stream(
        self,
        model: str | Path,
        prompt: str | Sequence[Mapping[str, Any] | int],
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
        name = self._identity(request_id)
        stream = Stream(name, self.cancel)
        self._submit(stream.mail.put, model, prompt, timeout, name, on_progress, options)
        return stream

    async def agenerate(
        self,
        model: str | Path,
        prompt: str | Sequence[Mapping[str, Any] | int],
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> Result:
        """As `generate`, without blocking the event loop. Cancelling the task cancels it."""
        answer = GatheredAnswer()
        name = self._submit(answer.put, model, prompt, timeout, request_id, on_progress, options)
        return await answer.wait_async(give_up=lambda: self.cancel(name))

    def astream(
        self,
        model: str | Path,
        prompt: str | Sequence[Mapping[str, Any] | int],
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> AsyncStream:
        """As `stream`, for `async for`. Call it inside a running event loop."""
        name = self._identity(request_id)
        stream = AsyncStream(name, self.cancel)
        self._submit(stream.mail.put, model, prompt, timeout, name, on_progress, options)
        return stream

    def aresume(
        self,
        model: str | Path,
        prompt: str | Sequence[Mapping[str, Any] | int],
        *,
        emitted: Sequence[int],
        fingerprint: str,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> AsyncStream:
        """As `astream`, for an answer that another backend has begun: gives the rest of it.

        Args:
            emitted: ids of the tokens that the caller has.
            fingerprint: of the model that they are of; see `fingerprint`.
            options: as there, with the seed.
        """
        name = self._identity(request_id)
        stream = AsyncStream(name, self.cancel)
        self._submit(
            stream.mail.put,
            model,
            prompt,
            timeout,
            name,
            on_progress,
            options,
            emitted=emitted,
            fingerprint=fingerprint,
        )
        return stream

    @abstractmethod
    def fingerprint(self, request_id: str) -> str:
        """Which model answers a request that is under way; see `Provenance`. Never blocks.

        Returns:
            "" if it has ended, or its model is being fetched.
        """

    @abstractmethod
    def cancel(self, request_id: str) -> None:
        """Stop a request at its next token, or before it starts. Never blocks.

        An answer that was running ends with finish reason "cancelled" and what it has;
        a request that was waiting, or for vectors, raises `RequestCancelled`. An unknown or
        finished one is ignored.
        """

    # ---- texts ----------------------------------------------------------------

    def embed(
        self,
        model: str | Path,
        texts: Sequence[str | Sequence[int]],
        *,
        truncate: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> Embeddings:
        """Make a vector of each text.

        The model is resident like any other: it waits its turn to be loaded, shares the
        memory budget and stands still while another model loads.

        Args:
            model: an embedding model: alias, folder or Hugging Face repository.
            texts: a list of strings, at most 10,000. Instead of a string, the ids of its
                tokens in the model's vocabulary are taken as well; they are used as they are,
                so special tokens must be among them.
            truncate: cut texts that are longer than the model's window; otherwise they
                are an error.
            timeout: seconds for everything, waiting and loading included.
            request_id: a name of your own for the record.
            on_progress: hears of this request's download, load and texts.
            **options: revision and context_window, see `Backend.load`; priority, see
                `generate`.

        Returns:
            The vectors, in the order of the texts and each of length 1.

        Raises:
            GuardedLLMError: see `mlx_guarded_llm.errors` for the kinds.
        """
        answer: Promise[Embeddings] = Promise()
        name = self._embed(
            answer.put, model, texts, truncate, timeout, request_id, on_progress, options
        )
        return answer.wait(give_up=lambda: self.cancel(name))

    async def aembed(
        self,
        model: str | Path,
        texts: Sequence[str | Sequence[int]],
        *,
        truncate: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> Embeddings:
        """As `embed`, without blocking the event loop. Cancelling the task cancels it."""
        answer: Promise[Embeddings] = Promise()
        name = self._embed(
            answer.put, model, texts, truncate, timeout, request_id, on_progress, options
        )
        return await answer.wait_async(give_up=lambda: self.cancel(name))

    def tokens(
        self,
        model: str | Path,
        prompt: str | Sequence[Mapping[str, Any] | int],
        *,
        special_tokens: bool = True,
        timeout: float | None = None,
        **options: Any,
    ) -> list[int]:
        """The token ids of a prompt as the model would get it; no weights are loaded.

        Args:
            model: alias, folder or Hugging Face repository; fetched when needed.
            prompt: as for `generate`; it may be longer than the context window.
            special_tokens: with `raw=True`, include the tokens that the model's tokenizer
                puts around a text. False gives the ids of the text alone; it may be empty.
            timeout: seconds for everything, a download included.
            **options: fields of `PromptRequest` (raw, tools, thinking and so on), and what
                `Backend.load` takes.

        Raises:
            GuardedLLMError: see `mlx_guarded_llm.errors` for the kinds.
        """
        answer: Promise[list[int]] = Promise()
        name = self._tokens(answer.put, model, prompt, special_tokens, timeout, options)
        return answer.wait(give_up=lambda: self.cancel(name))

    async def atokens(
        self,
        model: str | Path,
        prompt: str | Sequence[Mapping[str, Any] | int],
        *,
        special_tokens: bool = True,
        timeout: float | None = None,
        **options: Any,
    ) -> list[int]:
        """As `tokens`, without blocking the event loop."""
        answer: Promise[list[int]] = Promise()
        name = self._tokens(answer.put, model, prompt, special_tokens, timeout, options)
        return await answer.wait_async(give_up=lambda: self.cancel(name))

    @abstractmethod
    def full_name(self, model: str | Path, **options: Any) -> str:
        """The name by which a model is shown: its options sorted in one bracket behind it.

        An option given beside the name wins over one in its brackets. Reads no model.

        Args:
            model: alias, folder or Hugging Face repository, perhaps with options in brackets.
            **options: as `Backend.load` takes them.
        """

    @abstractmethod
    def card(self, model: str | Path, **options: Any) -> ModelCard | None:
        """What is known of a model from its files on disk, or None if they are not there.

        Never uses the network, never loads the model, and is cheap to call again.

        Args:
            model: alias, folder or Hugging Face repository.
            **options: as `Backend.load` takes them.
        """

    # ---- models ---------------------------------------------------------------

    def load(
        self,
        model: str | Path,
        *,
        pin: bool = False,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> ModelInfo:
        """Make a model resident, fetching it first when needed.

        With options it also defines what the model's name means to this backend. Once it is
        loaded, a call with the bare name gets it with these options, even after it was
        evicted, until `unload` or another load with options. A call with options of its own
        gets exactly those.

        Args:
            model: alias, folder or Hugging Face repository.
            pin: keep it from being evicted for another model.
            timeout: seconds to wait; the load itself may go on afterwards.
            on_progress: hears of the download and the load.
            **options: revision, adapter_path, kv_bits, kv_group_size, context_window,
                draft (a smaller model, or "prompt"), hosts (machines over which it is spread),
                task ("generate" or "embed"); None says nothing.

        Returns:
            What `models()` says about it. `info.name` means it in every call.

        Raises:
            GuardedLLMError: see `mlx_guarded_llm.errors` for the kinds.
        """
        promise: Promise[ModelInfo] = Promise()
        give_up = self._load(promise, model, pin, on_progress, options)
        return promise.wait(self._timeout(timeout), give_up=give_up)

    async def aload(
        self,
        model: str | Path,
        *,
        pin: bool = False,
        timeout: float | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> ModelInfo:
        """As `load`, without blocking the event loop."""
        promise: Promise[ModelInfo] = Promise()
        give_up = self._load(promise, model, pin, on_progress, options)
        return await promise.wait_async(self._timeout(timeout), give_up=give_up)

    def unload(self, model: str | Path, *, timeout: float | None = None, **options: Any) -> bool:
        """Give a model's memory back, when its requests have ended.

        If a load with options had given its name a meaning, that ends.

        Returns:
            Whether there was anything to unload.
        """
        promise: Promise[bool] = Promise()
        give_up = self._unload(promise, model, options)
        return promise.wait(self._timeout(timeout), give_up=give_up)

    async def aunload(
        self, model: str | Path, *, timeout: float | None = None, **options: Any
    ) -> bool:
        """As `unload`, without blocking the event loop."""
        promise: Promise[bool] = Promise()
        give_up = self._unload(promise, model, options)
        return await promise.wait_async(self._timeout(timeout), give_up=give_up)

    @abstractmethod
    def models(self) -> list[ModelInfo]:
        """Every model that is resident or wanted, by name. The list shows itself as a table."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Bytes promised to models and requests, and the budget. (0, 0) before first use.

        What other programs hold of the budget is in `health().held_by`.
        """

    @abstractmethod
    def unpin(self, model: str | Path, **options: Any) -> bool:
        """Let a model be evicted again that was loaded with `pin=True`. It stays for now.

        Returns:
            Whether it was pinned.
        """

    @abstractmethod
    def forgive(self, model: str | Path, **options: Any) -> bool:
        """Let a quarantined model be loaded again.

        Args:
            model: as it was asked for, or as the error or `models()` names it.
            options: those it was asked for with.

        Returns:
            Whether it was quarantined.
        """

    # ---- functions of users ---------------------------------------------------

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
        promise: Promise[Any] = Promise()
        give_up = self._run(promise, fn, label)
        value: T = unpack(promise.wait(self._timeout(timeout), give_up=give_up))
        return value

    async def arun(
        self, fn: Callable[[], T], *, label: str = "run", timeout: float | None = None
    ) -> T:
        """As `run`, without blocking the event loop."""
        promise: Promise[Any] = Promise()
        give_up = self._run(promise, fn, label)
        value: T = unpack(await promise.wait_async(self._timeout(timeout), give_up=give_up))
        return value

    # ---- health and the record ------------------------------------------------

    async def ahealth(self, *, timeout: float = HEALTH_PATIENCE) -> Health:
        """How it is: what the engine does, how many wait and for how long, the memory.

        Args:
            timeout: seconds for the thread that decides everything to answer.

        Raises:
            RequestTimeout: it did not, so nothing goes on.
        """
        if self.closed:
            return Health(engine="closed")
        return await self._health().wait_async(timeout, give_up=lambda: None)

    def health(self, *, timeout: float = HEALTH_PATIENCE) -> Health:
        """As `ahealth`, for threads."""
        if self.closed:
            return Health(engine="closed")
        return self._health().wait(timeout, give_up=lambda: None)

    @abstractmethod
    def expected_wait(self, request_id: str) -> float | None:
        """Seconds until this request is expected to start.

        It is made of what was measured: how fast models load, read prompts and answer, and
        how long their answers are.

        Args:
            request_id: of a request, or of a call of `GuardedLLM`.

        Returns:
            None if it does not wait (any more), or if not everything before it was measured.
        """

    @abstractmethod
    async def aexpected_wait(
        self, request_id: str, *, timeout: float = HEALTH_PATIENCE
    ) -> float | None:
        """As `expected_wait`, without blocking the event loop.

        Args:
            timeout: seconds for the thread that decides everything to answer.
        """

    @abstractmethod
    def status(self, request_id: str) -> RequestStatus | None:
        """What a request does or waits for now, in words, and how far its answer is.

        Args:
            request_id: of a request, or of a call of `GuardedLLM`.

        Returns:
            None if it is not under way.
        """

    @abstractmethod
    async def astatus(
        self, request_id: str, *, timeout: float = HEALTH_PATIENCE
    ) -> RequestStatus | None:
        """As `status`, without blocking the event loop.

        Args:
            timeout: seconds for the thread that decides everything to answer.
        """

    @abstractmethod
    def requests(self) -> list[RequestStatus]:
        """Every request under way, oldest first, without its `expected_wait`."""

    @abstractmethod
    def events(self) -> tuple[Event, ...]:
        """Every transition, oldest first."""

    def explain(self, request_id: str) -> str:
        """One request's story, in words."""
        return explain(self.events(), label("request_id", request_id))

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
    @abstractmethod
    def worker_pid(self) -> int | None:
        """Process id of the engine's own process.

        None with isolation="thread", before first use, and between a death and a restart.
        """

    # ---- the end --------------------------------------------------------------

    @abstractmethod
    def close(self, *, timeout: float = CLOSE_GRACE) -> bool:
        """Stop everything, end every call that waits, and give the memory back.

        Args:
            timeout: seconds to wait for the engine, which may be in the middle of a
                slice of a load or of a user's function.

        Returns:
            Whether the engine has stopped; if not, it will when that work ends. In a forked
            child nothing is stopped: the engine is the parent's.
        """

    async def aclose(self) -> bool:
        """As `close`, without blocking the event loop."""
        return await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    # ---- what differs ------------------------------------------------------------

    @abstractmethod
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
        """Check what is asked and send it. `put` gets the chunks, or an error.

        Args:
            emitted: what the caller has of an answer that another backend has begun; see `aresume`.
            fingerprint: of the model that it is of.

        Returns:
            The request's id.
        """

    @abstractmethod
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
        """As `_submit`, for vectors."""

    @abstractmethod
    def _tokens(
        self,
        put: Put,
        model: str | Path,
        prompt: str | Sequence[Mapping[str, Any] | int],
        special_tokens: bool,
        timeout: float | None,
        options: dict[str, Any],
    ) -> str:
        """As `_submit`, for token ids."""

    @abstractmethod
    def _load(
        self,
        promise: Promise[ModelInfo],
        model: str | Path,
        pin: bool,
        on_progress: OnProgress | None,
        options: dict[str, Any],
    ) -> GiveUp:
        """Have a model loaded.

        Returns:
            What is called when the caller stops waiting.
        """

    @abstractmethod
    def _unload(self, promise: Promise[bool], model: str | Path, options: dict[str, Any]) -> GiveUp:
        """As `_load`."""

    @abstractmethod
    def _run(self, promise: Promise[Any], fn: Callable[[], Any], name: str) -> GiveUp:
        """As `_load`, for a user's function; its value is packed."""

    @abstractmethod
    def _health(self) -> Promise[Health]:
        """How it is."""

    @abstractmethod
    def _identity(self, request_id: str | None) -> str:
        """The caller's own name for a request, or a new one."""

    def _check_open(self) -> None:
        if inside():
            raise InvalidRequest(
                "the backend was called from one of its own threads, which would wait for itself.",
                hint="Call it from outside of backend.run(fn) and of progress callbacks.",
            )
        if self._owner != os.getpid():
            raise BackendClosed(
                "this backend belongs to the process this one was forked from.",
                hint=self._hint_forked,
            )
        if self._closed:
            raise BackendClosed("the backend is closed.", hint=self._hint_closed)

    def _timeout(self, timeout: float | None) -> float:
        return self.timeout if timeout is None else seconds("timeout", timeout)


def inside() -> bool:
    """Whether this is a thread of the library, which must not wait for the others."""
    return threading.current_thread().name.startswith(THREAD_PREFIX)
