"""A place in text that arrives in pieces.

Its methods are generators; use `yield from` in a grammar. They yield when they need more text.
Text that was read is dropped, so reading a call takes time in proportion to its length, however
small the pieces are.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from .values import CUT_OFF, MAX_DEPTH, NotACall, exact_json

_SPACE = re.compile(r"\s*")
_IN_STRING = re.compile(r'[^"\\]*')
_IN_JSON = re.compile(r"[\s,:0-9+\-.eEaflnrstu]*")
_NEAR = 100  # characters of space that may be between two marks


class Cursor:
    """The text of a call, and how far it has been read.

    Attributes:
        ended: no more text will come.
        begun: the text was meant as a call, because its first mark has been read.
        may_end: the last marker of a call may be missing at the end of the text.
    """

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._kept: list[str] | None = None
        self.ended = False
        self.begun = False
        self.may_end = True

    def add(self, text: str) -> None:
        """More text; then let the grammar go on."""
        self._text = self._text[self._at :] + text
        self._at = 0
        if self._kept is not None:
            self._kept.append(text)

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Look ahead: what is read within this is read again after it."""
        self._kept = [self.rest]
        try:
            yield
        finally:
            self._text, self._at, self._kept = "".join(self._kept), 0, None

    @property
    def rest(self) -> str:
        """The text that has arrived and has not been read."""
        return self._text[self._at :]

    def back(self, text: str) -> None:
        """Go back to before the text that was read last."""
        self._text, self._at = text + self.rest, 0

    def more(self) -> Generator[None]:
        """Wait for more text.

        Raises:
            NotACall: the text has ended.
        """
        if self.ended:
            raise NotACall(CUT_OFF)
        yield

    def space(self) -> Generator[None]:
        """Pass over white space."""
        while True:
            self._at = _space_end(self._text, self._at)
            if self._at < len(self._text) or self.ended:
                return
            yield

    def peek(self) -> Generator[None, None, str]:
        """The next character, which stays; "" at the end."""
        while self._at == len(self._text) and not self.ended:
            yield
        return self._text[self._at : self._at + 1]

    def next(self) -> Generator[None, None, str]:
        """The next character, passed over.

        Raises:
            NotACall: the text has ended.
        """
        char = yield from self.peek()
        if not char:
            raise NotACall(CUT_OFF)
        self._at += 1
        return char

    def take(self, *marks: str) -> Generator[None, None, str]:
        """Read the mark that comes next. Returns it, or "" if none of them comes."""
        while True:
            for mark in marks:
                if self._text.startswith(mark, self._at):
                    self._at += len(mark)
                    return mark
            rest = self._text[self._at : self._at + max(map(len, marks))]
            if self.ended or not any(mark.startswith(rest) for mark in marks):
                return ""
            yield

    def expect(self, *marks: str) -> Generator[None, None, str]:
        """As `take`.

        Raises:
            NotACall: none of the marks comes.
        """
        mark = yield from self.take(*marks)
        if not mark:
            rest = self.rest
            if self.ended and any(mark.startswith(rest) for mark in marks):
                raise NotACall(CUT_OFF)
            raise NotACall(f"{' or '.join(marks)} was to come, not {rest[:20]!r}")
        return mark

    def end(self, mark: str, *nexts: str) -> Generator[None, None, bool]:
        """Whether the call ends here, after white space.

        It ends at its last marker, which is read; at the beginning of the next call, which is not
        read; and at the end of the text, if the marker may be missing.
        """
        yield from self.space()
        if self.may_end and not (yield from self.peek()):
            return True
        if mark and (yield from self.take(mark)):
            return True
        return bool(nexts) and (yield from self.follows(*nexts))

    def run(self, pattern: re.Pattern[str], limit: int) -> Generator[None, None, str]:
        """Read the characters that match a pattern, up to a limit.

        Raises:
            NotACall: there are more.
        """
        while True:
            match = pattern.match(self._text, self._at)
            end = match.end() if match else self._at
            if end - self._at > limit:
                raise NotACall(f"a word of more than {limit} characters")
            if end < len(self._text) or self.ended:
                found = self._text[self._at : end]
                self._at = end
                return found
            yield

    def until(self, *marks: str) -> Generator[None, None, tuple[str, str]]:
        """The text before the first of these marks, and the mark, which is passed over.

        Raises:
            NotACall: the text ends without one.
        """
        pattern, keep = _any_of(marks)
        parts = []
        while True:
            match = pattern.search(self._text, self._at)
            if match:
                parts.append(self._text[self._at : match.start()])
                self._at = match.end()
                return "".join(parts), match.group()
            edge = max(self._at, len(self._text) - keep)
            parts.append(self._text[self._at : edge])
            self._at = edge
            yield from self.more()

    def until_end(self) -> Generator[None, None, str]:
        """All that is still to come."""
        parts = []
        while True:
            parts.append(self.rest)
            self._at = len(self._text)
            if self.ended:
                return "".join(parts)
            yield

    def value(self, close: str, *nexts: str) -> Generator[None, None, str]:
        """The text before a closing tag.

        A tag that is not followed by one of `nexts` closes nothing; it belongs to the text.
        """
        parts = []
        while True:
            parts.append((yield from self.until(close))[0])
            if (yield from self.follows(*nexts)):
                return "".join(parts)
            parts.append(close)

    def follows(self, *marks: str) -> Generator[None, None, bool]:
        """Whether one of the marks comes next, after white space; nothing is passed over."""
        longest = max(map(len, marks))
        while True:
            at = _space_end(self._text, self._at)
            rest = self._text[at : at + longest]
            if any(rest.startswith(mark) for mark in marks):
                return True
            hopeless = not any(mark.startswith(rest) for mark in marks)
            if hopeless or self.ended or at - self._at > _NEAR:
                return False
            yield

    def starts(self, pattern: Any) -> Generator[None, None, str]:
        """The group of a pattern that matches the next text, which is not read.

        Args:
            pattern: of the package `regex`, which supports partial matches.
        """
        while True:
            match = pattern.match(self._text, self._at, partial=not self.ended)
            if match is None or not match.partial:
                return str(match.lastgroup) if match else ""
            yield

    def json(self) -> Generator[None, None, Any]:
        """The JSON object or list that comes next.

        Raises:
            NotACall: something else comes, or it is invalid.
        """
        first = yield from self.peek()
        if first not in ("{", "["):
            raise NotACall(f"JSON was to come, not {self.rest[:20]!r}" if first else CUT_OFF)
        self.begun = True
        parts: list[str] = []
        depth, in_string = 0, False
        while True:
            text, at = self._text, self._at
            while at < len(text):
                at = _end(_IN_STRING if in_string else _IN_JSON, text, at)
                if at == len(text):
                    break
                char = text[at]
                if char == '"':
                    in_string = not in_string
                elif char == "\\" and in_string:
                    if at + 1 == len(text):
                        break  # the escaped character has not arrived yet
                    at += 1
                elif char in "{[":
                    depth += 1
                    if depth > MAX_DEPTH:
                        self._at = at
                        raise NotACall(f"it is nested deeper than {MAX_DEPTH} levels")
                elif char in "}]":
                    depth -= 1
                else:
                    self._at = at
                    raise NotACall(f"it is not JSON: {text[at : at + 20]!r} stands in it")
                at += 1
                if not depth:
                    parts.append(text[self._at : at])
                    self._at = at
                    return exact_json("".join(parts))
            parts.append(text[self._at : at])
            self._at = at
            yield from self.more()


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _space_end(text: str, at: int) -> int:
    return _end(_SPACE, text, at)


@lru_cache(maxsize=256)
def _any_of(marks: tuple[str, ...]) -> tuple[re.Pattern[str], int]:
    """What finds any of the marks, and how much of an end may be the beginning of one."""
    longest = sorted(marks, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest))), len(longest[0]) - 1
