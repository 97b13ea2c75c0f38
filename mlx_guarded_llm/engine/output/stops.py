"""Finding stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from .strings import Strings


class StopFinder:
    """Passes text on, up to the first occurrence of any of the stop strings.

    The first one is the one that starts first, even if another is complete before it. So the
    outcome depends only on the text and the strings, and not on how the text arrives. (mlx-lm's
    `TextStateMachine` takes the one that ends first: with "abcd" and "bc", it leaves the "a" of
    "abcd".) Text that may be the beginning of a stop string is held back.

    Attributes:
        found: the stop string that was found, or ""; everything after it is dropped.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = Strings(stops)
        self._held = ""
        self.found = ""

    def add(self, text: str) -> str:
        """The text that is now known to come before any stop string."""
        if not self._stops:
            return text
        if self.found:
            return ""
        text = self._held + text
        stop, found = self._stops.find(text)
        end = self._stops.beginning(text, stop)
        if end < stop or stop == len(text):
            self._held = text[end:]
        else:
            self.found = found
        return text[:end]

    def finish(self) -> str:
        """What was held back, up to a stop string in it, as nothing will follow."""
        held, self._held = self._held, ""
        if self.found:
            return ""
        stop, self.found = self._stops.find(held)
        return held[:stop]
