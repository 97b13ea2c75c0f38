"""What happened: typed events, kept, logged, told in words and drawn."""

from typing import TYPE_CHECKING, Any

from .events import Event, Kind
from .explain import explain
from .log import Record
from .perfetto import to_perfetto, write_perfetto
from .spans import Span
from .timeline import Mark, Row, Timeline, overlaps, timeline

if TYPE_CHECKING:
    from .text import render_text

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
    "render_text",
    "to_perfetto",
    "write_perfetto",
]


def __getattr__(name: str) -> Any:
    # Only what draws in a terminal pays for the import of rich.
    if name == "render_text":
        from .text import render_text

        return render_text
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
