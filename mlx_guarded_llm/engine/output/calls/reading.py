"""The text of one call, or of several between one pair of markers, as it arrives."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import lru_cache
from typing import TYPE_CHECKING

from ....results import FinishReason, InvalidToolCall, ToolCall
from ..strings import Strings
from .cursor import Cursor
from .json_forms import Calls
from .offered import Offered
from .values import CUT_OFF, NotACall

if TYPE_CHECKING:
    from ...prompt.tool_format import ToolFormat

Grammar = Callable[[Cursor, Offered, str, str], Generator[None, None, Calls]]

MAX_CHARACTERS = 1_000_000  # of a call; a longer one is not read
_LONGEST_MENTION = 300  # characters of a text that turns out not to be meant as a call


class CallReading:
    """The text after a marker that begins a call.

    Feed it until it is `over`. As long as the text follows the grammar of its format, the grammar
    determines where it ends. If it no longer does, `error` says why, and it ends at the next
    marker, wherever that is.

    Args:
        form: the format.
        offered: what may be called.
        start: the marker.

    Attributes:
        over: it has ended, and `outcome` is set.
        outcome: the calls, or an invalid call, or the text, if no call was meant.
        rest: the text after it that has arrived already.
        error: why it is not a call, as soon as that is known.
        hopeless: the text after the marker shows that no call was meant.
    """

    def __init__(self, form: ToolFormat, offered: Offered, start: str) -> None:
        self.over = False
        self.outcome: list[ToolCall] | InvalidToolCall | str = ""
        self.rest = ""
        self.error = ""
        self.hopeless = False
        self._form = form
        self._start = start
        self._in_text = start in form.bare  # the marker belongs to the text of the call
        self._parts: list[str] = []
        self._size = 0
        self._cursor = Cursor()
        self._grammar = form.grammar(self._cursor, offered, start, form.end)
        self._ends = _ends(form, start)
        self._unread = ""  # the end of a text that is not a call, where a marker may begin
        if self._in_text:
            self.feed(start)

    @property
    def begun(self) -> bool:
        """The text is meant as a call."""
        return self._cursor.begun

    @property
    def text(self) -> str:
        """The whole text as the model wrote it, including the marker before it."""
        return ("" if self._in_text else self._start) + "".join(self._parts)

    @property
    def consumed(self) -> int:
        """Characters of `text` that the grammar had read when it found an error."""
        return len(self.text) - len(self._cursor.rest)

    def feed(self, text: str) -> None:
        """Take more text."""
        self._parts.append(text)
        self._size += len(text)
        if self.error:
            self._search(text)
            return
        if self._size > MAX_CHARACTERS:
            self._fail(f"it is longer than {MAX_CHARACTERS} characters")
            return
        self._cursor.add(text)
        try:
            next(self._grammar)
        except StopIteration as end:
            self._end(end.value, self._cursor.rest)
        except NotACall as error:
            self._fail(str(error))

    def finish(self, reason: FinishReason) -> None:
        """The answer ends here.

        A model that stopped by itself may have left out the marker. Cut off by length or
        cancelled, half a call could pass for a whole one, so the marker must be there,
        unless the format has none.
        """
        body = "".join(self._parts)
        if self.error:
            meant = self.begun
            self._end(InvalidToolCall(body, self.error) if meant else self.text, "")
            return
        self._cursor.ended = True
        self._cursor.may_end &= reason == "stop" or not self._form.end
        try:
            next(self._grammar)
        except StopIteration as end:
            self._end(end.value, self._cursor.rest)
        except NotACall:
            by_itself = reason == "stop" or self._form.unmarked
            if by_itself and self._form.end and self._form.end in body:
                # The end marker was read as part of a string that was never closed.
                self._fail(CUT_OFF)
            elif by_itself and not self.begun and body.strip():
                self._end(self.text, "")  # such as the last words of a sentence
            else:
                self._end(InvalidToolCall(body, CUT_OFF), "")

    def _fail(self, error: str) -> None:
        """It is not a call. Look for a marker that ends it, from its beginning on."""
        self.error = error
        self.hopeless = self._form.unmarked and not self.begun
        self._search("".join(self._parts)[len(self._start) if self._in_text else 0 :])

    def _search(self, text: str) -> None:
        text = self._unread + text
        at, mark = self._ends.find(text)
        place = self._size - len(text) + (at if mark else self._ends.beginning(text))
        if place > _LONGEST_MENTION and not self.begun:
            self.hopeless = True
            return
        if not mark:
            self._unread = text[self._ends.beginning(text) :]
            return
        body = "".join(self._parts)
        before = body[:place]
        if mark == self._form.end:
            self._end(InvalidToolCall(before, self.error), text[at + len(mark) :])
        elif self.begun:
            self._end(InvalidToolCall(before, self.error), text[at:])
        else:
            self._end(("" if self._in_text else self._start) + before, text[at:])

    def _end(self, outcome: list[ToolCall] | InvalidToolCall | str, rest: str) -> None:
        self.over, self.outcome, self.rest = True, outcome, rest


@lru_cache(maxsize=64)
def _ends(form: ToolFormat, start: str) -> Strings:
    """The marks that end a text that is not a call."""
    return Strings(filter(None, (form.end, *(form.breaks or (form.start, start)))))
