"""Finding the first of several strings in text that arrives in pieces."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator


class Strings:
    """Strings to look for. The first match is the one that starts first; of these, the longest.

    Args:
        strings: none of them may be empty.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = tuple(sorted(set(strings), key=len, reverse=True))
        self._firsts = frozenset(string[0] for string in self._strings)
        self._longest = len(self._strings[0]) if self._strings else 0
        self._find = re.compile("|".join(map(re.escape, self._strings))).search

    def __iter__(self) -> Iterator[str]:
        return iter(self._strings)

    def __bool__(self) -> bool:
        return bool(self._strings)

    def find(self, text: str, start: int = 0) -> tuple[int, str]:
        """Position and text of the first match; the length of the text and "" if there is none."""
        match = self._find(text, start) if self._strings else None
        return (match.start(), match.group()) if match else (len(text), "")

    def may_be_longer(self, text: str, at: int) -> bool:
        """Whether the text from `at` on may be the beginning of a longer match."""
        size = len(text) - at
        return size < self._longest and any(
            len(string) > size and string.startswith(text[at:]) for string in self._strings
        )

    def beginning(self, text: str, before: int | None = None) -> int:
        """Where the end of the text may begin a match, if that is before `before`."""
        before = len(text) if before is None else before
        for at in range(max(0, len(text) - self._longest + 1), before):
            if text[at] in self._firsts:
                rest = text[at:]
                if any(string.startswith(rest) for string in self._strings):
                    return at
        return before
