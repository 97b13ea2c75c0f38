"""An answer as it is shown on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from ..results import Chunk
from .console import harmless, out, write

if TYPE_CHECKING:
    from .progress import ProgressLine


class Shown:
    """An answer on stdout. On a terminal the thinking stands before it, dimmed.

    Args:
        progress: taken away at the first piece of text.
        quiet: show nothing.
    """

    def __init__(self, progress: ProgressLine, *, quiet: bool = False) -> None:
        self._progress = progress
        self._quiet = quiet
        self._ends_line = True
        self._thinking = False

    def show(self, chunk: Chunk) -> None:
        """Write the next piece."""
        if self._quiet:
            return
        if chunk.reasoning and out().is_terminal:
            self._progress.close()
            self._thinking = True
            out().print(Text(harmless(chunk.reasoning), style="dim"), end="", soft_wrap=True)
        if chunk.text:
            self._progress.close()
            if self._thinking:
                out().print("\n")
                self._thinking = False
            write(chunk.text)
            self._ends_line = chunk.text.endswith("\n")

    def end(self) -> None:
        """Leave the cursor at the beginning of a line."""
        self._progress.close()
        if not self._ends_line or self._thinking:
            write("\n")
