"""A guard-rail that ends the process when two pieces of MLX work overlap.

On Metal such an overlap once aborted the process from inside the driver. Here it
does so everywhere, at once, and the message names both sides. The witness is told
what happens in two ways: the engine reports through `mlx_guarded_llm.engine.rail`,
and `install()` wraps the entry points of MLX and mlx-lm for everybody else.

    python -m mlx_guarded_llm.testing.witness your_script.py --its arguments

`Witness` itself knows nothing of MLX: it only keeps account of who is inside.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from mlx_guarded_llm.engine import rail
from mlx_guarded_llm.testing.sections import EXCLUSIVE, Generation, Kind, Section
from mlx_guarded_llm.testing.violation import Violation

__all__ = ["Violation", "Witness", "abort", "install", "uninstall", "witnessed"]


def abort(violation: Violation) -> None:
    """What Metal does: end the process with SIGABRT."""
    os.abort()


class Witness:
    """Keeps account of the MLX work in progress; implements `rail.Rail`.

    Safe to call from any thread, and each thread may nest its sections. An entry or
    an exit is a lock and a few dictionary operations.

    Attributes:
        seen: how many sections of each kind were entered. A witness that saw nothing
            proves nothing.
    """

    def __init__(self, *, on_violation: Callable[[Violation], None] = abort) -> None:
        """Make a witness.

        Args:
            on_violation: called after the message went to stderr, while every other
                thread is held at its next entry, so it must not wait for one. If it
                returns, the work goes on: `Witness(on_violation=found.append)`.
        """
        self.seen: Counter[Kind] = Counter()
        self._on_violation = on_violation
        # Re-entrant, for the garbage collector may end a generation at any moment.
        self._lock = threading.RLock()
        self._inside: dict[int, list[Section]] = {}
        self._generations: dict[str, Generation] = {}
        self._numbers = itertools.count(1)

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
        """A bare evaluation; only another thread's work is in its way."""
        return Section(self, "eval", label)

    def generation(self, model: str) -> Generation:
        """A generation that has not begun yet; see `Generation`."""
        return Generation(self, model, f"generation-{next(self._numbers)}")

    def generation_began(self, model: str, request_id: str) -> None:
        """See `rail.Rail.generation_began`."""
        Generation(self, model, request_id).begin()

    def generation_ended(self, request_id: str) -> None:
        """See `rail.Rail.generation_ended`."""
        with self._lock:
            self._generations.pop(request_id, None)

    def paused(self, models: Iterable[str]) -> None:
        """See `rail.Rail.paused`."""
        wanted = {*models}
        for generation in self._unfinished():
            if generation.model in wanted:
                generation.pause()

    def resumed(self) -> None:
        """See `rail.Rail.resumed`."""
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
                # Still locked: nobody else enters, and the first overlap is the one told.
                violation = Violation.between(section, beside)
                sys.stderr.write(violation.message + "\n")
                sys.stderr.flush()
                try:
                    self._on_violation(violation)
                except BaseException:
                    self._exit(section)  # an entry that raises has not happened
                    raise

    def _exit(self, section: Section) -> None:
        ident = threading.get_ident()
        with self._lock:
            stack = self._inside[ident]
            stack.remove(section)
            if not stack:
                del self._inside[ident]

    def _conflict(self, section: Section, here: threading.Thread) -> Section | Generation | None:
        """The decision tree: what `section` may not be beside, or None.

        1. Another thread is in a section: they overlap, whatever the two are.
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

    Call it before generations begin; what already runs is not known to it.

    Args:
        witness: the witness to use; by default a new one.
        on_violation: for that new one.

    Raises:
        RuntimeError: another witness is installed.
    """
    from mlx_guarded_llm.testing import patches

    witness = witness or Witness(on_violation=on_violation)
    patches.apply(witness)
    rail.set_rail(witness)
    return witness


def uninstall() -> None:
    """Put everything back as it was; does nothing if nothing is installed."""
    from mlx_guarded_llm.testing import patches

    patches.undo()
    rail.set_rail(None)


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
