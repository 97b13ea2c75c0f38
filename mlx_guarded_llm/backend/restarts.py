"""When a dead engine is started again."""

from __future__ import annotations

FIRST_WAIT = 0.25  # seconds, doubled by each further death
LONGEST_WAIT = 30.0
CAP = 10  # deaths in a row
APART = 600.0  # seconds between two deaths that have nothing to do with each other


class Restarts:
    """Counts deaths in a row: with no token and no load between them.

    The first is answered at once: most engines die of something that does not come again.
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self._last = float("-inf")

    def died(self, now: float, progressed: bool) -> float | None:
        """An engine has died.

        Args:
            now: seconds of a monotonic clock.
            progressed: it had passed on a token or loaded a model since its start.

        Returns:
            Seconds to wait before the next start; None at the cap: then only a new
            request starts one more, each time.
        """
        if progressed or now - self._last > APART:
            self._in_a_row = 0
        self._last = now
        self._in_a_row += 1
        if self._in_a_row == 1:
            return 0.0
        if self._in_a_row >= CAP:
            return None
        return min(FIRST_WAIT * 2.0 ** (self._in_a_row - 2), LONGEST_WAIT)
