"""The record as rows of spans, one row for each model."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .events import Event
from .histories import Histories, JobHistory, RequestHistory, read
from .spans import EXCLUSIVE, Interval, Span, job_spans, request_spans

if TYPE_CHECKING:
    from rich.console import RenderableType

RUNS = "backend.run"  # the row of the users' functions, which belong to no model


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A moment with a sign in the chart: a failure, a cancel, or an event of the engine.

    Attributes:
        kind: "failed", "cancelled", "interrupted" (a load that is tried again), or the
            kind of an event of the engine or of a quarantined model.
        time: seconds of `time.monotonic()`.
        row: the model, `RUNS`, or None for the engine.
        lane: the lane of what failed.
        label: the request, the name of the job, the model, or "engine".
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
    """The record as spans. It displays itself in a terminal (rich) and in a notebook.

    Attributes:
        rows: one for each model, in order of first appearance.
        marks: failures, cancels and engine events, in order of time.
        start: where it starts; the first event, unless it was made from a later time on.
        end: where it ends; the last event, unless it was made until a later time.
        histories: what the spans were made from.
    """

    rows: tuple[Row, ...]
    marks: tuple[Mark, ...]
    start: float
    end: float
    histories: Histories = field(repr=False, compare=False)

    def spans(self) -> Iterator[Span]:
        """The spans of all rows."""
        for row in self.rows:
            yield from row.spans

    def __rich__(self) -> RenderableType:
        from .chart_text import render_text

        return render_text(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """In IPython's terminal."""
        from .chart_text import plain_text

        printer.text(plain_text(self))

    def _repr_html_(self) -> str:
        from .chart_svg import render_html

        return render_html(self)


def timeline(
    events: Iterable[Event], *, since: float | None = None, until: float | None = None
) -> Timeline:
    """Compute the timeline of `events`, such as those of `backend.events()`.

    Args:
        events: the record, or a part of it.
        since: where it starts, in seconds of `time.monotonic()`: what ended before is left
            out, and what began before is cut. None starts with the first event.
        until: where it ends, if that is after the last event; what is unfinished lasts until
            then.
    """
    histories = read(events)
    if until is not None:
        histories.last = max(histories.last, until)
    start = histories.first if since is None else since
    groups: dict[str, tuple[list[JobHistory], list[RequestHistory]]] = {}
    everyone: list[JobHistory | RequestHistory] = [*histories.requests.values(), *histories.jobs]
    for history in sorted(everyone, key=lambda history: history.seen):
        if history.ended is not None and history.ended < start:
            continue
        run = isinstance(history, JobHistory) and history.subject == "run"
        name = RUNS if run else history.model or "?"
        jobs, requests = groups.setdefault(name, ([], []))
        if isinstance(history, JobHistory):
            jobs.append(history)
        else:
            requests.append(history)
    rows = []
    marks = [
        Mark(kind=e.kind, time=e.time, row=None, lane=0, label=_label(e), cause=e.cause)
        for e in histories.engine
        if e.time >= start
    ]
    for name, (jobs, requests) in groups.items():
        row, row_marks = _row(name, jobs, requests, start, histories.last)
        rows.append(row)
        marks += row_marks
    marks.sort(key=lambda mark: mark.time)
    return Timeline(tuple(rows), tuple(marks), start, histories.last, histories)


def overlaps(timeline: Timeline) -> list[tuple[Span, Span]]:
    """Every pair of a job and a generation that ran at the same time.

    A paused generation does not count. Under the guard there is no such pair.

    Returns:
        (loading, unloading or running span, generating span), in order of time.
    """
    exclusive: list[Span] = []
    generating: list[Span] = []
    found = []
    for span in sorted(timeline.spans(), key=lambda span: span.start):
        # What has ended by now overlaps neither this span nor a later one.
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
    name: str,
    jobs: Sequence[JobHistory],
    requests: Sequence[RequestHistory],
    first: float,
    last: float,
) -> tuple[Row, list[Mark]]:
    """Lay out the spans of one model, with the jobs in the first lanes."""
    lanes: list[list[Interval]] = []
    loads: list[Interval] = []
    spans: list[Span] = []
    marks: list[Mark] = []
    histories: list[JobHistory | RequestHistory] = [*jobs, *requests]
    for history in histories:
        if isinstance(history, JobHistory):
            label, own = history.name, job_spans(history, name, last)
            if own and history.subject == "load":
                loads.append((own[0].start, own[-1].end))
        else:
            label, own = history.request_id, request_spans(history, loads, last)
        own = [
            replace(span, start=max(span.start, first))
            for span in own
            if span.end > first or span.start >= first
        ]
        lane = _lane(lanes, own)
        spans += [replace(span, lane=lane) for span in own]
        if history.ended is not None and history.outcome in ("failed", "cancelled", "interrupted"):
            marks.append(
                Mark(
                    kind=history.outcome,
                    time=history.ended,
                    row=name,
                    lane=lane,
                    label=label,
                    cause=history.cause,
                )
            )
    spans.sort(key=lambda span: (span.start, span.end))
    return Row(name, tuple(spans), max(1, len(lanes))), marks


def _lane(lanes: list[list[Interval]], spans: Sequence[Span]) -> int:
    """The first lane in which `spans` overlap nothing; they are added to it."""
    number = next((n for n, lane in enumerate(lanes) if _fits(lane, spans)), len(lanes))
    if number == len(lanes):
        lanes.append([])
    for span in spans:
        insort(lanes[number], (span.start, span.end))
    return number


def _fits(lane: Sequence[Interval], spans: Sequence[Span]) -> bool:
    for span in spans:
        # The intervals of a lane are disjoint, so only the last one that starts before
        # the end of this span can overlap it.
        before = bisect_left(lane, (span.end,))
        if before and lane[before - 1][1] > span.start:
            return False
    return True
