"""Histories as spans of time: each stretch that a request or a job spent in one state."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from . import phrases
from .histories import JobHistory, RequestHistory

SpanKind = Literal[
    "waiting",
    "deferred",
    "loading",
    "unloading",
    "running",
    "generating",
    "paused",
    "recovering",
]
Phase = Literal["", "prefill", "decode"]
Interval = tuple[float, float]

EXCLUSIVE: dict[str, SpanKind] = {"load": "loading", "unload": "unloading", "run": "running"}


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of time in one state.

    Attributes:
        kind: the state. A request is waiting, generating, paused, or recovering when an
            engine lost it, until it goes on; a job is waiting, deferred, then loading,
            unloading or running (a user's function).
        start: seconds of `time.monotonic()`.
        end: likewise; not before `start`.
        row: the model, or `timeline.RUNS`.
        label: the request, or the job in words.
        phase: of generating, "prefill" or "decode"; else "".
        lane: spans of one row that overlap in time have different lanes.
        request_id: the request it belongs to, or the one that asked for the job.
        job_id: the job it belongs to, or None.
        cause: why it is in this state, if known.
        unfinished: the record ended during it.
    """

    kind: SpanKind
    start: float
    end: float
    row: str
    label: str
    phase: Phase = ""
    lane: int = 0
    request_id: str | None = None
    job_id: str | None = None
    cause: str = ""
    unfinished: bool = False

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start

    @property
    def state(self) -> str:
        """What it is drawn as: the phase of a generation, or else the kind."""
        return self.phase or self.kind


def job_spans(job: JobHistory, row: str, last: float) -> list[Span]:
    """A job's states: waiting, deferred, then the work itself. `last` closes open ones."""
    states: list[tuple[SpanKind, float | None]] = [
        ("waiting", job.queued),
        ("deferred", job.deferred),
        (EXCLUSIVE[job.subject], job.started),
    ]
    begun = [(kind, start) for kind, start in states if start is not None]
    ends = [start for _, start in begun[1:]] + [last if job.ended is None else job.ended]
    spans = [
        Span(
            kind=kind,
            start=start,
            end=end,
            row=row,
            label=job.name,
            request_id=job.request_id,
            job_id=job.job_id,
            cause=f"behind {phrases.who(job.waiting_for)}"
            if kind == "deferred" and job.waiting_for
            else "",
        )
        for (kind, start), end in zip(begun, ends, strict=False)
        # A job of no length still excludes generations; a wait of no length is no wait.
        if end > start or kind in EXCLUSIVE.values()
    ]
    return _left_open(spans) if job.ended is None else spans


def request_spans(request: RequestHistory, loads: Sequence[Interval], last: float) -> list[Span]:
    """A request's states: waiting, then generating and paused by turns.

    Args:
        request: its history.
        loads: its model's loads, in order of time. Their own spans show the wait, so the
            request is waiting only outside of them.
        last: the end of a state that is still open.
    """
    end = last if request.ended is None else request.ended
    bare = Span(
        kind="waiting",
        start=end,
        end=end,
        row=request.model,
        label=request.request_id,
        request_id=request.request_id,
    )
    spans = []
    if request.queued is not None:
        until = end if request.started is None else request.started
        cause = f"behind {phrases.who(request.waiting_for)}" if request.waiting_for else ""
        for start, stop in _outside(request.queued, until, loads):
            spans.append(replace(bare, start=start, end=stop, cause=cause))
    if request.started is not None:
        cursor = request.started
        for pause in request.pauses:
            spans += _generating(bare, cursor, pause.start, request.first_token)
            cursor = end if pause.end is None else pause.end
            kind: SpanKind = "recovering" if pause.cut_off else "paused"
            spans.append(replace(bare, kind=kind, start=pause.start, end=cursor, cause=pause.cause))
        spans += _generating(bare, cursor, end, request.first_token)
    return _left_open(spans) if request.ended is None else spans


def _generating(bare: Span, start: float, end: float, first_token: float | None) -> Iterator[Span]:
    """Generating from `start` to `end`, cut where the prefill ends."""
    cut = end if first_token is None else min(max(first_token, start), end)
    bare = replace(bare, kind="generating")
    if start < cut:
        yield replace(bare, start=start, end=cut, phase="prefill")
    if cut < end:
        yield replace(bare, start=cut, end=end, phase="decode")


def _outside(start: float, end: float, covers: Sequence[Interval]) -> Iterator[Interval]:
    """The parts of start..end outside of all covers, which are ordered and disjoint."""
    first = max(0, bisect_left(covers, (start,)) - 1)
    for cover_start, cover_end in covers[first:]:
        if cover_start >= end:
            break
        if start < cover_start:
            yield start, cover_start
        start = max(start, cover_end)
    if start < end:
        yield start, end


def _left_open(spans: list[Span]) -> list[Span]:
    return [*spans[:-1], replace(spans[-1], unfinished=True)] if spans else spans
