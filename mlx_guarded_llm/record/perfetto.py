"""The record as a trace for ui.perfetto.dev or chrome://tracing.

The format is Chrome's Trace Event JSON, with microseconds from the first event. Each lane of
the timeline becomes a thread, because only the slices of threads can have flow arrows.

The events of the record go with it, in `otherData`, which those programs leave alone. So
reading a trace gives the events as they were.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from ..errors import InvalidRequest
from ..version import __version__
from . import phrases
from .chart import DEATHS, STILL
from .events import Event, Kind, as_dict
from .histories import RequestHistory
from .spans import Span
from .timeline import Mark, Timeline, timeline

_PID = 1
_ENGINE = 1  # the thread of the engine's own events; to Perfetto 0 is the idle thread
_EVENTS = "mlx_guarded_llm.events"  # the key of the record's events in otherData
_KINDS = frozenset(get_args(Kind))

TraceEvent = dict[str, Any]


def to_perfetto(events: Iterable[Event]) -> dict[str, Any]:
    """Turn `events` into a trace: a plain value that `json` can write."""
    events = list(events)
    trace = _Trace(timeline(events)).as_dict()
    writer = f"mlx-guarded-llm {__version__}"
    trace["otherData"] = {"writer": writer, _EVENTS: [as_dict(event) for event in events]}
    return trace


def write_perfetto(events: Iterable[Event], path: str | Path) -> Path:
    """Write `to_perfetto(events)` to `path`; open the file in ui.perfetto.dev."""
    path = Path(path)
    path.write_text(json.dumps(to_perfetto(events)), encoding="utf-8")
    return path


def read_perfetto(path: str | Path) -> list[Event]:
    """The events of a trace that `write_perfetto` wrote.

    Raises:
        InvalidRequest: the file is not such a trace, or has no events.
        OSError: the file cannot be read.
    """
    try:
        trace = json.loads(Path(path).read_bytes())
        trace["traceEvents"]
        events = trace.get("otherData", {}).get(_EVENTS)
        if events is not None:
            return [_from_dict(event) for event in events]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest(
            f"{path} is no trace of mlx-guarded-llm ({type(error).__name__}: {error}).",
            hint="Write one with `mlx-guarded demo --trace FILE` or backend.write_trace(FILE).",
        ) from error
    raise InvalidRequest(
        f"{path} is a trace without the events of mlx-guarded-llm.",
        hint="An older version or another program wrote it. Open it in ui.perfetto.dev, or "
        "write it again with backend.write_trace(FILE).",
    )


def _from_dict(fields: dict[str, Any]) -> Event:
    if fields["kind"] not in _KINDS:
        raise ValueError(f"no kind of event is called {fields['kind']!r}")
    waiting_for = tuple((str(name), str(model)) for name, model in fields.get("waiting_for", ()))
    return Event(**{**fields, "time": float(fields["time"]), "waiting_for": waiting_for})


class _Trace:
    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.histories = timeline.histories
        # The threads of one model stand together, in the order of the rows.
        lanes = [(row.model, lane) for row in timeline.rows for lane in range(row.lanes)]
        self.tids = {lane: tid for tid, lane in enumerate(lanes, start=_ENGINE + 1)}

    def as_dict(self) -> dict[str, Any]:
        slices = [*self.slices(), *self.instants(), *self.arrows()]
        # Of slices that begin at the same time the longest is the outermost.
        slices.sort(key=lambda event: (event["ts"], -event.get("dur", 0)))
        return {"displayTimeUnit": "ms", "traceEvents": [*self.names(), *slices]}

    def ts(self, time: float) -> int:
        # Whole microseconds: rounding keeps order, so slices stay nested.
        return round((time - self.timeline.start) * 1e6)

    def names(self) -> Iterator[TraceEvent]:
        yield _meta("process_name", 0, name="mlx-guarded-llm")
        yield _meta("thread_name", _ENGINE, name="engine")
        yield _meta("thread_sort_index", _ENGINE, sort_index=_ENGINE)
        for (model, lane), tid in self.tids.items():
            yield _meta("thread_name", tid, name=f"{model} #{lane + 1}" if lane else model)
            yield _meta("thread_sort_index", tid, sort_index=tid)

    def slices(self) -> Iterator[TraceEvent]:
        outer: dict[str, list[Span]] = {}
        for span in self.timeline.spans():
            if span.kind == "generating" or span.kind in STILL:
                outer.setdefault(span.label, []).append(span)
            name = f"{span.label} {span.kind}" if span.kind == "waiting" else span.state
            yield self.slice(name, span, span.end, cause=span.cause)
        for request_id, spans in outer.items():
            request = self.histories.requests[request_id]
            yield self.slice(request_id, spans[0], spans[-1].end, **_numbers(request))

    def slice(self, name: str, span: Span, end: float, **args: Any) -> TraceEvent:
        unfinished = span.unfinished or args.pop("unfinished", False)
        ids = {"request_id": span.request_id, "job_id": span.job_id}
        return {
            "ph": "X",
            "pid": _PID,
            "tid": self.tids[span.row, span.lane],
            "ts": self.ts(span.start),
            "dur": self.ts(end) - self.ts(span.start),
            "cat": span.kind,
            "name": f"{name} (unfinished)" if unfinished else name,
            "args": _known({**ids, **args, "unfinished": unfinished}),
        }

    def instants(self) -> Iterator[TraceEvent]:
        for mark in self.timeline.marks:
            tid = _ENGINE if mark.row is None else self.tids[mark.row, mark.lane]
            yield {
                "ph": "i",
                "s": "p" if mark.kind in DEATHS else "t",
                "pid": _PID,
                "tid": tid,
                "ts": self.ts(mark.time),
                "cat": "mark",
                "name": f"{mark.label} {mark.kind}" if mark.row else _named(mark),
                "args": _known({"cause": mark.cause}),
            }

    def arrows(self) -> Iterator[TraceEvent]:
        """From each generation that holds up a job to the deferral of that job."""
        generating: dict[str, Span] = {}
        deferred: dict[tuple[str | None, float | None], Span] = {}
        for span in self.timeline.spans():
            if span.kind == "generating":
                generating[span.label] = span
            elif span.kind == "deferred":
                deferred[span.job_id, span.start] = span
        number = 0
        for job in self.histories.jobs:
            held = deferred.get((job.job_id, job.deferred))
            for deferral in job.deferrals if held else ():
                for name, _ in deferral.waiting_for:
                    holder = generating.get(name)
                    if holder and held and self.runs(name, deferral.time):
                        number += 1
                        yield self.arrow("s", number, holder, deferral.time)
                        yield self.arrow("f", number, held, deferral.time)

    def runs(self, request_id: str, time: float) -> bool:
        """Whether there is a slice of this request at `time` to fix an arrow to."""
        request = self.histories.requests[request_id]
        end = self.timeline.end if request.ended is None else request.ended
        return request.started is not None and request.started <= time <= end

    def arrow(self, ph: str, number: int, span: Span, time: float) -> TraceEvent:
        return {
            "ph": ph,
            "bp": "e",  # bind to the slice around it, not to the next one
            "id": number,
            "pid": _PID,
            "tid": self.tids[span.row, span.lane],
            "ts": self.ts(time),
            "cat": "waits for",
            "name": "waits for",
        }


def _named(mark: Mark) -> str:
    """What happened to the engine, or to a quarantined model."""
    return mark.kind if mark.label == "engine" else f"{mark.label} {mark.kind.split('.')[1]}"


def _meta(kind: str, tid: int, **args: Any) -> TraceEvent:
    return {"ph": "M", "pid": _PID, "tid": tid, "ts": 0, "name": kind, "args": args}


def _numbers(request: RequestHistory) -> dict[str, Any]:
    keys = ("prompt_tokens", "cached_tokens", "completion_tokens")
    return {
        "outcome": request.outcome,
        "cause": request.cause,
        **{key: phrases.number(request.details, key) for key in keys},
        "unfinished": request.ended is None,
    }


def _known(args: dict[str, Any]) -> dict[str, Any]:
    """The arguments that have a value; 0 is one."""
    return {k: v for k, v in args.items() if v is not None and v != "" and v is not False}
