"""Who else holds memory of this machine for models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

GIB = 1024**3
_SHOWN = 3  # of each kind in a text


class Holder(NamedTuple):
    """Another program, and what it holds.

    Attributes:
        program: its name.
        pid: of its process.
        models: that it has in memory, or is about to load.
        bytes: that it has claimed for them and their requests.
    """

    program: str
    pid: int
    models: tuple[str, ...]
    bytes: int

    @property
    def text(self) -> str:
        """It in words."""
        models = ", ".join(_first(self.models))
        what = f" for {models}" if models else ""
        return f"{self.program} (process {self.pid}) holds {self.bytes / GIB:.2f} GiB{what}"


def held_bytes(holders: Iterable[Holder]) -> int:
    """What all of them hold."""
    return sum(holder.bytes for holder in holders)


def listed(holders: Sequence[Holder]) -> str:
    """Several of them in words."""
    return "; ".join(_first([holder.text for holder in holders]))


def _first(texts: Sequence[str]) -> list[str]:
    more = len(texts) - _SHOWN
    return [*texts[:_SHOWN], *[f"{more} more"] * (more > 0)]
