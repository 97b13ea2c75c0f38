"""What a record says about loads and generations, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..record import Timeline, overlaps
from ..record.lives import JobLife, Lives, RequestLife
from .console import short
from .words import count, listing, seconds

_WORK = {"loading": "load", "unloading": "unload", "running": "foreign call"}


def overlap_lines(timeline: Timeline) -> list[str]:
    """One line for each overlap, or one that says that there was none."""
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
    work = listing(count(number, noun) for noun, number in kinds.items()) or "no load"
    return [
        f"Nothing overlapped: {count(generated, 'generation')} and {work}, "
        "never both at one moment."
    ]


def story(lives: Lives) -> Iterator[str]:
    """Who generated, what was deferred behind whom, when each load ran."""
    for request in lives.requests.values():
        yield _request(request, lives)
    for job in lives.jobs:
        yield _job(job, lives)


def _request(request: RequestLife, lives: Lives) -> str:
    name = f"{request.request_id} ({short(request.model)})"
    if request.started is None or request.ended is None:
        return f"{name} did not generate" + (f": {request.cause}." if request.cause else ".")
    tokens = request.details.get("completion_tokens")
    text = f"{name} generated from {_at(request.started, lives)} to {_at(request.ended, lives)}"
    text += f", {tokens} tokens" if tokens is not None else ""
    paused = sum((p.end or request.ended) - p.start for p in request.pauses)
    if request.pauses:
        times = "once" if len(request.pauses) == 1 else f"{len(request.pauses)} times"
        text += f", and stood still {times}, for {seconds(paused)}"
    return text + "."


def _job(job: JobLife, lives: Lives) -> str:
    text = f"The {job.subject} of {short(job.model)}" if job.model else f"The {job.name}"
    parts = []
    if job.deferred is not None:
        until = job.started if job.started is not None else job.ended or lives.last
        behind = listing(f"{name} ({short(model)})" for name, model in job.waiting_for)
        parts.append(
            f"was deferred for {seconds(until - job.deferred)}"
            + (f" behind {behind}" * bool(behind))
        )
    if job.started is not None and job.ended is not None:
        ran = f"ran from {_at(job.started, lives)} to {_at(job.ended, lives)}"
        if job.paused:
            ran += f", while {listing(job.paused)} stood still"
        parts.append(ran)
    if job.outcome in ("failed", "cancelled"):
        parts.append(f"{'was ' * (job.outcome == 'cancelled')}{job.outcome} ({job.cause})")
    return f"{text} {', then '.join(parts) or 'did not begin'}."


def _at(time: float, lives: Lives) -> str:
    return seconds(time - lives.first)
