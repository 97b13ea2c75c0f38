"""See every answer behind a piece of work, also where LlamaIndex passes on text only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from mlx_guarded_llm.errors import GuardedLLMError
from mlx_guarded_llm.results import Provenance

_watches: ContextVar[tuple[Watch, ...]] = ContextVar("mlx_guarded_watches", default=())


@dataclass(eq=False)
class Watch:
    """What `MLXGuarded` models answered and raised under a `watch()`, in order.

    Attributes:
        guards: of every answer.
        errors: also those that somebody above caught.
    """

    guards: list[Provenance] = field(default_factory=list)
    errors: list[GuardedLLMError] = field(default_factory=list)

    @property
    def as_asked(self) -> bool:
        """Every call was answered, in full, by the model that was asked."""
        return not self.errors and all(guard.as_asked for guard in self.guards)


@contextmanager
def watch() -> Iterator[Watch]:
    """Gather the provenance of all calls made inside, in this task and what it starts.

    A query engine returns text, a structured prediction an object, and some query
    engines and agents catch errors. The provenance of what is behind them is here.

        with watch() as seen:
            answer = query_engine.query("What is the capital of France?")
        if not seen.as_asked:
            print([guard.served_model for guard in seen.guards], seen.errors)
    """
    seen = Watch()
    token = _watches.set((*_watches.get(), seen))
    try:
        yield seen
    finally:
        _watches.reset(token)


def note(guard: Provenance | None) -> None:
    """Tell the watches of an answer."""
    if guard is not None:
        for seen in _watches.get():
            seen.guards.append(guard)


@contextmanager
def noting_errors() -> Iterator[None]:
    """Tell the watches of an error that comes out."""
    try:
        yield
    except GuardedLLMError as error:
        for seen in _watches.get():
            seen.errors.append(error)
        raise
