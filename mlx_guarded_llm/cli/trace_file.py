"""Reading back a trace that `record.write_perfetto` wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ..errors import InvalidRequest
from ..record.lives import Lives
from ..record.spans import EXCLUSIVE, Span, SpanKind
from ..record.timeline import Mark, Row, Timeline

_KINDS = {"waiting", "deferred", "generating", "paused", *EXCLUSIVE.values()}
_STATES = (_KINDS - {"generating"}) | {"prefill", "decode"}
_LANE = re.compile(r"(.*) #(\d+)")
_OPEN = " (unfinished)"

TraceEvent = Mapping[str, Any]


def read_trace(path: Path) -> Timeline:
    """The timeline of a trace.

    Raises:
        InvalidRequest: it is no such file.
        OSError: it cannot be read.
    """
    try:
        trace = json.loads(path.read_bytes())
        return _timeline(trace["traceEvents"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest(
            f"{path} is no trace of mlx-guarded-llm ({type(error).__name__}: {error}).",
            hint="Write one with `mlx-guarded demo --trace FILE` or backend.write_trace(FILE).",
        ) from error


def _timeline(events: list[TraceEvent]) -> Timeline:
    threads = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    if "engine" not in threads.values():
        raise ValueError("it has no engine")
    places = {tid: _place(name, threads) for tid, name in threads.items()}
    spans: dict[str, list[Span]] = {
        places[tid][0]: [] for tid in sorted(threads) if threads[tid] != "engine"
    }
    marks = []
    last = 0.0
    for event in events:
        end = (event["ts"] + event.get("dur", 0)) / 1e6
        last = max(last, end)
        row, lane = places.get(event["tid"], ("engine", 0))
        if event["ph"] == "X" and _is_state(event):
            span = _span(event, row, lane)
            spans[row].append(span)
        elif event["ph"] == "i":
            marks.append(_mark(event, row, lane))
    rows = []
    for row, found in spans.items():
        found.sort(key=lambda span: (span.start, span.end))
        rows.append(Row(row, tuple(found), max((s.lane for s in found), default=0) + 1))
    return Timeline(tuple(rows), tuple(marks), 0.0, last, Lives(last=last))


def _place(name: str, threads: Mapping[int, str]) -> tuple[str, int]:
    """A thread's row and lane: "phi3 #2" is the second lane of phi3."""
    match = _LANE.fullmatch(name)
    if match and match[1] in threads.values():
        return match[1], int(match[2]) - 1
    return name, 0


def _is_state(event: TraceEvent) -> bool:
    """Not the slice around all states of a request, which has its numbers."""
    name = str(event["name"]).removesuffix(_OPEN)
    return event["cat"] in _KINDS and (
        event["cat"] == "waiting" or (name in _STATES and "outcome" not in event["args"])
    )


def _span(event: TraceEvent, row: str, lane: int) -> Span:
    name, args = str(event["name"]).removesuffix(_OPEN), event["args"]
    label = args.get("job_id") or args.get("request_id") or name.removesuffix(" waiting")
    span = Span(
        kind=cast("SpanKind", event["cat"]),
        start=event["ts"] / 1e6,
        end=(event["ts"] + event["dur"]) / 1e6,
        row=row,
        label=label,
        lane=lane,
        request_id=args.get("request_id"),
        job_id=args.get("job_id"),
        cause=args.get("cause", ""),
        unfinished=args.get("unfinished", False),
    )
    if name == "prefill":
        return replace(span, phase="prefill")
    return replace(span, phase="decode") if name == "decode" else span


def _mark(event: TraceEvent, row: str, lane: int) -> Mark:
    label, _, kind = str(event["name"]).rpartition(" ")
    return Mark(
        kind=kind,
        time=event["ts"] / 1e6,
        row=None if row == "engine" else row,
        lane=lane,
        label=label or "engine",
        cause=event["args"].get("cause", ""),
    )
