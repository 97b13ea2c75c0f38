"""The seam through which the engine says what its thread is doing, for who watches it.

A process that dies or stands still cannot say why. So the engine notes each piece of
MLX work before it begins: the last note tells at what, and with which model, it died.
"""

from __future__ import annotations

from typing import Literal, Protocol

Work = Literal["", "load", "unload", "run", "step"]


class Pulse(Protocol):
    """What the MLX thread reports. Calls are cheap: a step makes two."""

    def began(self, work: Work, model: str) -> None:
        """A piece of work begins; there is one at a time. `model` is the label of a run."""

    def went_on(self) -> None:
        """A long piece of work made progress, such as one slice of a load."""

    def ended(self) -> None:
        """It is over; the thread is idle."""


class NoPulse:
    """Nobody watches."""

    def began(self, work: Work, model: str) -> None:
        """See `Pulse.began`."""

    def went_on(self) -> None:
        """See `Pulse.went_on`."""

    def ended(self) -> None:
        """See `Pulse.ended`."""
