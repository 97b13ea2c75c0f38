"""One line below an answer that says what goes on, while it goes on."""

from __future__ import annotations

import shutil
import sys
import threading
from typing import TYPE_CHECKING, Self

from rich.cells import cell_len
from rich.text import Text

from ..errors import GuardedLLMError
from .console import harmless, out, styled
from .facts import Facts

if TYPE_CHECKING:
    from ..models import Progress
    from .progress import ProgressLine

INTERVAL = 0.25  # seconds between two looks
_TAB = 8  # columns

# The line stands on the row below the cursor, and the answer goes on where the cursor is. `_ROOM`
# makes sure that there is such a row, and keeps the column.
_ROOM = "\x1bD\x1b[A"
_DRAW = "\x1b7\x1b[B\r\x1b[2K{}\x1b8"
_ERASE = "\x1b[J"


def open_line(name: str, facts: Facts) -> StatusLine | ProgressLine:
    """A status line where stdout is a terminal; else what `run` shows on stderr."""
    if sys.stdout.isatty() and not out().is_dumb_terminal:
        return StatusLine(facts)
    from .progress import ProgressLine  # late, as rich.progress is slow to import

    return ProgressLine(name)


class StatusLine:
    """Shows facts while it is entered, and nothing of it stays.

    What is written to stdout meanwhile must go through `write`.

    Args:
        facts: asked four times a second, on a thread of its own.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        # Ctrl-C may strike while the lock is held and not let go of it. Then the main thread
        # can still take it, to remove the line.
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._text = ""
        self._drawn = False
        self._column = 0  # of the cursor

    def update(self, progress: Progress) -> None:
        """Something goes on; from any thread."""
        self._facts.update(progress)

    def write(self, text: str, style: str = "") -> None:
        """Write a piece of the answer."""
        with self._lock:
            width = _width()
            before = self._erased()
            column = min(self._column, width)  # it may have been made narrower
            shown, self._column = laid_out(harmless(text), column, width)
            _put(before + styled(shown, style) + self._line(width))

    def close(self) -> None:
        """Remove the line."""
        self._over.set()
        with self._lock:
            _put(self._erased())

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="status-line", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _watch(self) -> None:
        while not self._over.is_set():
            try:
                text = self._facts.look()
            except GuardedLLMError:  # who waits for the answer is told
                text = ""
            with self._lock:
                if text != self._text and not self._over.is_set():
                    self._text = text
                    _put(self._erased() + self._line(_width()))
            self._over.wait(INTERVAL)

    def _erased(self) -> str:
        drawn, self._drawn = self._drawn, False
        return _ERASE if drawn else ""

    def _line(self, width: int) -> str:
        # A cursor behind the last column of a row wraps at the next character, unless it was
        # moved in between: then that character would replace the last one.
        if not self._text or self._column >= width or self._over.is_set():
            return ""
        shown = Text(" ".join(harmless(self._text).split()))
        shown.truncate(width - 1, overflow="ellipsis")
        self._drawn = True
        return _ROOM + _DRAW.format(styled(shown.plain, "dim"))


def laid_out(text: str, column: int, width: int) -> tuple[str, int]:
    """A text with spaces for its tabs, and where the cursor is after it.

    Terminals differ in what a tab does in the last column.

    Args:
        text: without control characters but tabs and ends of lines.
        column: where the cursor was; `width` is behind the last column.
        width: columns of the terminal.
    """
    shown = []
    for character in text:
        cells = cell_len(character)
        if character == "\n":
            column = cells = 0
        elif character == "\t":
            cells = min(_TAB - column % _TAB, width - column)
        shown.append(" " * cells if character == "\t" else character)
        column = cells if column + cells > width else column + cells
    return "".join(shown), column


def _width() -> int:
    return shutil.get_terminal_size().columns


def _put(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()
