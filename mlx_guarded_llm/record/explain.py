"""One request's story in words, put together from the record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..errors import InvalidRequest
from . import words
from .events import Event
from .lives import JobLife, Lives, Pause, RequestLife, read

Line = tuple[float, str]  # a time, and what happened then


def explain(events: Iterable[Event], request_id: str) -> str:
    """Tell what happened to a request: what it waited for, its pauses, how it ended.

    Args:
        events: the record, such as `backend.events()`.
        request_id: whose story; a result has it in `result.guard.request_id`.

    Returns:
        A few lines of English. Times count from when the request was queued; what
        began before it, such as a load it joined, has a negative time.

    Raises:
        InvalidRequest: the record knows no such request.
    """
    lives = read(events)
    request = lives.requests.get(request_id)
    if request is None:
        raise InvalidRequest(
            f"The record has no request {request_id!r}.",
            hint="It may be mistyped (see result.guard.request_id), or so old that its "
            "events were dropped from the bounded record.",
        )
    jobs = lives.jobs_of(request)
    lines = [*_queued(request, jobs, lives)]
    for job in jobs:
        lines += _job(job, request, lives)
    lines += _own(request, lives)
    lines.sort(key=lambda line: line[0])
    head = f"Request {request_id} asked for {request.model}."
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


def _timed(lines: Iterable[Line], request: RequestLife) -> Iterator[str]:
    """The lines with their times before them; what came after its end is left out."""
    origin = request.seen if request.queued is None else request.queued
    shown = [
        (f"{time - origin:.2f}", what)
        for time, what in lines
        if request.ended is None or time <= request.ended
    ]
    width = max(len(time) for time, _ in shown)
    for time, what in shown:
        yield f"  at {time:>{width}} s  {what}"


def _queued(request: RequestLife, jobs: list[JobLife], lives: Lives) -> Iterator[Line]:
    """How it was queued, and each piece of work it came to wait for."""
    begin = request.queued
    if begin is None:
        return
    # The jobs in the record tell their own part of the wait.
    others = [pair for pair in request.waiting_for if lives.job(pair[0]) is None]
    parts = [f"queued behind {words.who(others)}" if others else "queued"]
    later = []
    for job in jobs:
        asked_by = f", asked for by {job.request_id}" if job.request_id else ""
        own_load, asked = _own_load(job, request), job.request_id == request.request_id
        if job.again:
            continue  # it was told with the first try
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


def _job(job: JobLife, request: RequestLife, lives: Lives) -> Iterator[Line]:
    """What happened to a load, or other exclusive work, that the request waited for."""
    name = "the load" if _own_load(job, request) else f"the {job.name}"
    for deferral in job.deferrals:
        holders = [_held(pair, deferral.time, lives) for pair in deferral.waiting_for]
        behind = f" behind {words.listing(holders)}" if holders else ""
        why = " for want of memory" if deferral.cause == "memory" else ""
        still = "" if deferral is job.deferrals[0] else "still "
        yield deferral.time, f"{name} was {still}deferred{why}{behind}"
    if job.started is not None:
        waited = None if job.deferred is None else job.started - job.deferred
        yield (
            job.started,
            f"{name} started"
            + (" again" if job.again else "")
            + (f" after {words.seconds(waited)}" if waited is not None else "")
            + _released(job, job.started, lives)
            + (f"; {words.listing(job.evict)} evicted to make room" if job.evict else ""),
        )
    if job.ended is not None and job.outcome == "finished":
        numbers = words.loaded(job.details)
        if not numbers and job.started is not None:
            numbers = f"in {words.seconds(job.ended - job.started)}"
        yield job.ended, f"{name} finished{words.because(numbers)}"
    elif job.ended is not None:
        verb = "failed" if job.outcome == "failed" else f"was {job.outcome}"
        yield job.ended, f"{name} {verb}{words.because(job.cause)}"


def _own_load(job: JobLife, request: RequestLife) -> bool:
    return job.subject == "load" and job.model == request.model


def _held(pair: tuple[str, str], now: float, lives: Lives) -> str:
    """A holder: a job, or a request and for how long it had been running by then."""
    job = lives.job(pair[0])
    if job is not None:
        return f"the {job.name}"
    holder = lives.requests.get(pair[0])
    if holder is None or holder.started is None or holder.partial:
        return words.who([pair])
    return f"{words.who([pair])}, running for {words.seconds(now - holder.started)}"


def _released(job: JobLife, started: float, lives: Lives) -> str:
    """How those it was deferred behind made way: they ended, or they were paused."""
    ended = []
    for name, _ in job.waiting_for:
        holder = lives.requests.get(name)
        if holder is not None and holder.ended is not None and holder.ended <= started:
            ended.append(name)
    ways = [f"{words.listing(ended)} ended"] if ended else []
    if job.paused:
        ways.append(f"{words.listing(job.paused)} paused")
    return f", with {words.listing(ways)}" if ways else ""


def _own(request: RequestLife, lives: Lives) -> Iterator[Line]:
    """What happened to the request itself after it was queued."""
    started, first = request.started, request.first_token
    if started is not None and not request.partial:
        yield started, "started"
    for pause in request.pauses:
        if pause.cut_off:
            yield from _cut_off(pause, request, lives)
            continue
        yield pause.start, "paused" + _why(pause, request, lives)
        if pause.end is not None and pause.end != request.ended:
            yield pause.end, f"went on after {words.seconds(pause.end - pause.start)}"
    if first is not None:
        known = started is not None and not request.partial
        since = f", {words.seconds(first - (started or 0))} after its start" if known else ""
        yield first, f"first token{since}"
    if request.ended is not None:
        yield request.ended, _end(request)
    else:
        yield lives.last, f"still {_state(request)} when the record ends"


def _why(pause: Pause, request: RequestLife, lives: Lives) -> str:
    names = [
        f"the {job.name}" + (f", asked for by {job.request_id}" if job.request_id else "")
        for job in lives.jobs_behind(pause, request.request_id)
    ]
    if not names:
        return words.because(pause.cause)
    return f" at a token boundary for {words.listing(names)}"


def _cut_off(pause: Pause, request: RequestLife, lives: Lives) -> Iterator[Line]:
    """How an engine lost it, what had to come back, and how it went on."""
    since = pause.start - (request.started or pause.start)
    then = "" if request.partial else f" {words.seconds(since)} in"
    what = f"the engine died{then}" if pause.died else "cut off"
    yield pause.start, what + words.because(pause.cause)
    end = lives.last if pause.end is None else pause.end
    works = False  # a new engine does
    for event in lives.engine:
        if not pause.start < event.time <= end:
            continue
        if event.kind == "engine.died":
            yield event.time, f"the new engine died too{words.because(event.cause)}"
        elif event.kind == "engine.started":
            works = True
            made = words.parts(event.details, "spawn", "import")
            yield event.time, "a new engine worked" + (f" ({made})" if made else "")
    for job in lives.jobs:
        if _own_load(job, request) and job.outcome == "finished":
            assert job.ended is not None
            if pause.start < job.ended <= end:
                yield job.ended, f"its model was back{words.because(words.loaded(job.details))}"
    if pause.end is not None and pause.end != request.ended:
        where = " in the new engine" if works else ""
        behind = f", behind the {pause.emitted} tokens it had" if pause.emitted else ""
        yield pause.end, f"went on{where} after {words.seconds(end - pause.start)}{behind}"


def _end(request: RequestLife) -> str:
    counts = words.because(words.tokens(request.details))
    if request.outcome == "finished":
        speed = _speed(request)
        reason = f" ({request.cause})" if request.cause else ""
        return f"finished{reason}{counts}" + (f", {speed:.1f} tokens/s" if speed else "")
    if request.outcome == "cancelled":
        return f"cancelled{words.because(words.without_class(request.cause))}{counts}"
    hint = str(request.details.get("hint") or "")
    hint = "" if hint in request.cause else f" {hint}"
    return f"failed with {request.cause or 'an unnamed error'}{hint}"


def _speed(request: RequestLife) -> float | None:
    """Tokens per second from the first token on, standing still and prefill left out."""
    count = words.number(request.details, "completion_tokens")
    first, ended = request.first_token, request.ended
    if count is None or count < 2 or first is None or ended is None:
        return None
    still = sum(_clip(pause.start, pause.end, first, ended) for pause in request.pauses)
    decoding = ended - first - still - _prefill_again(request, first, ended)
    return (count - 1) / decoding if decoding > 0 else None


def _prefill_again(request: RequestLife, first: float, ended: float) -> float:
    """How long the last engine took to read what another one had written already."""
    cuts = [pause.end for pause in request.pauses if pause.cut_off and pause.start >= first]
    took = words.number(request.details, "prefill")
    if not cuts or cuts[-1] is None or took is None:
        return 0.0
    begin, end = cuts[-1], min(cuts[-1] + took, ended)
    still = sum(_clip(pause.start, pause.end, begin, end) for pause in request.pauses)
    return end - begin - still


def _state(request: RequestLife) -> str:
    if request.started is None:
        return "waiting"
    if request.pausing:
        return "waiting to go on" if request.pauses[-1].cut_off else "paused"
    return "generating" if request.first_token is not None else "in its prefill"


def _summary(request: RequestLife, jobs: list[JobLife]) -> Iterator[str]:
    """The whole time, taken apart."""
    begin, end = request.queued, request.ended
    if begin is None or end is None:
        return
    until = end if request.started is None else request.started
    deferred = sum(
        _clip(job.deferred, job.ended if job.started is None else job.started, begin, until)
        for job in jobs
    )
    loading = sum(_clip(job.started, job.ended, begin, until) for job in jobs)
    paused = sum(_clip(p.start, p.end, until, end) for p in request.pauses if not p.cut_off)
    recovering = sum(_clip(p.start, p.end, until, end) for p in request.pauses if p.cut_off)
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
        yield f"In all {words.seconds(end - begin)}: {parts}."


def _parts(*parts: tuple[float, str]) -> str:
    """The parts that took any time to speak of."""
    return words.listing(f"{words.seconds(time)} {what}" for time, what in parts if time >= 0.005)


def _clip(start: float | None, end: float | None, low: float, high: float) -> float:
    """The length of start..end within low..high; an open end reaches to `high`."""
    if start is None:
        return 0.0
    return max(0.0, min(high if end is None else end, high) - max(start, low))
