"""One request's story in plain English, put together from the record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..errors import InvalidRequest
from . import phrases
from .events import Event, is_attempt
from .histories import Histories, JobHistory, Pause, RequestHistory, clip, read

Line = tuple[float, str]  # a time, and what happened then


def explain(events: Iterable[Event], request_id: str) -> str:
    """Tell what happened to a request: what it waited for, when it paused, how it ended.

    Args:
        events: the record, such as `backend.events()`.
        request_id: the request; a result has it in `result.guard.request_id`. Of a call of
            `GuardedLLM` each attempt is told.

    Returns:
        A few lines of English. Times count from when the request was queued. What
        began earlier, such as a load that the request joined, has a negative time.

    Raises:
        InvalidRequest: the record has no such request.
    """
    histories = read(events)
    found = [r for r in histories.requests.values() if is_attempt(r.request_id, request_id)]
    if not found:
        raise InvalidRequest(
            f"The record has no request {request_id!r}.",
            hint="It may be mistyped (see result.guard.request_id), or so old that its "
            "events were dropped from the bounded record.",
        )
    return "\n\n".join(_story(request, histories) for request in found)


def _story(request: RequestHistory, histories: Histories) -> str:
    jobs = histories.jobs_of(request)
    lines = [*_queued(request, jobs, histories)]
    for job in jobs:
        lines += _job(job, request, histories)
    lines += _own(request, histories)
    lines.sort(key=lambda line: line[0])
    head = f"Request {request.request_id} asked for {request.model}."
    if request.partial and request.started is None:
        head += (
            " Only its end is in the record: it was refused at once, or its first"
            " events were dropped."
        )
    elif request.partial:
        head += (
            " Its first events were dropped from the bounded record;"
            " times count from the first one left."
        )
    return "\n".join([head, *_timed(lines, request), *_summary(request, jobs)])


def _timed(lines: Iterable[Line], request: RequestHistory) -> Iterator[str]:
    """Put the times before the lines, and leave out what came after the request's end."""
    origin = request.seen if request.queued is None else request.queued
    shown = [
        (f"{time - origin:.2f}", what)
        for time, what in lines
        if request.ended is None or time <= request.ended
    ]
    width = max(len(time) for time, _ in shown)
    for time, what in shown:
        yield f"  at {time:>{width}} s  {what}"


def _queued(
    request: RequestHistory, jobs: list[JobHistory], histories: Histories
) -> Iterator[Line]:
    """How the request was queued, and each job that it came to wait for."""
    begin = request.queued
    if begin is None:
        return
    # The jobs that are in the record have lines of their own.
    others = [pair for pair in request.waiting_for if histories.job(pair[0]) is None]
    parts = [f"queued behind {phrases.who(others)}" if others else "queued"]
    if request.emitted:
        parts[0] += f", to go on behind {request.emitted} tokens of another server"
    later = []
    for job in jobs:
        asked_by = f", asked for by {job.request_id}" if job.request_id else ""
        own_load, asked = _own_load(job, request), job.request_id == request.request_id
        if job.again:
            continue  # the first try has a line already
        if asked and not own_load:
            reason = f"it needs the {job.name} first"
        elif not own_load:
            reason = f"it waits behind the {job.name}{asked_by}"
        elif asked:
            reason = "its model is not in memory, so a load of it was queued"
        else:
            reason = f"it joins those who wait for the load of its model{asked_by}"
        if job.seen <= begin or job.seen - begin < 0.005:
            parts.append(reason)
        else:
            later.append((job.seen, reason))
    yield begin, "; ".join(parts)
    yield from later


def _job(job: JobHistory, request: RequestHistory, histories: Histories) -> Iterator[Line]:
    """What happened to a load or another job that the request waited for."""
    name = "the load" if _own_load(job, request) else f"the {job.name}"
    for deferral in job.deferrals:
        holders = [_held(pair, deferral.time, histories) for pair in deferral.waiting_for]
        behind = f" behind {phrases.listing(holders)}" if holders else ""
        why = " because memory was short" if deferral.cause == "memory" else ""
        still = "" if deferral is job.deferrals[0] else "still "
        yield deferral.time, f"{name} was {still}deferred{behind}{why}"
    if job.started is not None:
        waited = None if job.deferred is None else job.started - job.deferred
        yield (
            job.started,
            f"{name} started"
            + (" again" if job.again else "")
            + (f" after {phrases.seconds(waited)}" if waited is not None else "")
            + _released(job, job.started, histories)
            + (f"; {phrases.listing(job.evict)} evicted to make room" if job.evict else ""),
        )
    if job.ended is not None and job.outcome == "finished":
        numbers = phrases.loaded(job.details)
        if not numbers and job.started is not None:
            numbers = f"in {phrases.seconds(job.ended - job.started)}"
        without = job.details.get("undrafted")
        yield (
            job.ended,
            f"{name} finished{phrases.because(numbers)}"
            + (f", without its draft: {without}" if without else ""),
        )
    elif job.ended is not None:
        verb = "failed" if job.outcome == "failed" else f"was {job.outcome}"
        yield job.ended, f"{name} {verb}{phrases.because(job.cause)}"


def _own_load(job: JobHistory, request: RequestHistory) -> bool:
    return job.subject == "load" and job.model == request.model


def _held(pair: tuple[str, str], now: float, histories: Histories) -> str:
    """What held a job up: another job, or a request with the time it had been running."""
    job = histories.job(pair[0])
    if job is not None:
        return f"the {job.name}"
    holder = histories.requests.get(pair[0])
    if holder is None or holder.started is None or holder.partial:
        return phrases.who([pair])
    return f"{phrases.who([pair])}, running for {phrases.seconds(now - holder.started)}"


def _released(job: JobHistory, started: float, histories: Histories) -> str:
    """How what a job was deferred behind made way: by ending, or by being paused."""
    ended = []
    for name, _ in job.waiting_for:
        holder = histories.requests.get(name)
        if holder is not None and holder.ended is not None and holder.ended <= started:
            ended.append(name)
    ways = [f"{phrases.listing(ended)} ended"] if ended else []
    if job.paused:
        ways.append(f"{phrases.listing(job.paused)} paused")
    return f", with {phrases.listing(ways)}" if ways else ""


def _own(request: RequestHistory, histories: Histories) -> Iterator[Line]:
    """What happened to the request itself after it was queued."""
    started, first = request.started, request.first_token
    if started is not None and not request.partial:
        yield started, "started"
    for pause in request.pauses:
        if pause.cut_off:
            yield from _cut_off(pause, request, histories)
            continue
        yield pause.start, "paused" + _why(pause, request, histories)
        if pause.end is not None and pause.end != request.ended:
            yield pause.end, f"went on after {phrases.seconds(pause.end - pause.start)}"
    if first is not None:
        known = started is not None and not request.partial
        since = f", {phrases.seconds(first - (started or 0))} after its start" if known else ""
        yield first, f"first token{since}"
    if request.ended is not None:
        yield request.ended, _end(request)
    else:
        yield histories.last, f"still {_state(request)} when the record ends"


def _why(pause: Pause, request: RequestHistory, histories: Histories) -> str:
    names = [
        f"the {job.name}" + (f", asked for by {job.request_id}" if job.request_id else "")
        for job in histories.jobs_behind(pause, request.request_id)
    ]
    if not names:
        return phrases.because(pause.cause)
    return f" at a token boundary for {phrases.listing(names)}"


def _cut_off(pause: Pause, request: RequestHistory, histories: Histories) -> Iterator[Line]:
    """How an engine lost the request, what had to come back, and how the request went on."""
    since = pause.start - (request.started or pause.start)
    then = "" if request.partial else f" {phrases.seconds(since)} in"
    what = f"the engine died{then}" if pause.died else "cut off"
    yield pause.start, what + phrases.because(pause.cause)
    end = histories.last if pause.end is None else pause.end
    works = False  # whether a new engine has started
    for event in histories.engine:
        if not pause.start < event.time <= end:
            continue
        if event.kind == "engine.died":
            yield event.time, f"the new engine died too{phrases.because(event.cause)}"
        elif event.kind == "engine.started":
            works = True
            made = phrases.parts(event.details, "spawn", "import")
            yield event.time, "a new engine worked" + (f" ({made})" if made else "")
    for job in histories.jobs:
        if _own_load(job, request) and job.outcome == "finished":
            assert job.ended is not None
            if pause.start < job.ended <= end:
                yield job.ended, f"its model was back{phrases.because(phrases.loaded(job.details))}"
    if pause.end is not None and pause.end != request.ended:
        where = " in the new engine" if works else ""
        behind = f", behind the {pause.emitted} tokens it had" if pause.emitted else ""
        yield pause.end, f"went on{where} after {phrases.seconds(end - pause.start)}{behind}"


def _end(request: RequestHistory) -> str:
    counts = phrases.because(phrases.tokens(request.details))
    if request.outcome == "finished":
        speed = request.speed()
        reason = f" ({request.cause})" if request.cause else ""
        return f"finished{reason}{counts}" + (f", {speed:.1f} tokens/s" if speed else "")
    if request.outcome == "cancelled":
        return f"cancelled{phrases.because(phrases.without_class(request.cause))}{counts}"
    hint = str(request.details.get("hint") or "")
    hint = "" if hint in request.cause else f" {hint}"
    return f"failed with {request.cause or 'an unnamed error'}{hint}"


def _state(request: RequestHistory) -> str:
    if request.started is None:
        return "waiting"
    if request.pausing:
        return "waiting to go on" if request.pauses[-1].cut_off else "paused"
    return "generating" if request.first_token is not None else "in its prefill"


def _summary(request: RequestHistory, jobs: list[JobHistory]) -> Iterator[str]:
    """The whole time and its parts."""
    begin, end = request.queued, request.ended
    if begin is None or end is None:
        return
    until = end if request.started is None else request.started
    deferred = sum(
        clip(job.deferred, job.ended if job.started is None else job.started, begin, until)
        for job in jobs
    )
    loading = sum(clip(job.started, job.ended, begin, until) for job in jobs)
    paused = sum(clip(p.start, p.end, until, end) for p in request.pauses if not p.cut_off)
    recovering = sum(clip(p.start, p.end, until, end) for p in request.pauses if p.cut_off)
    waited = _parts((deferred, "with the load deferred"), (loading, "loading"))
    waiting = f"waiting ({waited})" if waited else "waiting"
    running = end - until - paused - recovering
    parts = _parts(
        (until - begin, waiting),
        (running, "running"),
        (paused, "paused"),
        (recovering, "recovering"),
    )
    if parts:
        yield f"In all {phrases.seconds(end - begin)}: {parts}."


def _parts(*parts: tuple[float, str]) -> str:
    """A list of the parts that took a noticeable time."""
    return phrases.listing(
        f"{phrases.seconds(time)} {what}" for time, what in parts if time >= 0.005
    )
