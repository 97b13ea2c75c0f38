"""The witness: it ends the process when two pieces of MLX work overlap.

On Metal such an overlap once aborted the process from inside the driver. The witness aborts
it at once, on every back end, and its message names both sides. It learns what happens in two
ways: it is an `mlx_guarded_llm.engine.observer.Observer` of the engine,
and `install()` wraps the entry points of MLX and mlx-lm for everybody else.

    python -m mlx_guarded_llm.testing.witness your_script.py --its arguments

`Witness` itself knows nothing of MLX. It only keeps account of the work in progress.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from mlx_guarded_llm.engine.observer import Observer, Work, set_process_observer
from mlx_guarded_llm.testing.sections import EXCLUSIVE, Generation, Kind, Section
from mlx_guarded_llm.testing.violation import Violation

__all__ = ["Violation", "Witness", "abort", "install", "uninstall", "witnessed"]

_KINDS: dict[Work, Kind] = {
    "load": "load",
    "unload": "unload",
    "run": "foreign",
    "step": "step",
}


def abort(violation: Violation) -> None:
    """What Metal does: end the process with SIGABRT."""
    os.abort()


class Witness(Observer):
    """Keeps account of the MLX work in progress, by the engine and by all other code.

    Safe to call from any thread, and each thread may nest its sections. An entry or
    an exit is a lock and a few dictionary operations.

    Attributes:
        seen: how many sections of each kind were entered. A witness that saw nothing
            proves nothing.
    """

    def __init__(self, *, on_violation: Callable[[Violation], None] = abort) -> None:
        """Make a witness.

        Args:
            on_violation: called after the message was written to stderr. Meanwhile every
                other thread is held at its next entry, so it must not wait for one. If
                it returns, the work goes on: `Witness(on_violation=found.append)`.
        """
        self.seen: Counter[Kind] = Counter()
        self._on_violation = on_violation
        # Re-entrant, because the garbage collector may end a generation at any moment.
        self._lock = threading.RLock()
        self._inside: dict[int, list[Section]] = {}
        self._generations: dict[str, Generation] = {}
        self._numbers = itertools.count(1)
        self._of_engine: Section | None = None  # the engine does one piece of work at a time

    def load(self, model: str) -> Section:
        """The weights of `model` are read and evaluated."""
        return Section(self, "load", model)

    def unload(self, model: str) -> Section:
        """The caches and weights of `model` are freed."""
        return Section(self, "unload", model)

    def foreign(self, label: str) -> Section:
        """Any other MLX code that must be alone."""
        return Section(self, "foreign", label)

    def step(self, model: str, *, generation: Generation | None = None) -> Section:
        """One step of `generation`, or, if None, of every generation of `model`."""
        return Section(self, "step", model, generation)

    def evaluation(self, label: str) -> Section:
        """A bare evaluation. It conflicts only with work of another thread."""
        return Section(self, "eval", label)

    def generation(self, model: str) -> Generation:
        """A generation that has not begun yet; see `Generation`."""
        return Generation(self, model, f"generation-{next(self._numbers)}")

    def began(self, work: Work, model: str) -> None:
        """See `Observer.began`."""
        section = Section(self, _KINDS[work], model)
        section.__enter__()
        self._of_engine = section

    def computed(self) -> None:
        """See `Observer.computed`."""
        self.ended()

    def ended(self) -> None:
        """See `Observer.ended`."""
        section, self._of_engine = self._of_engine, None
        if section is not None:
            section.__exit__()

    def generation_began(self, model: str, request_id: str) -> None:
        """See `Observer.generation_began`."""
        Generation(self, model, request_id).begin()

    def generation_ended(self, request_id: str) -> None:
        """See `Observer.generation_ended`."""
        with self._lock:
            self._generations.pop(request_id, None)

    def paused(self, models: Iterable[str]) -> None:
        """See `Observer.paused`."""
        wanted = {*models}
        for generation in self._unfinished():
            if generation.model in wanted:
                generation.pause()

    def resumed(self) -> None:
        """See `Observer.resumed`."""
        for generation in self._unfinished():
            generation.resume()

    def is_inside(self, kind: Kind | None = None) -> bool:
        """Whether the calling thread is in a section of this kind, or of any."""
        stack = self._inside.get(threading.get_ident(), ())
        return any(kind in (None, section.kind) for section in stack)

    def _unfinished(self) -> tuple[Generation, ...]:
        with self._lock:
            return tuple(self._generations.values())

    def _begin(self, generation: Generation) -> None:
        with self._lock:
            self._generations[generation.request_id] = generation

    def _enter(self, section: Section) -> None:
        here = threading.current_thread()
        section.thread = here
        with self._lock:
            beside = self._conflict(section, here)
            self.seen[section.kind] += 1
            self._inside.setdefault(here.ident or 0, []).append(section)
            if section.kind == "step":
                for generation in self._unfinished():
                    if section.advances(generation):
                        generation.thread, generation.running = here, True
            if beside is not None:
                # Still locked, so nothing else enters and the first overlap is the one reported.
                violation = Violation.between(section, beside)
                sys.stderr.write(violation.message + "\n")
                sys.stderr.flush()
                try:
                    self._on_violation(violation)
                except BaseException:
                    self._exit(section)  # an entry that raises does not count
                    raise

    def _exit(self, section: Section) -> None:
        ident = threading.get_ident()
        with self._lock:
            stack = self._inside[ident]
            stack.remove(section)
            if not stack:
                del self._inside[ident]

    def _conflict(self, section: Section, here: threading.Thread) -> Section | Generation | None:
        """The decision tree: what `section` conflicts with, or None.

        1. Another thread is in a section: the two overlap, whatever they are.
        2. A load, unload or foreign section beside a running generation.
        3. A step or evaluation beside a generation that another thread runs: between
           two steps its next token is in flight.
        """
        for ident, stack in tuple(self._inside.items()):
            if ident != here.ident:
                return stack[0]
        for generation in self._unfinished():
            if not generation.running:
                continue
            if section.kind in EXCLUSIVE:
                return generation
            elsewhere = generation.thread not in (None, here)
            if elsewhere and not section.advances(generation):
                return generation
        return None


def install(
    witness: Witness | None = None,
    *,
    on_violation: Callable[[Violation], None] = abort,
) -> Witness:
    """Watch this process from now on: the engine, and all use of MLX and mlx-lm.

    Call it before generations begin, as it does not know what already runs.

    Args:
        witness: the witness to use; a new one by default.
        on_violation: passed to a new witness.

    Raises:
        RuntimeError: another witness is installed.
    """
    from mlx_guarded_llm.testing import patches

    witness = witness or Witness(on_violation=on_violation)
    patches.apply(witness)
    set_process_observer(witness)
    return witness


def uninstall() -> None:
    """Put everything back as it was; does nothing if nothing is installed."""
    from mlx_guarded_llm.testing import patches

    patches.undo()
    set_process_observer(None)


@contextmanager
def witnessed(
    witness: Witness | None = None,
    *,
    on_violation: Callable[[Violation], None] = abort,
) -> Iterator[Witness]:
    """`install` for the length of a `with` block."""
    witness = install(witness, on_violation=on_violation)
    try:
        yield witness
    finally:
        uninstall()


if __name__ == "__main__":
    from mlx_guarded_llm.testing.run_script import main

    main()
