"""Formats in which each argument is text between tags.

Nothing in such a text is escaped. So only what follows a closing tag shows whether it closes the
argument or belongs to it. A text that is ambiguous is not a call:

- A text that has all the tags of an end in it would come back cut off, and its rest as the
  answer. So behind a call, up to an argument of the next or the end, no argument may be closed.
- A text that has the opening tag of an argument of its function in it may be two arguments,
  of which the first was not closed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import lru_cache, partial

from ....results import ToolCall
from .cursor import Cursor
from .json_forms import Calls, called, objects
from .offered import Offered
from .values import NotACall, exact_json

_NAME = re.compile(r"[^\s<>\"'{}]*")
_LONGEST_NAME = 256
_LONGEST_TAG = 1024
_TAG = re.compile(r"[^<>]*")
_ATTRIBUTE = re.compile(r"""\s*([\w:-]+)\s*=\s*(?:"([^"]*)"|'([^']*)')\s*""")
_CDATA = re.compile(r"\s*<!\[CDATA\[(.*)\]\]>\s*", re.DOTALL)


@dataclass(frozen=True)
class Tags:
    """Functions with parameters, as `<function=name>` or `<invoke name="name">`.

    Attributes:
        function: what a function begins with, and `parameter` a parameter. One that ends
            in "=" is followed by the name, else by attributes, of which one is `name`.
        function_end: what a function ends with, and `parameter_end` a parameter.
        lines: the template writes a line break before and after each argument.
        cdata: an argument may be in a CDATA block.
    """

    function: str
    function_end: str
    parameter: str
    parameter_end: str
    lines: bool = False
    cdata: bool = False

    def read(
        self, cursor: Cursor, offered: Offered, start: str, end: str
    ) -> Generator[None, None, Calls]:
        """The functions between the markers; without any if `start` is a function's own."""
        bare = start == self.function
        calls: Calls = []
        yield from cursor.space()
        if (yield from cursor.peek()) == "{":  # the JSON of other models
            return (yield from objects(cursor, offered, start, end))
        while True:
            yield from cursor.space()
            yield from cursor.expect(self.function)
            calls.append((yield from self._function(cursor, offered)))
            if bare:  # the marker before was left out; the one after may be there
                if end != self.function_end and (yield from cursor.follows(end)):
                    yield from cursor.end(end)
                break
            if (yield from cursor.end(end, start)):
                break
        if any(call.arguments for call in calls):
            closing = (self.parameter, self.function_end)
            tags = (self.parameter_end,)
            yield from nothing_closes(cursor, tags, closing, self.function, self._opening)
        return calls

    def _opening(self, cursor: Cursor) -> Generator[None]:
        """The tags before the text of a function's first argument, after the first mark."""
        yield from _name(cursor, self.function)
        yield from cursor.space()
        yield from cursor.expect(self.parameter)
        yield from _name(cursor, self.parameter)

    def _function(self, cursor: Cursor, offered: Offered) -> Generator[None, None, ToolCall]:
        """One function, after the mark with which it begins."""
        name = yield from _name(cursor, self.function)
        yield from cursor.space()
        first = yield from cursor.peek()
        cursor.begun = cursor.begun or name in offered or first in ("<", "{")
        if first == "{":  # as Llama writes arguments
            arguments = yield from cursor.json()
            yield from cursor.space()
            yield from cursor.expect(self.function_end)
            return offered.call(name, arguments)
        texts = []
        while (yield from cursor.expect(self.parameter, self.function_end)) == self.parameter:
            key = yield from _name(cursor, self.parameter)
            text = yield from cursor.value(self.parameter_end, self.parameter, self.function_end)
            opened = _opened(self.parameter, ">" if self.parameter.endswith("=") else "")
            check_closed(offered, name, text, opened)
            texts.append((key, self._plain(text)))
            yield from cursor.space()
        return offered.call_of_texts(name, texts)

    def _plain(self, text: str) -> str:
        if self.lines:
            text = text.removeprefix("\n").removesuffix("\n")
        if self.cdata and (match := _CDATA.fullmatch(text)):
            return match[1]
        return text


def pairs(
    cursor: Cursor, offered: Offered, start: str, end: str, *, prefix: str = ""
) -> Generator[None, None, Calls]:
    """`name<arg_key>key</arg_key><arg_value>text</arg_value>`, as GLM writes a call.

    The end marker may not be missing: more arguments could have come.
    """
    key_tag, value_tag = f"{prefix}arg_key>", f"{prefix}arg_value>"
    cursor.may_end = False
    yield from cursor.space()
    if (yield from cursor.peek()) == "{":  # LongCat may write JSON, and others do
        calls = called((yield from cursor.json()), offered)
        yield from cursor.space()
        yield from cursor.expect(end)
        return calls
    name = yield from cursor.run(_NAME, _LONGEST_NAME)
    cursor.begun = name in offered
    texts = []
    yield from cursor.space()
    if cursor.begun and (yield from cursor.peek()) == "{":
        arguments = yield from cursor.json()
        yield from cursor.space()
        yield from cursor.expect(end)
        return [offered.call(name, arguments)]
    while (yield from cursor.expect(f"<{key_tag}", end)) != end:
        cursor.begun = True
        key, _ = yield from cursor.until(f"</{key_tag}")
        yield from cursor.space()
        yield from cursor.expect(f"<{value_tag}")
        text = yield from cursor.value(f"</{value_tag}", f"<{key_tag}", end)
        check_closed(offered, name, text, _opened(f"<{key_tag}", f"</{key_tag}"))
        texts.append((key.strip(), text))
        yield from cursor.space()
    calls = [offered.call_of_texts(name, texts)]

    def opening(cursor: Cursor) -> Generator[None]:
        yield from cursor.run(_TAG, _LONGEST_TAG)
        yield from cursor.expect(f"<{key_tag}")
        yield from cursor.run(_TAG, _LONGEST_TAG)
        yield from cursor.expect(f"</{key_tag}")
        yield from cursor.space()
        yield from cursor.expect(f"<{value_tag}")

    if texts:
        closing = (f"<{key_tag}", end)
        yield from nothing_closes(cursor, (f"</{value_tag}",), closing, start, opening)
    return calls


longcat = partial(pairs, prefix="longcat_")


def xtml(cursor: Cursor, offered: Offered, start: str, end: str) -> Generator[None, None, Calls]:
    """`<|open|>call tool="name"<|sep|>` and arguments with types, as Kimi K3 writes calls."""
    argument, close = "<|open|>argument", "<|close|>argument<|sep|>"
    block, block_end, call_end = "<|open|>json", "<|close|>json<|sep|>", "<|close|>call<|sep|>"
    calls: Calls = []
    while True:
        yield from cursor.space()
        yield from cursor.expect("<|open|>call")
        cursor.begun = True
        name = (yield from _attributes(cursor, "<|sep|>")).get("tool", "")
        values: dict[str, object] = {}
        yield from cursor.space()
        while (mark := (yield from cursor.expect(argument, block, call_end))) != call_end:
            attributes = yield from _attributes(cursor, "<|sep|>")
            key = attributes.get("key", "")
            if mark == block:
                new = exact_json((yield from cursor.value(block_end, call_end)))
            else:
                text = yield from cursor.value(close, argument, call_end)
                is_text = attributes.get("type", "string") == "string"
                new = {key: text if is_text else exact_json(text)}
            if not isinstance(new, dict) or new.keys() & values.keys():
                raise NotACall(f"the arguments of {name} are no object, or one is given twice")
            values |= new
            yield from cursor.space()
        calls.append(offered.call(name, values, known=True))
        if (yield from cursor.end(end)):
            break

    def opening(cursor: Cursor) -> Generator[None]:
        yield from _attributes(cursor, "<|sep|>")
        yield from cursor.space()
        yield from cursor.expect(argument, block)
        yield from _attributes(cursor, "<|sep|>")

    tags, closing = (close, block_end), (argument, call_end)
    yield from nothing_closes(cursor, tags, closing, "<|open|>call", opening)
    return calls


def nothing_closes(
    cursor: Cursor,
    tags: tuple[str, ...],
    nexts: tuple[str, ...],
    start: str,
    opening: Callable[[Cursor], Generator[None]],
) -> Generator[None]:
    """Look ahead for a tag that closes an argument, although none is open.

    The next call ends the search once it has a whole argument. Its first mark alone does not:
    it may be text of an argument, as anything else may.

    Args:
        cursor: after a call.
        tags: each closes an argument if one of `nexts` follows.
        nexts: the tags that may follow.
        start: the mark with which a call begins.
        opening: reads what is between that mark and the text of an argument.

    Raises:
        NotACall: there is one, so earlier closing tags may belong to an argument.
    """
    with cursor.ahead():
        try:
            closes = yield from _closes(cursor, tags, nexts, start, opening)
        except NotACall:
            closes = False  # the text ends without one
    if closes:
        raise NotACall("an argument has the closing tags of a call in it")


def _closes(
    cursor: Cursor,
    tags: tuple[str, ...],
    nexts: tuple[str, ...],
    start: str,
    opening: Callable[[Cursor], Generator[None]],
) -> Generator[None, None, bool]:
    while True:
        _, mark = yield from cursor.until(start, *tags)
        if mark != start:
            if (yield from cursor.follows(*nexts)):
                return True
            rest = cursor.rest.lstrip()
            if cursor.ended and any(next_.startswith(rest) for next_ in nexts):
                return True  # the next mark may be incomplete
            continue
        try:
            yield from opening(cursor)
        except NotACall:
            continue
        while True:
            yield from cursor.until(*tags)
            if (yield from cursor.follows(*nexts)):
                return False


def check_closed(offered: Offered, name: str, text: str, opened: re.Pattern[str]) -> None:
    """Check that the text of an argument does not contain another argument.

    Args:
        offered: the functions.
        name: of the one that is called.
        text: of the argument.
        opened: finds the name of an argument in the tag that opens it.

    Raises:
        NotACall: another argument begins in it.
    """
    for match in opened.finditer(text):
        if offered.takes(name, match[1]):
            raise NotACall(f"before the argument {match[1][:80]!r} another one was not closed")


@lru_cache(maxsize=64)
def _opened(before: str, behind: str) -> re.Pattern[str]:
    """A pattern that finds the name of an argument in its opening tag."""
    name = r"""\s{0,9}(?:name=)?["']?([^\s<>"'{}]+)["']?\s{0,9}"""
    return re.compile(re.escape(before) + name + re.escape(behind))


def _name(cursor: Cursor, tag: str) -> Generator[None, None, str]:
    if not tag.endswith("="):
        return (yield from _attributes(cursor, ">")).get("name", "")
    quote = yield from cursor.take('"', "'")
    name = yield from cursor.run(_NAME, _LONGEST_NAME)
    if quote:
        yield from cursor.expect(quote)
    yield from cursor.space()
    yield from cursor.expect(">")
    return name


def _attributes(cursor: Cursor, close: str) -> Generator[None, None, dict[str, str]]:
    """Read the attributes in a tag, and its end.

    Raises:
        NotACall: there is something else in it.
    """
    text = yield from cursor.run(_TAG, _LONGEST_TAG)
    yield from cursor.expect(close)
    found, at = {}, 0
    while match := _ATTRIBUTE.match(text, at):
        value = match[2] if match[2] is not None else match[3]
        found[match[1]] = value.replace("&quot;", '"').replace("&amp;", "&")
        at = match.end()
    if text[at:].strip():
        raise NotACall(f"{text[at : at + 20]!r} stands in a tag")
    return found
