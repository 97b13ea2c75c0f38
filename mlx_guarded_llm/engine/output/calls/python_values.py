"""Values as Python writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import Any

from .cursor import Cursor
from .values import MAX_DEPTH, NotACall, python_string, python_word

WORD = re.compile(r"[^\s(){}\[\]<>'\",:=]*")
LONGEST_NAME = 256
LONGEST_WORD = 5000  # Python reads integers of 4300 digits


def python_literal(text: str) -> Any:
    """The value that a whole text spells.

    Raises:
        NotACall: it is not a value, or contains something else.
    """
    cursor = Cursor()
    cursor.add(text)
    cursor.ended = True
    try:
        next(_alone(cursor))
    except StopIteration as end:
        return end.value
    raise AssertionError("a cursor that has ended waits for nothing")


def _alone(cursor: Cursor) -> Generator[None, None, Any]:
    value = yield from python_value(cursor, 1)
    yield from cursor.space()
    if cursor.rest:
        raise NotACall(f"{cursor.rest[:20]!r} follows a value")
    return value


def python_items(
    cursor: Cursor, between: str, close: str, depth: int
) -> Generator[None, None, dict[str, Any]]:
    """Names or keys and their values, up to a closing bracket."""
    items: dict[str, Any] = {}
    while True:
        yield from cursor.space()
        if (yield from cursor.take(close)):
            return items
        if between == ":":
            key = yield from python_value(cursor, depth)
        else:
            key = yield from cursor.run(WORD, LONGEST_NAME)
        if not isinstance(key, str) or not (key or between == ":"):
            raise NotACall("a key is no text")
        if key in items:
            raise NotACall(f"{key[:80]!r} is given twice")
        yield from cursor.space()
        yield from cursor.expect(between)
        items[key] = yield from python_value(cursor, depth)
        yield from cursor.space()
        if (yield from cursor.expect(",", close)) == close:
            return items


def python_value(cursor: Cursor, depth: int) -> Generator[None, None, Any]:
    """A string, list, dict, number or word."""
    check_depth(depth)
    yield from cursor.space()
    first = yield from cursor.peek()
    if first and first in "'\"":
        return (yield from _text(cursor, first))
    if (yield from cursor.take("{")):
        return (yield from python_items(cursor, ":", "}", depth + 1))
    if (yield from cursor.take("[")):
        return (yield from value_list(cursor, python_value, depth + 1))
    word = yield from cursor.run(WORD, LONGEST_WORD)
    return python_word(word)


def _text(cursor: Cursor, quote: str) -> Generator[None, None, str]:
    yield from cursor.expect(quote)
    parts = [quote]
    while True:
        text, mark = yield from cursor.until(quote, "\\")
        parts += [text, mark]
        if mark == quote:
            return python_string("".join(parts))
        parts.append((yield from cursor.next()))


def value_list(
    cursor: Cursor, value: Callable[[Cursor, int], Generator[None, None, Any]], depth: int
) -> Generator[None, None, list[Any]]:
    """The values of a list, up to its closing bracket."""
    items: list[Any] = []
    while True:
        yield from cursor.space()
        if (yield from cursor.take("]")):
            return items
        items.append((yield from value(cursor, depth)))
        yield from cursor.space()
        if (yield from cursor.expect(",", "]")) == "]":
            return items


def check_depth(depth: int) -> None:
    """Raise `NotACall` if lists and objects are nested too deeply."""
    if depth > MAX_DEPTH:
        raise NotACall(f"it is nested deeper than {MAX_DEPTH} levels")
