"""Lists that display themselves as tables: in a notebook, in IPython and with `print`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

from ..record import phrases
from . import html

T = TypeVar("T")


class Listing(list[T]):
    """A list whose items are rows of a table.

    Attributes:
        head: names of the columns.
        numbers: indexes of the columns that are aligned to the right.
        nothing: the text of an empty list.
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
        rows = [self.head, *([phrases.one_line(cell) for cell in self.cells(i)] for i in self)]
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
