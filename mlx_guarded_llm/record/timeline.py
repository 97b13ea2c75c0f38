"""Who did what when: the record as rows of spans, one row for each model."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .events import Event
from .lives import JobLife, Lives, RequestLife, read
from .spans import EXCLUSIVE, Interval, Span, job_spans, request_spans

if TYPE_CHECKING:
    from rich.console import RenderableType

FOREIGN = "backend.run"  # the row of work that belongs to no model


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A moment worth a sign: something failed or was cut off, or the engine changed.

    Attributes:
        kind: "failed", "cancelled", "interrupted" (a load that is tried again), or the
            kind of an event of the engine or of a model that it is not to load.
        time: seconds of `time.monotonic()`.
        row: the model, `FOREIGN`, or None for the engine.
        lane: the lane of what failed.
        label: the request, the job in words, that model, or "engine".
        cause: why.
    """

    kind: str
    time: float
    row: str | None
    lane: int
    label: str
    cause: str = ""


@dataclass(frozen=True)
class Row:
    """One model's spans in order of time, and how many lanes they take."""

    model: str
    spans: tuple[Span, ...]
    lanes: int


@dataclass(frozen=True)
class Timeline:
    """The record as spans. It shows itself in a terminal (rich) and in a notebook.

    Attributes:
        rows: one for each model, in order of first appearance.
        marks: failures, cancels and engine events, in order of time.
        start: time of the first event.
        end: time of the last event.
        lives: what the spans were made from.
    """

    rows: tuple[Row, ...]
    marks: tuple[Mark, ...]
    start: float
    end: float
    lives: Lives = field(repr=False, compare=False)

    def spans(self) -> Iterator[Span]:
        """The spans of all rows."""
        for row in self.rows:
            yield from row.spans

    def __rich__(self) -> RenderableType:
        from .text import render_text

        return render_text(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """In IPython's terminal."""
        from .text import plain_text

        printer.text(plain_text(self))

    def _repr_html_(self) -> str:
        from .svg import render_svg

        return render_svg(self)


def timeline(events: Iterable[Event]) -> Timeline:
    """Compute the timeline of `events`, such as those of `backend.events()`."""
    lives = read(events)
    groups: dict[str, tuple[list[JobLife], list[RequestLife]]] = {}
    everyone: list[JobLife | RequestLife] = [*lives.requests.values(), *lives.jobs]
    for life in sorted(everyone, key=lambda life: life.seen):
        foreign = isinstance(life, JobLife) and life.subject == "run"
        name = FOREIGN if foreign else life.model or "?"
        jobs, requests = groups.setdefault(name, ([], []))
        if isinstance(life, JobLife):
            jobs.append(life)
        else:
            requests.append(life)
    rows = []
    marks = [
        Mark(kind=e.kind, time=e.time, row=None, lane=0, label=_label(e), cause=e.cause)
        for e in lives.engine
    ]
    for name, (jobs, requests) in groups.items():
        row, row_marks = _row(name, jobs, requests, lives.last)
        rows.append(row)
        marks += row_marks
    marks.sort(key=lambda mark: mark.time)
    return Timeline(tuple(rows), tuple(marks), lives.first, lives.last, lives)


def overlaps(timeline: Timeline) -> list[tuple[Span, Span]]:
    """Every pair of exclusive work and a generation that stepped at the same time.

    A paused generation does not step. Under the guard there is no such pair.

    Returns:
        (loading, unloading or running span, generating span), in order of time.
    """
    exclusive: list[Span] = []
    generating: list[Span] = []
    found = []
    for span in sorted(timeline.spans(), key=lambda span: span.start):
        # What has ended by now can meet neither this span nor a later one.
        if span.kind == "generating":
            exclusive = [other for other in exclusive if other.end > span.start]
            found += [(other, span) for other in exclusive if other.start < span.end]
            generating.append(span)
        elif span.kind in EXCLUSIVE.values():
            generating = [other for other in generating if other.end > span.start]
            found += [(span, other) for other in generating if other.start < span.end]
            exclusive.append(span)
    return found


def _label(event: Event) -> str:
    model = event.kind.startswith("model.") and event.model
    return model or "engine"


def _row(
    name: str, jobs: Sequence[JobLife], requests: Sequence[RequestLife], last: float
) -> tuple[Row, list[Mark]]:
    """Lay out the spans of one model: jobs first, so that they lie on top."""
    lanes: list[list[Interval]] = []
    loads: list[Interval] = []
    spans: list[Span] = []
    marks: list[Mark] = []
    lives: list[JobLife | RequestLife] = [*jobs, *requests]
    for life in lives:
        if isinstance(life, JobLife):
            label, own = life.name, job_spans(life, name, last)
            if own and life.subject == "load":
                loads.append((own[0].start, own[-1].end))
        else:
            label, own = life.request_id, request_spans(life, loads, last)
        lane = _lane(lanes, own)
        spans += [replace(span, lane=lane) for span in own]
        if life.ended is not None and life.outcome in ("failed", "cancelled", "interrupted"):
            marks.append(
                Mark(
                    kind=life.outcome,
                    time=life.ended,
                    row=name,
                    lane=lane,
                    label=label,
                    cause=life.cause,
                )
            )
    spans.sort(key=lambda span: (span.start, span.end))
    return Row(name, tuple(spans), max(1, len(lanes))), marks


def _lane(lanes: list[list[Interval]], spans: Sequence[Span]) -> int:
    """The first lane in which none of `spans` meets another; they are entered there."""
    number = next((n for n, lane in enumerate(lanes) if _fits(lane, spans)), len(lanes))
    if number == len(lanes):
        lanes.append([])
    for span in spans:
        insort(lanes[number], (span.start, span.end))
    return number


def _fits(lane: Sequence[Interval], spans: Sequence[Span]) -> bool:
    for span in spans:
        # Intervals of a lane are disjoint: only the last to start before this one's
        # end can still reach into it.
        before = bisect_left(lane, (span.end,))
        if before and lane[before - 1][1] > span.start:
            return False
    return True
