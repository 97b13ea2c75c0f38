"""What happened: typed events, kept in a bounded record, logged, explained and drawn.

The guard and the backend append `events` to the `Record` in `log`. Every view goes the same
way: `histories` puts the events of one request or job together, `spans` and `timeline` turn
them into stretches of time, and `chart_text`, `chart_svg` and `perfetto` draw those. `explain`
tells one request's story, `reason` what it does or waits for now. `phrases` words numbers and
names for all of them. `speeds` measures how long things take.
"""

from typing import TYPE_CHECKING, Any

from .chart_svg import write_svg
from .events import Event, Kind
from .explain import explain
from .log import Record
from .perfetto import read_perfetto, to_perfetto, write_perfetto
from .spans import Span
from .timeline import Mark, Row, Timeline, overlaps, timeline

if TYPE_CHECKING:
    from .chart_text import render_text

__all__ = [
    "Event",
    "Kind",
    "Record",
    "explain",
    "Timeline",
    "Row",
    "Span",
    "Mark",
    "timeline",
    "overlaps",
    "read_perfetto",
    "render_text",
    "to_perfetto",
    "write_perfetto",
    "write_svg",
]


def __getattr__(name: str) -> Any:
    # Only what draws in a terminal pays for the import of rich.
    if name == "render_text":
        from .chart_text import render_text

        return render_text
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
