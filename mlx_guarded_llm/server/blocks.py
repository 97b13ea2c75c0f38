"""An answer as blocks: stretches of thinking and of text, and calls, one after another.

Some APIs tell an answer so, whole or as it grows. Both are made of the same steps, and
so a stream says what the whole answer would have said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..fallback.candidate import as_chunk
from ..results import Chunk, InvalidToolCall, Result, ToolCall
from .events import compact

Kind = Literal["reasoning", "text", "call"]


@dataclass(frozen=True)
class Block:
    """One of them.

    Attributes:
        place: among all, from 0.
        text: so far; of a call, its arguments as JSON.
        call: if it is one.
        cut: the limit of tokens ended it.
    """

    place: int
    kind: Kind
    text: str = ""
    call: ToolCall | None = None
    cut: bool = False


@dataclass(frozen=True)
class Step:
    """What becomes of a block: it begins, without text; it grows by a text; or it ends.

    Attributes:
        block: as it is then.
        text: that it grows by.
    """

    what: Literal["begins", "grows", "ends"]
    block: Block
    text: str = ""


class Blocks:
    """Makes steps of the pieces of an answer."""

    def __init__(self) -> None:
        self._open: Block | None = None
        self._count = 0

    def add(self, chunk: Chunk) -> Iterator[Step]:
        """The steps of a piece; the last piece ends what is open.

        What was meant as a call and is none is text: it is not to vanish.
        """
        yield from self._grow("reasoning", chunk.reasoning)
        yield from self._grow("text", chunk.text)
        for invalid in chunk.invalid_tool_calls:
            yield from self._grow("text", invalid.text)
        for call in chunk.tool_calls:
            yield from self._end()
            yield self._begin("call", call)
            yield from self._grow("call", compact(call.arguments))
        if chunk.finish_reason is not None:
            yield from self._end(cut=chunk.finish_reason == "length")

    def _grow(self, kind: Kind, text: str) -> Iterator[Step]:
        if not text:
            return
        if self._open is None or self._open.kind != kind:
            yield from self._end()
            yield self._begin(kind)
        was = self._open
        assert was is not None
        self._open = replace(was, text=was.text + text)
        yield Step("grows", self._open, text)

    def _begin(self, kind: Kind, call: ToolCall | None = None) -> Step:
        self._open = Block(self._count, kind, call=call)
        self._count += 1
        return Step("begins", self._open)

    def _end(self, *, cut: bool = False) -> Iterator[Step]:
        if self._open is not None:
            yield Step("ends", replace(self._open, cut=cut))
            self._open = None


def blocks_of(result: Result) -> list[Block]:
    """Those of a whole answer."""
    return [step.block for step in Blocks().add(as_chunk(result)) if step.what == "ends"]


def flagged(calls: Sequence[InvalidToolCall]) -> dict[str, Any]:
    """The field that marks invalid tool calls, if there are any."""
    if not calls:
        return {}
    return {"invalid_tool_calls": [{"text": call.text, "error": call.error} for call in calls]}
