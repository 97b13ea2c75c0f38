"""Formats with their own notation for values: Python's and Gemma's."""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from ....results import ToolCall
from .cursor import Cursor
from .json_forms import Calls, called, objects
from .offered import Offered
from .python_values import (
    LONGEST_NAME,
    LONGEST_WORD,
    WORD,
    check_depth,
    python_items,
    value_list,
)
from .tag_forms import nothing_closes
from .values import NotACall, python_word

_NO_MARK = re.compile(r"[^<>]*")
_LONGEST_OPENING = 1024


def pythonic(
    cursor: Cursor, offered: Offered, start: str, end: str
) -> Generator[None, None, Calls]:
    """`[name(argument=value, ...), ...]`, as Llama 3.2 and LFM 2 write calls."""
    yield from cursor.space()
    yield from cursor.expect("[")
    if (yield from cursor.follows("{")):  # which they write at times
        cursor.back("[")
        return (yield from objects(cursor, offered, start, end))
    calls = yield from python_calls(cursor, offered)
    if not (yield from cursor.end(end, start)):
        raise NotACall(f"{cursor.rest[:20]!r} follows the calls")
    return calls


def python_calls(cursor: Cursor, offered: Offered) -> Generator[None, None, Calls]:
    """Calls up to the bracket that ends their list."""
    calls: Calls = []
    while True:
        calls.append((yield from _python_call(cursor, offered)))
        yield from cursor.space()
        if (yield from cursor.expect(",", "]")) == "]":
            return calls


def _python_call(cursor: Cursor, offered: Offered) -> Generator[None, None, ToolCall]:
    yield from cursor.space()
    name = yield from cursor.run(WORD, LONGEST_NAME)
    yield from cursor.space()
    yield from cursor.expect("(")
    cursor.begun = True
    arguments = yield from python_items(cursor, "=", ")", 1)
    method = name.removesuffix(".call")  # as Llama 3.1 calls tools
    return offered.call(name if name in offered else method, arguments)


def others(cursor: Cursor, offered: Offered, start: str, end: str) -> Generator[None, None, Calls]:
    """JSON or Python after the marker of another format, separated by ";" or ","."""
    calls: Calls = []
    cursor.begun = True
    yield from cursor.space()
    while True:
        calls += yield from _json_or_python(cursor, offered)
        if (yield from cursor.end(end, start)):
            return calls
        if not (yield from cursor.take(";", ",")) and not end:
            return calls
        yield from cursor.space()


def _json_or_python(cursor: Cursor, offered: Offered) -> Generator[None, None, Calls]:
    first = yield from cursor.peek()
    if first not in ("[", "{"):
        return [(yield from _python_call(cursor, offered))]
    if first == "[":
        yield from cursor.expect("[")
        if not (yield from cursor.follows("{", "]")):
            return (yield from python_calls(cursor, offered))
        cursor.back("[")
    return called((yield from cursor.json()), offered)


@dataclass(frozen=True)
class Gemma:
    """`call:name{key:value}`, with strings between marks.

    Attributes:
        quote: the mark before and after a string.
    """

    quote: str

    def read(
        self, cursor: Cursor, offered: Offered, start: str, end: str
    ) -> Generator[None, None, Calls]:
        """The calls between the markers."""
        calls: Calls = []
        while True:
            yield from cursor.space()
            yield from cursor.expect("call:")
            cursor.begun = True
            name = yield from cursor.run(WORD, LONGEST_NAME)
            yield from cursor.expect("{")
            arguments = yield from self._items(cursor, 1)
            calls.append(offered.call(name, arguments, known=True))
            if (yield from cursor.end(end, start)):
                break
        if any(call.arguments for call in calls):  # a string may have the mark itself in it
            closing = (",", "}", "]")
            yield from nothing_closes(cursor, (self.quote,), closing, start, self._opening)
        return calls

    def _opening(self, cursor: Cursor) -> Generator[None]:
        """What is before the first string of a call, after the first mark."""
        yield from cursor.space()
        yield from cursor.expect("call:")
        yield from cursor.run(WORD, LONGEST_NAME)
        yield from cursor.expect("{")
        before = yield from cursor.run(_NO_MARK, _LONGEST_OPENING)
        if not before.rstrip().endswith((":", "[", ",")):
            raise NotACall("no string begins here")
        yield from cursor.expect(self.quote)

    def _items(self, cursor: Cursor, depth: int) -> Generator[None, None, dict[str, Any]]:
        items: dict[str, Any] = {}
        yield from cursor.space()
        if (yield from cursor.take("}")):
            return items
        while True:
            key = yield from self._key(cursor)
            if key in items:
                raise NotACall(f"{key[:80]!r} is given twice")
            items[key] = yield from self._value(cursor, depth)
            yield from cursor.space()
            if (yield from cursor.expect(",", "}")) == "}":
                return items

    def _key(self, cursor: Cursor) -> Generator[None, None, str]:
        yield from cursor.space()
        if (yield from cursor.take(self.quote)):
            key, _ = yield from cursor.until(self.quote)
            yield from cursor.expect(":")
        else:
            key, _ = yield from cursor.until(":")
        return key

    def _value(self, cursor: Cursor, depth: int) -> Generator[None, None, Any]:
        check_depth(depth)
        yield from cursor.space()
        if (yield from cursor.take(self.quote)):
            return (yield from cursor.value(self.quote, ",", "}", "]"))
        if (yield from cursor.take("{")):
            return (yield from self._items(cursor, depth + 1))
        if (yield from cursor.take("[")):
            return (yield from value_list(cursor, self._value, depth + 1))
        word = yield from cursor.run(WORD, LONGEST_WORD)
        return python_word(word)
