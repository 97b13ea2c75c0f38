"""Our side: a `Backend`, as a program would use it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import psutil

from mlx_guarded_llm import Backend, GuardedLLMError, Provenance, __version__

from .side import Ask, CannotRun, Heard, Hearing, Setup, Side, family

PREFIX_CACHE = "1GiB"
ROWS = 64  # streams at once; more than any case asks for
DEADLINE = 1800.0  # seconds; nothing takes so long unless it hangs
PATIENCE = 24 * 3600.0  # seconds; a worker that is asleep must not be taken for hung
ROOM = 0.9  # of the smaller model: what is left for KV caches beside the larger one


class Ours(Side):
    """This library.

    Args:
        isolation: where the engine runs; see `Backend`.
        **options: further ones of the `Backend`; they go before those of the setup.

    Attributes:
        backend: open between `open` and `close`. What it knows of a request is under
            `guards[heard].request_id`, by `backend.explain()` and `backend.events()`.
        guards: where each answer that `ask` gave came from.
    """

    version = __version__

    def __init__(
        self, *, isolation: Literal["process", "thread"] = "process", **options: Any
    ) -> None:
        super().__init__()
        self.name = "mlx-guarded" if isolation == "process" else f"mlx-guarded ({isolation})"
        self.guards: dict[Heard, Provenance] = {}
        self._isolation = isolation
        self._options = options
        self._folders: dict[str, str] = {}
        self._backend: Backend | None = None

    @property
    def backend(self) -> Backend:
        assert self._backend is not None, "the side is not open"
        return self._backend

    def open(self, setup: Setup) -> None:
        self._folders = {name: str(folder) for name, folder in setup.models.items()}
        options: dict[str, Any] = {
            "isolation": self._isolation,
            "load_wait": setup.load_wait,
            "max_active": ROWS,
            "prefix_cache": PREFIX_CACHE if setup.prefix_cache else 0,
            "stall_timeout": PATIENCE,
            "timeout": DEADLINE,
            "offline": True,
            **self._options,
        }
        try:
            if setup.fits_one:
                options["memory_budget"], note = budget_for_one(self._folders.values(), options)
                self.notes.append(note)
            self._backend = Backend(**options)
            for name in setup.loaded:
                self._backend.load(self._folders[name])
        except GuardedLLMError as error:
            self.close()
            raise CannotRun(f"{type(error).__name__}: {error}") from error

    def ask(self, ask: Ask) -> Heard:
        hearing = Hearing(tokens=0)
        error = ""
        guard: Provenance | None = None
        try:
            stream = self.backend.stream(
                self._folders[ask.model],
                list(ask.messages),
                max_tokens=ask.max_tokens,
                **ask.options,
            )
            for chunk in stream:
                hearing.take(chunk.reasoning + chunk.text)
                if chunk.usage is not None:
                    hearing.tokens, guard = chunk.usage.completion_tokens, chunk.guard
        except GuardedLLMError as raised:
            error = f"{type(raised).__name__}: {raised}"
        heard = hearing.heard(error)
        if guard is not None:
            self.guards[heard] = guard
        return heard

    def unload(self, model: str) -> None:
        """Drop "large" or "small" when its requests have ended."""
        self.backend.unload(self._folders[model])

    def load(self, model: str) -> float:
        """Load a model. Returns the seconds until it was there, waiting included."""
        began = time.monotonic()
        self.backend.load(self._folders[model])
        return time.monotonic() - began

    def close(self) -> None:
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def processes(self) -> list[psutil.Process]:
        # With isolation="thread" there is no worker: it is this process, which goes on.
        return family(self._backend.worker_pid) if self._backend else []


def budget_for_one(folders: Iterable[str], options: Mapping[str, Any]) -> tuple[int, str]:
    """Bytes in which either of two models fits, but not both, and a note that says so.

    Each is loaded for it, alone, because what a model was measured to take counts.

    Args:
        folders: of the models.
        options: of the `Backend` that measures them.
    """
    weights: list[int] = []
    besides: list[int] = []  # the prefix cache, and the peak of a prefill
    with Backend(**options) as backend:
        for folder in folders:
            backend.load(folder)
            size = sum(info.memory_bytes for info in backend.models())
            weights.append(size)
            besides.append(backend.memory()[0] - size)
            backend.unload(folder)
    room = int(ROOM * min(weights))
    note = f"memory for one model, and {room / 1e6:.0f} MB for its KV caches"
    return max(weights) + room + max(besides), note
