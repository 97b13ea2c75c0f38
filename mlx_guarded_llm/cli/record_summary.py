"""What a record says about loads and generations, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..record import Timeline, overlaps
from ..record.histories import Histories, JobHistory, RequestHistory
from ..record.phrases import counted, listing, seconds
from .console import short

_WORK = {"loading": "load", "unloading": "unload", "running": "function call"}


def overlap_lines(timeline: Timeline) -> list[str]:
    """One line for each overlap, or one line that says there was none."""
    found = overlaps(timeline)
    if found:
        return [
            f"OVERLAP: {short(work.row)} was {work.kind} while {generating.label} "
            f"({short(generating.row)}) was generating, for "
            f"{seconds(min(work.end, generating.end) - max(work.start, generating.start))}."
            for work, generating in found
        ]
    kinds = Counter(_WORK[span.kind] for span in timeline.spans() if span.kind in _WORK)
    generated = len({s.label for s in timeline.spans() if s.kind == "generating"})
    work = [counted(number, noun) for noun, number in kinds.items()] or ["no load"]
    both = listing([counted(generated, "generation"), *work])
    return [f"Nothing overlapped: {both}, never both at one moment."]


def story(histories: Histories) -> Iterator[str]:
    """Which requests generated, what was deferred behind what, and when each load ran."""
    for request in histories.requests.values():
        yield _request(request, histories)
    for job in histories.jobs:
        yield _job(job, histories)


def _request(request: RequestHistory, histories: Histories) -> str:
    name = f"{request.request_id} ({short(request.model)})"
    if request.started is None or request.ended is None:
        return f"{name} did not generate" + (f": {request.cause}." if request.cause else ".")
    tokens = request.details.get("completion_tokens")
    began, ended = _at(request.started, histories), _at(request.ended, histories)
    text = f"{name} generated from {began} to {ended}"
    text += f", {tokens} tokens" if tokens is not None else ""
    paused = sum((p.end or request.ended) - p.start for p in request.pauses)
    if request.pauses:
        times = "once" if len(request.pauses) == 1 else f"{len(request.pauses)} times"
        text += f", and stood still {times}, for {seconds(paused)}"
    return text + "."


def _job(job: JobHistory, histories: Histories) -> str:
    text = f"The {job.subject} of {short(job.model)}" if job.model else f"The {job.name}"
    parts = []
    if job.deferred is not None:
        until = job.started if job.started is not None else job.ended or histories.last
        behind = listing(f"{name} ({short(model)})" for name, model in job.waiting_for)
        parts.append(
            f"was deferred for {seconds(until - job.deferred)}"
            + (f" behind {behind}" * bool(behind))
        )
    if job.started is not None and job.ended is not None:
        ran = f"ran from {_at(job.started, histories)} to {_at(job.ended, histories)}"
        if job.paused:
            ran += f", while {listing(job.paused)} stood still"
        parts.append(ran)
    if job.outcome in ("failed", "cancelled"):
        parts.append(f"{'was ' * (job.outcome == 'cancelled')}{job.outcome} ({job.cause})")
    return f"{text} {', then '.join(parts) or 'did not begin'}."


def _at(time: float, histories: Histories) -> str:
    return seconds(time - histories.first)
