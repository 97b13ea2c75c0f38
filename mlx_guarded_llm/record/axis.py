"""The time axis that the charts share, and which state is drawn over which."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .timeline import Row

# Later ones are drawn over earlier ones: a load that takes a blink must be seen.
DRAWN = (
    "waiting",
    "deferred",
    "prefill",
    "decode",
    "paused",
    "recovering",
    "unloading",
    "running",
    "loading",
)
WAITS = ("waiting", "deferred")
STILL = ("paused", "recovering")  # started, but nothing steps
DEATHS = ("engine.failed", "engine.died")


def ticks(seconds: float, most: int) -> list[float]:
    """At most `most` round times (1, 2 or 5 times a power of ten) from 0 to `seconds`."""
    if seconds < 1e-9 or most < 2:  # no clock is that fine
        return [0.0]
    rough = seconds / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    return [number * step for number in range(math.floor(seconds / step + 1e-9) + 1)]


def tick_label(time: float) -> str:
    """A tick's time without idle digits: "0.5 s", "120 s"."""
    return f"{time:g} s"


def states_in(rows: Iterable[Row]) -> list[str]:
    """The states that occur, in the order of the legend."""
    present = {span.state for row in rows for span in row.spans}
    return [state for state in DRAWN if state in present]
