"""How the engine says what it is doing, for whoever watches it.

There are two observers. An engine may be given one of its own: a worker's writes the page of
memory that its parent reads, so that a process which dies or hangs leaves behind what it was
doing. The other belongs to the process: the witness, which aborts it when two pieces of MLX
work overlap. The witness registers itself as an entry point of `GROUP`; with
`MLX_GUARDED_WITNESS=1` in the environment the first `process_observer()` installs it, which
is how it gets into the engine's own process.

This module never imports MLX.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Literal

Work = Literal["", "load", "unload", "run", "step", "prepare"]
PREPARERS = 4  # requests that may be prepared at once
WITNESS_VARIABLE = "MLX_GUARDED_WITNESS"
GROUP = "mlx_guarded_llm.witnesses"  # entry points: functions that call `set_process_observer`


class Observer:
    """What an engine reports. Here each report goes nowhere: override those of interest.

    All of them come from the MLX thread, except the two about preparing: each place has a
    thread of its own. They must be cheap, as a step makes three.

    A generation *runs* from `generation_began` to `generation_ended`, whether or not a step
    is in progress: mlx-lm leaves the next token in flight between steps. It does not run
    while it is paused.
    """

    def began(self, work: Work, model: str) -> None:
        """MLX work is about to begin; there is one piece at a time.

        Args:
            work: "load", "unload", "run" or "step".
            model: its name; for "run" the label of the function.
        """

    def went_on(self) -> None:
        """A long piece of work made progress, such as one slice of a load."""

    def computed(self) -> None:
        """The MLX part of a step is over. Its tokens become text now, which may take long too."""

    def ended(self) -> None:
        """The work is over; the thread is idle."""

    def failed(self, work: Work, model: str) -> None:
        """This work has broken the engine. Nothing that follows counts."""

    def preparing(self, place: int, model: str, request_id: str) -> None:
        """A request is about to be prepared, on the thread of this place (of `PREPARERS`)."""

    def prepared(self, place: int) -> None:
        """The thread of this place is idle."""

    def generation_began(self, model: str, request_id: str) -> None:
        """A request joined its batch and has not been stepped yet."""

    def generation_ended(self, request_id: str) -> None:
        """A request left its batch, however it ended. Unknown ids are ignored."""

    def paused(self, models: Iterable[str]) -> None:
        """The generations of `models` are at a token boundary, nothing in flight."""

    def resumed(self) -> None:
        """The paused generations may step again."""


class Observers(Observer):
    """Passes each report on to an engine's own observer, then to that of the process.

    The order matters: the witness may abort, and by then the page must say at what.

    Args:
        own: the engine's, if it has one.
    """

    def __init__(self, own: Observer | None = None) -> None:
        self._own = own or Observer()

    def began(self, work: Work, model: str) -> None:
        """See `Observer.began`."""
        self._own.began(work, model)
        process_observer().began(work, model)

    def went_on(self) -> None:
        """See `Observer.went_on`."""
        self._own.went_on()
        process_observer().went_on()

    def computed(self) -> None:
        """See `Observer.computed`."""
        self._own.computed()
        process_observer().computed()

    def ended(self) -> None:
        """See `Observer.ended`."""
        self._own.ended()
        process_observer().ended()

    def failed(self, work: Work, model: str) -> None:
        """See `Observer.failed`."""
        self._own.failed(work, model)
        process_observer().failed(work, model)

    def preparing(self, place: int, model: str, request_id: str) -> None:
        """See `Observer.preparing`. The observer of the process watches the MLX thread only."""
        self._own.preparing(place, model, request_id)

    def prepared(self, place: int) -> None:
        """See `Observer.prepared`."""
        self._own.prepared(place)

    def generation_began(self, model: str, request_id: str) -> None:
        """See `Observer.generation_began`."""
        self._own.generation_began(model, request_id)
        process_observer().generation_began(model, request_id)

    def generation_ended(self, request_id: str) -> None:
        """See `Observer.generation_ended`."""
        self._own.generation_ended(request_id)
        process_observer().generation_ended(request_id)

    def paused(self, models: Iterable[str]) -> None:
        """See `Observer.paused`."""
        models = tuple(models)
        self._own.paused(models)
        process_observer().paused(models)

    def resumed(self) -> None:
        """See `Observer.resumed`."""
        self._own.resumed()
        process_observer().resumed()


_process_observer: Observer | None = None  # None until somebody asks: the environment decides


def process_observer() -> Observer:
    """The observer of this process. Ask each time: it may change."""
    return _process_observer if _process_observer is not None else _from_environment()


def set_process_observer(observer: Observer | None) -> None:
    """Make `observer` the observer of this process; None puts the silent one back."""
    global _process_observer
    _process_observer = observer or Observer()


def _from_environment() -> Observer:
    set_process_observer(None)
    if os.environ.get(WITNESS_VARIABLE, "") not in ("", "0"):
        from importlib.metadata import entry_points  # late, as it is seldom needed

        for found in entry_points(group=GROUP):
            found.load()()
    assert _process_observer is not None
    return _process_observer
