"""See every answer behind a piece of work, also where LlamaIndex passes on only text."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from weakref import WeakSet

from mlx_guarded_llm.errors import GuardedLLMError
from mlx_guarded_llm.results import Provenance

_watches: ContextVar[tuple[Watch, ...]] = ContextVar("mlx_guarded_watches", default=())
_open: WeakSet[Watch] = WeakSet()  # in all contexts


@dataclass(eq=False)
class Watch:
    """What `MLXGuarded` models answered and raised under a `watch()`, in order.

    Attributes:
        guards: the provenance of every answer.
        errors: every error, also those that were caught further up.
        unseen: answers and errors in threads that were started meanwhile and have no watch.
            They may belong to this work, so `as_asked` is False.
        pending: streams that were begun and have not ended. One that is read later is still
            counted; one that is abandoned stays pending.
    """

    guards: list[Provenance] = field(default_factory=list)
    errors: list[GuardedLLMError] = field(default_factory=list)
    unseen: int = 0
    pending: int = 0
    _threads: WeakSet[threading.Thread] = field(
        default_factory=lambda: WeakSet(threading.enumerate()), repr=False
    )

    @property
    def as_asked(self) -> bool:
        """Something was answered, and all of it in full by the model that was asked."""
        answered = bool(self.guards) and all(guard.as_asked for guard in self.guards)
        return answered and not (self.errors or self.unseen or self.pending)

    def miss(self) -> None:
        """Count what happened in a context without a watch, if it was in a new thread."""
        self.unseen += threading.current_thread() not in self._threads


@contextmanager
def watch() -> Iterator[Watch]:
    """Gather the provenance of all calls made inside, in this task and what it starts.

    A query engine returns text, a structured prediction an object, and some query
    engines and agents catch errors. The provenance of what is behind them is here.

        with watch() as seen:
            answer = query_engine.query("What is the capital of France?")
        if not seen.as_asked:
            print([guard.served_model for guard in seen.guards], seen.errors)

    A `ThreadPoolExecutor` does not take the context over. Give it that, and its work is
    seen: `pool.submit(contextvars.copy_context().run, llm.complete, prompt)`.
    """
    seen = Watch()
    _open.add(seen)
    token = _watches.set((*_watches.get(), seen))
    try:
        yield seen
    finally:
        _watches.reset(token)
        _open.discard(seen)


class WatchedCall:
    """One call, which reports its end to the watches under which it was made.

    Args:
        is_stream: it is pending until then.
    """

    def __init__(self, *, is_stream: bool = False) -> None:
        self._watches = _watches.get()
        self._pending = is_stream
        for seen in self._watches:
            seen.pending += is_stream

    def answered(self, guard: Provenance | None) -> None:
        """Report an answer; a piece of one, which has no guard, is not reported."""
        if guard is not None:
            self._report(lambda seen: seen.guards.append(guard))

    @contextmanager
    def noting_errors(self) -> Iterator[None]:
        """Report an error that is raised within."""
        try:
            yield
        except GuardedLLMError as error:
            raised = error
            self._report(lambda seen: seen.errors.append(raised))
            raise

    def _report(self, add: Callable[[Watch], None]) -> None:
        for seen in self._watches:
            add(seen)
            seen.pending -= self._pending
        self._pending = False
        if not self._watches:
            for seen in list(_open):
                seen.miss()
