"""What the charts share: the time axis, and which state is drawn over which."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .timeline import Row

# Later ones are drawn over earlier ones, so that even a very short load can be seen.
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
STILL = ("paused", "recovering")  # started, but nothing is generated
DEATHS = ("engine.failed", "engine.died")


def ticks(seconds: float, most: int) -> list[float]:
    """At most `most` round times (1, 2 or 5 times a power of ten) from 0 to `seconds`."""
    if seconds < 1e-9 or most < 2:  # shorter than any clock can measure
        return [0.0]
    rough = seconds / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    return [number * step for number in range(math.floor(seconds / step + 1e-9) + 1)]


def tick_label(time: float) -> str:
    """The time of a tick without trailing zeros: "0.5 s", "120 s"."""
    return f"{time:g} s"


def states_in(rows: Iterable[Row]) -> list[str]:
    """The states that occur, in the order of the legend."""
    present = {span.state for row in rows for span in row.spans}
    return [state for state in DRAWN if state in present]
