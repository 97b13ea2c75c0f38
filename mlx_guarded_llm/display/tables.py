"""Lists that show themselves as tables: in a notebook, in IPython, and by `print`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ..record import words
from . import html

if TYPE_CHECKING:
    from ..backend import ModelInfo
    from ..guarded import Taint

T = TypeVar("T")


class Listing(list[T]):
    """A list whose items are rows of a table.

    Attributes:
        head: names of the columns.
        numbers: indexes of those that are set to the right.
        nothing: what an empty one says.
    """

    head: ClassVar[tuple[str, ...]]
    numbers: ClassVar[tuple[int, ...]] = ()
    nothing: ClassVar[str]

    def cells(self, item: T) -> Sequence[str]:
        """One row, as plain text."""
        raise NotImplementedError

    def __str__(self) -> str:
        if not self:
            return self.nothing
        rows = [self.head, *([words.one_line(cell) for cell in self.cells(i)] for i in self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join(
                cell.rjust(width) if column in self.numbers else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )
        return "\n".join(line.rstrip() for line in lines)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def _repr_html_(self) -> str:
        if not self:
            return f"<p>{html.text(self.nothing)}</p>"
        rows = [[html.text(cell) for cell in self.cells(item)] for item in self]
        return html.table(self.head, rows, numbers=self.numbers)


class Models(Listing["ModelInfo"]):
    """The models of a backend."""

    head = ("model", "state", "running", "waiting", "memory", "context", "idle")
    numbers = (2, 3, 4, 5, 6)
    nothing = "No model is resident or wanted."

    def cells(self, item: ModelInfo) -> Sequence[str]:
        """See `Listing.cells`."""
        state = [item.state, *["pinned"] * item.pinned]
        if item.crashes:
            often = "1 crash" if item.crashes == 1 else f"{item.crashes} crashes"
            state.append(f"{often} ({item.cause})")
        return (
            item.name,
            ", ".join(state),
            str(item.active),
            str(item.waiting),
            words.size(item.memory_bytes),
            f"{item.context_window:,}" if item.context_window else "",
            "" if item.idle_seconds is None else words.seconds(item.idle_seconds),
        )


class Taints(Listing["Taint"]):
    """The steps of a chain, and what is wrong with them."""

    head = ("step", "verdict", "own reasons", "rests on")
    numbers = (0,)
    nothing = "There are no steps."

    def cells(self, item: Taint) -> Sequence[str]:
        """See `Listing.cells`."""
        rests = words.listing(f"step {index}" for index in item.inherited)
        verdict = "tainted" if item else "clean"
        return (str(item.index), verdict, ", ".join(item.own), rests)
