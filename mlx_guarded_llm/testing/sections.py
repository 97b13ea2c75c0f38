"""Pieces of MLX work as the witness sees them: sections and generations."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mlx_guarded_llm.testing.witness import Witness

Kind = Literal["load", "unload", "foreign", "step", "eval"]

EXCLUSIVE: frozenset[Kind] = frozenset({"load", "unload", "foreign"})
"""Work during which no generation may be unfinished, on any thread."""


class Section(AbstractContextManager[None]):
    """One piece of MLX work on one thread, for a `with` statement."""

    def __init__(
        self, witness: Witness, kind: Kind, model: str, generation: Generation | None = None
    ) -> None:
        self.witness = witness
        self.kind: Kind = kind
        self.model = model
        self.generation = generation
        self.thread: threading.Thread | None = None

    def __str__(self) -> str:
        return f"{self.kind} of {self.model}"

    def advances(self, generation: Generation) -> bool:
        """Whether this section is a step of that generation."""
        if self.kind != "step":
            return False
        if self.generation is not None:
            return self.generation is generation
        return self.model == generation.model

    def __enter__(self) -> None:
        self.witness._enter(self)

    def __exit__(self, *error: object) -> None:
        self.witness._exit(self)


class Generation(AbstractContextManager["Generation"]):
    """A generation from `begin` to `end`, also usable in a `with` statement.

    Attributes:
        running: not paused. A step of a paused generation makes it run again.
        thread: the thread of its last step.
    """

    def __init__(self, witness: Witness, model: str, request_id: str) -> None:
        self.witness = witness
        self.model = model
        self.request_id = request_id
        self.running = True
        self.thread: threading.Thread | None = None

    def __str__(self) -> str:
        return f"unfinished generation of {self.model}"

    def begin(self) -> None:
        """The generation is unfinished from now on."""
        self.witness._begin(self)

    def end(self) -> None:
        """The generation is over. Ending it twice does nothing."""
        self.witness.generation_ended(self.request_id)

    def pause(self) -> None:
        """The generation is synchronised at a token boundary; nothing of it is in flight."""
        self.running = False

    def resume(self) -> None:
        """The generation may step again."""
        self.running = True

    def __enter__(self) -> Generation:
        self.begin()
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
