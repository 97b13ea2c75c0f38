"""The seam through which the engine says what it is doing to MLX.

The engine wraps each piece of MLX work in a section of the current rail:

    with rail.current().load("phi3-mini"):
        ...

By default the rail does nothing. `mlx_guarded_llm.testing.witness` puts a watcher
here that aborts the process when two pieces of work overlap. With
`MLX_GUARDED_WITNESS=1` in the environment the first `current()` installs that
watcher, which is how it reaches the engine's own process when that is a child.

This module never imports MLX.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

WITNESS_VARIABLE = "MLX_GUARDED_WITNESS"


class Rail(Protocol):
    """What the engine reports, all of it from the thread that does the work.

    A generation *runs* from `generation_began` to `generation_ended`, whether or
    not a step is inside at the moment: mlx-lm leaves the next token in flight
    between steps. It stops running while it is paused.
    """

    def load(self, model: str) -> AbstractContextManager[None]:
        """The weights of `model` are being read and evaluated."""

    def unload(self, model: str) -> AbstractContextManager[None]:
        """The caches and weights of `model` are being freed."""

    def foreign(self, label: str) -> AbstractContextManager[None]:
        """Somebody else's MLX code runs, such as `Backend.run(fn)`."""

    def step(self, model: str) -> AbstractContextManager[None]:
        """One prefill or decode step of the batch of `model`."""

    def generation_began(self, model: str, request_id: str) -> None:
        """The request is in the batch; call it before its first step."""

    def generation_ended(self, request_id: str) -> None:
        """The request left the batch, however it ended; unknown ids are ignored."""

    def paused(self, models: Iterable[str]) -> None:
        """The generations of `models` are at a token boundary, nothing in flight."""

    def resumed(self) -> None:
        """The paused generations may step again."""


class NoRail:
    """The default: every report costs one call and goes nowhere."""

    _nothing: AbstractContextManager[None] = nullcontext()

    def load(self, model: str) -> AbstractContextManager[None]:
        """See `Rail.load`."""
        return self._nothing

    def unload(self, model: str) -> AbstractContextManager[None]:
        """See `Rail.unload`."""
        return self._nothing

    def foreign(self, label: str) -> AbstractContextManager[None]:
        """See `Rail.foreign`."""
        return self._nothing

    def step(self, model: str) -> AbstractContextManager[None]:
        """See `Rail.step`."""
        return self._nothing

    def generation_began(self, model: str, request_id: str) -> None:
        """See `Rail.generation_began`."""

    def generation_ended(self, request_id: str) -> None:
        """See `Rail.generation_ended`."""

    def paused(self, models: Iterable[str]) -> None:
        """See `Rail.paused`."""

    def resumed(self) -> None:
        """See `Rail.resumed`."""


_rail: Rail | None = None  # None until somebody asks: the environment then decides


def current() -> Rail:
    """The rail of this process. Ask at each section: it may change."""
    return _rail if _rail is not None else _from_environment()


def set_rail(rail: Rail | None) -> None:
    """Make `rail` the rail of this process; None puts the silent one back."""
    global _rail
    _rail = NoRail() if rail is None else rail


def _from_environment() -> Rail:
    set_rail(None)
    if os.environ.get(WITNESS_VARIABLE, "") not in ("", "0"):
        # Imported late: only then may this module touch the testing package or MLX.
        from mlx_guarded_llm.testing import witness

        witness.install()
    assert _rail is not None
    return _rail
