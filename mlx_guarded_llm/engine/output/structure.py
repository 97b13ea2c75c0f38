"""The structure of an answer: which of its text is thinking, answer or tool calls.

An answer is read once, from its beginning, and a marker counts only where it can mean something:

- Thinking begins before the answer does. Once the answer has begun, its start marker is text.
- A call is read by the grammar of its format (`calls`), which knows where strings are.
- The marker of a call in prose, with no call after it, is text. It holds back at most a few
  hundred characters.
- A marker between two quotation marks is text, and so is a call in quotes that cannot be read.
- A call without a marker counts only at the beginning of the answer.
- A call in the thinking is made if the answer ends with it. If it cannot be read, or more thinking
  follows, the model only considered it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ...results import FinishReason, InvalidToolCall, ToolCall
from ..prompt.tool_format import ToolFormat
from .calls.offered import Offered
from .calls.reading import CallReading
from .strings import Strings

# The states whose text is used. Text in any other state, such as a header, is markup.
ANSWER, REASONING = "normal", "reasoning"

_QUOTES = "`\"'"
_BEFORE_QUOTES = "([{"  # what, besides space, may precede an opening quotation mark
_TRIES = 16


@dataclass(frozen=True)
class Edge:
    """What a marker does.

    Attributes:
        marker: its text.
        to: the state after it.
        form: the format of the call that it begins, if any.
        opening: it counts only before the answer has begun.
    """

    marker: str
    to: str = ANSWER
    form: ToolFormat | None = None
    opening: bool = False


class Part(NamedTuple):
    """A part of an answer: text, calls, or what was meant as a call but is not a valid one.

    Attributes:
        state: what the text is: `ANSWER` or `REASONING`.
    """

    state: str = ANSWER
    text: str = ""
    calls: Sequence[ToolCall] = ()
    invalid: InvalidToolCall | None = None


@dataclass
class _Thought:
    """Calls in the thinking, as long as it is not known whether they are made.

    Attributes:
        text: the calls as they were written, and the space after them.
        space: of the answer, after the end of the thinking.
    """

    text: str = ""
    space: str = ""
    calls: list[ToolCall] = field(default_factory=list)


class _State:
    """The edges out of one state."""

    def __init__(self, edges: Sequence[Edge]) -> None:
        self.edges = {edge.marker: edge for edge in edges}
        self.markers = Strings(self.edges)
        self.later = Strings(edge.marker for edge in edges if not edge.opening)


class Structure:
    """Splits the text of one answer into parts, however it arrives in pieces.

    Newlines between thinking and answer are markup, and so are newlines after a call.

    Args:
        edges: the markers of each state that has any.
        state: the state in which the answer begins.
        offered: the functions that may be called.
    """

    def __init__(self, edges: Mapping[str, Sequence[Edge]], state: str, offered: Offered) -> None:
        self._states = {name: _State(out) for name, out in edges.items()}
        self._no_state = _State(())
        self._offered = offered
        self._name = state
        self._held = ""  # may be the beginning of a marker
        self._plain = 0  # characters after that in which no call begins
        self._said = False  # the answer has begun
        self._after_markup = False
        self._last = ""  # the last characters, at most two
        self._reading: CallReading | None = None
        self._thought: _Thought | None = None
        self._parts: list[Part] = []

    @property
    def state(self) -> str:
        """What the text that comes next belongs to, unless it is a marker."""
        return self._name

    @property
    def undecided(self) -> bool:
        """It is not known yet what the last text belongs to."""
        return bool(self._held) or self._reading is not None or self.considers_calls

    @property
    def considers_calls(self) -> bool:
        """There are calls in the thinking, and it is not known whether they are made."""
        return self._thought is not None

    def feed(self, text: str) -> list[Part]:
        """The parts that are known after this text."""
        self._go_on(text)
        return self._take()

    def finish(self, reason: FinishReason) -> list[Part]:
        """The remaining parts, as nothing will follow."""
        tries = _TRIES
        while (reading := self._reading) is not None:
            reading.finish(reason)
            if self._name == REASONING and not isinstance(reading.outcome, list):
                rest = self._give_back(reading, len(reading.text))
            else:
                rest = self._close(reading)
            tries -= 1
            if not tries:  # a text of nothing but start markers would be read again and again
                self._plain = len(rest)
            self._go_on(rest)
        held, self._held = self._held, ""
        edge = self._states.get(self._name, self._no_state).edges.get(held)
        if edge is None or edge.form is not None or edge.opening:
            self._say(held)
        else:  # at the end it cannot be quoted
            self._follow(edge)
        if self._thought is not None and reason == "stop":
            self._parts.append(Part(calls=self._thought.calls))
        else:
            self._think_on()
        return self._take()

    def _take(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts

    def _go_on(self, text: str) -> None:
        while text:
            text = self._scan(text) if self._reading is None else self._read(text)

    def _scan(self, text: str) -> str:
        """Emit the text up to the next marker and follow that. Returns the text after it."""
        text, self._held = self._held + text, ""
        state = self._states.get(self._name, self._no_state)
        markers = state.later if self._said else state.markers
        at = 0
        while True:
            found, marker = markers.find(text, at)
            if not marker or markers.may_be_longer(text, found):
                break
            edge = state.edges[marker]
            if edge.form is None and not edge.opening:
                quote = _quote((self._last + text[max(0, found - 2) : found])[-2:])
                behind = text[found + len(marker) : found + len(marker) + 1]
                if quote and not behind:  # the next character shows whether the quotation ends here
                    self._pass(text[:found])
                    self._held = text[found:]
                    return ""
                if quote and behind == quote:
                    at = found + len(marker)
                    continue
            if self._counts(edge, text, found):
                self._pass(text[:found], len(marker))
                self._follow(edge)
                return text[found + len(marker) :]
            at = found + len(marker)
        held = max(at, markers.beginning(text))
        self._pass(text[:held])
        self._held = text[held:]
        return ""

    def _counts(self, edge: Edge, text: str, at: int) -> bool:
        """Whether a marker at this position of a text counts."""
        if edge.form is not None and at < self._plain:
            return False
        return not (edge.opening and (self._said or text[:at].strip()))

    def _pass(self, text: str, marker: int = 0) -> None:
        """Emit a text that is followed by a marker of this length."""
        self._plain = max(0, self._plain - len(text) - marker)
        self._say(text)

    def _follow(self, edge: Edge) -> None:
        if edge.form is not None:
            if self._name != REASONING:
                self._think_on()
            self._reading = CallReading(edge.form, self._offered, edge.marker)
            return
        if edge.to != self._name:
            self._plain = 0
            self._after_markup = self._name == REASONING
            self._name = edge.to

    def _read(self, text: str) -> str:
        """Continue reading a call. Returns the text after it."""
        reading = self._reading
        assert reading is not None
        reading.feed(text)
        if reading.error and self._name == REASONING:
            return self._give_back(reading, reading.consumed)
        if reading.hopeless or (reading.error and _quote(self._last)):
            return self._give_back(reading, 1)
        return self._close(reading) if reading.over else ""

    def _give_back(self, reading: CallReading, plain: int) -> str:
        """It was not a call. Returns its text, to be read again as text up to `plain`."""
        self._reading = None
        self._plain = plain
        return reading.text

    def _close(self, reading: CallReading) -> str:
        """Use the outcome of a call. Returns the text after it."""
        self._reading = None
        outcome = reading.outcome
        if isinstance(outcome, str):
            self._say(outcome)
        elif self._name == REASONING and isinstance(outcome, list):
            self._thought = self._thought or _Thought()
            self._thought.text += reading.text[: len(reading.text) - len(reading.rest)]
            self._thought.calls += outcome
        else:
            if isinstance(outcome, InvalidToolCall):
                self._parts.append(Part(invalid=outcome))
            else:
                self._parts.append(Part(calls=outcome))
            self._name = ANSWER
            self._after_markup = True
        return reading.rest

    def _say(self, text: str) -> None:
        """Emit a text in the current state."""
        if not text:
            return
        self._last = (self._last + text)[-2:] if len(text) < 2 else text[-2:]
        if self._name == REASONING:
            if self._thought is not None and text.isspace():
                self._thought.text += text
                return
            self._think_on()
            self._parts.append(Part(REASONING, text))
        elif self._name == ANSWER:
            if self._after_markup:
                text = text.lstrip("\n")
                self._after_markup = not text
                if not text:
                    return
            if self._thought is not None and text.isspace():
                self._thought.space += text
                return
            self._think_on()
            self._said = self._said or not text.isspace()
            self._parts.append(Part(ANSWER, text))

    def _think_on(self) -> None:
        """The thinking goes on after the calls in it, so they are part of it."""
        if self._thought is not None:
            self._parts.append(Part(REASONING, self._thought.text))
            if self._thought.space:
                self._parts.append(Part(ANSWER, self._thought.space))
            self._thought = None


def _quote(before: str) -> str:
    """The opening quotation mark at the end of a text, or ""."""
    if not before or before[-1] not in _QUOTES:
        return ""
    outer = before[-2:-1]
    return before[-1] if not outer or outer.isspace() or outer in _BEFORE_QUOTES else ""
