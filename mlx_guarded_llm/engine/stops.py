"""Finding stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Passes text on up to the first place where any of the stop strings stands.

    "First" is where it starts, whichever completes first, so the outcome depends on
    the text and the strings only, and not on how the text was cut. (mlx-lm's
    `TextStateMachine` takes the one that ends first: of "abcd" and "bc" in "abcd" it
    leaves an "a".) Text that may be the beginning of a stop string is held back.

    Attributes:
        found: the text has reached a stop string; whatever follows is dropped.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._firsts = frozenset(stop[0] for stop in stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """The text that is now known to stand before any stop string."""
        if not self._stops:
            return text
        if self.found:
            return ""
        text = self._held + text
        stop = self._find(text)
        end = self._find_beginning(text, before=stop)
        if end < stop or stop == len(text):
            self._held = text[end:]
        else:
            self.found = True
        return text[:end]

    def finish(self) -> str:
        """What was held back, up to a stop string in it; nothing will follow."""
        held, self._held = self._held, ""
        if self.found:
            return ""
        stop = self._find(held)
        self.found = stop < len(held)
        return held[:stop]

    def _find(self, text: str) -> int:
        """Where the first whole stop string starts, or the length of the text."""
        return min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=len(text))

    def _find_beginning(self, text: str, before: int) -> int:
        """Where the text's end first begins a stop string, if that is before `before`."""
        for at in range(max(0, len(text) - self._longest + 1), before):
            if text[at] in self._firsts:
                rest = text[at:]
                if any(stop.startswith(rest) for stop in self._stops):
                    return at
        return before
