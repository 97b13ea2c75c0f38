"""Why a server is slow, why something waits there, and whether its models fit: in words.

Pure: what was seen of the server goes in, and checks come out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...backend import Health, ModelInfo, RequestStatus
from ...holder import held_bytes, listed
from ...record import Event
from ...record.histories import Histories, JobHistory, RequestHistory, read
from ...record.phrases import about, counted, listing, seconds, size, who
from ..console import short
from .checks import Check

WINDOW = 600.0  # seconds of the record that are looked at
_LONG = 60.0  # seconds that nobody likes to wait
_SHOWN = 3  # requests
_THIN = 0.9  # of the budget
_AGAIN = 2  # loads of one model after its first that are one too many


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a server said of itself at one moment.

    Attributes:
        events: its record, oldest first; None where this client may not see it.
        now: the time by which they are timed, in seconds.
    """

    health: Health
    models: Sequence[ModelInfo] = ()
    requests: Sequence[RequestStatus] = ()
    events: Sequence[Event] | None = ()
    now: float = 0.0


def diagnose(seen: Seen) -> Iterator[Check]:
    """The checks of a server."""
    yield _engine(seen.health)
    yield _queue(seen)
    yield _memory(seen.health)
    yield from _quarantine(seen.models)
    if seen.events is None:
        yield Check(
            name="record",
            ok=True,
            text="this key may not see what happened",
            hint="Ask with a key that has `admin`: it is in MLX_GUARDED_KEY.",
        )
        return
    yield from _device(seen.events)
    yield from _deaths(seen)
    recent = read([event for event in seen.events if event.time >= seen.now - WINDOW])
    yield from _deferrals(recent, seen.now)
    yield _swaps(recent)
    yield from _time(recent)


def _engine(health: Health) -> Check:
    if health.engine in ("failed", "closed"):
        return Check(
            name="engine",
            ok=False,
            text=f"it has {health.engine}; nothing is answered",
            hint="End the server and start it again; its log tells why.",
        )
    if health.stalled >= _LONG:
        return Check(
            name="engine",
            ok=False,
            text=f"it has made no progress for {seconds(health.stalled)}",
            hint="It is replaced at stall_timeout, and answers go on from where they were. A "
            "machine that swaps, or a very long prompt, is slow in this way.",
        )
    return Check(name="engine", ok=True, text=health.engine)


def _queue(seen: Seen) -> Check:
    health = seen.health
    text = f"{health.running} running, {health.waiting} waiting"
    if not health.waiting:
        return Check(name="queue", ok=not health.full, text=text)
    text += f", the oldest for {seconds(health.oldest_waiting)}"
    stories = [_story(request) for request in seen.requests if request.state != "running"]
    more = len(stories) - _SHOWN
    told = [*stories[:_SHOWN], *[f"{more} more"] * (more > 0)]
    text += f". {'; '.join(told)}" * bool(told)
    if health.full:
        room = "" if health.room is None else f", in {about(health.room)}"
        return Check(
            name="queue",
            ok=False,
            text=f"{text}. It is full: new requests are refused{room}",
            hint="Ask less at once, raise max_queue, or give models to a second machine.",
        )
    return Check(
        name="queue",
        ok=health.oldest_waiting < _LONG,
        text=text,
        hint="`mlx-guarded explain ID` tells the story of one; `mlx-guarded cancel ID` stops one.",
    )


def _story(request: RequestStatus) -> str:
    expected = request.expected_wait
    wait = "" if expected is None else f" ({about(expected)} more)"
    return f"{request.request_id}: {short(request.words or request.state)}{wait}"


def _memory(health: Health) -> Check:
    if not health.budget_bytes:
        return Check(name="memory", ok=True, text="no model was asked for yet")
    elsewhere = held_bytes(health.held_by)
    text = f"{size(health.memory_bytes)} of {size(health.budget_bytes)} promised"
    if elsewhere:
        text += f"; {listed(health.held_by)}"
    taken = health.memory_bytes + elsewhere
    thin = taken > _THIN * health.budget_bytes
    return Check(
        name="memory",
        ok=True,
        text=text,
        hint="Little is left: another model, or a long context, waits or evicts. `mlx-guarded fit` "
        "tells which models fit together."
        if thin
        else "",
    )


def _quarantine(models: Sequence[ModelInfo]) -> Iterator[Check]:
    for model in models:
        if model.state == "quarantined":
            yield Check(
                name="model",
                ok=False,
                text=f"{short(model.name)} is in quarantine: the engine died of it "
                f"{counted(model.crashes, 'time')} ({model.cause})",
                hint=f"When the cause is gone: `mlx-guarded forgive {short(model.name)}`.",
            )


def _device(events: Sequence[Event]) -> Iterator[Check]:
    started = [event for event in events if event.kind == "engine.started"]
    if not started:
        return
    details = started[-1].details
    device, wirable = str(details.get("device") or "unknown device"), details.get("wirable")
    if not wirable:
        yield Check(name="device", ok=True, text=device)
    elif details.get("wired"):
        yield Check(name="device", ok=True, text=f"{device}, {size(int(details['wired']))} wired")
    else:
        yield Check(
            name="device",
            ok=True,
            text=f"{device}, nothing wired",
            hint="If a large model is slow, wired_memory may help; see concepts/memory.md in the "
            "documentation before it is set.",
        )


def _deaths(seen: Seen) -> Iterator[Check]:
    died = [event for event in seen.events or () if event.kind == "engine.died"]
    if died:
        newest = died[-1]
        how = str(newest.details.get("how") or newest.cause)
        yield Check(
            name="deaths",
            ok=False,
            text=f"the engine died {counted(len(died), 'time')}, the last time "
            f"{seconds(seen.now - newest.time)} ago ({how}"
            f"{f', with {short(newest.model)}' if newest.model else ''})",
            hint="Answers went on from where they were. Lower memory_budget if it ran out of "
            "memory; otherwise the server's log has what it said last.",
        )


def _deferrals(recent: Histories, now: float) -> Iterator[Check]:
    """The load that waited longest for generations."""

    def waited(job: JobHistory) -> float:
        until = job.started if job.started is not None else job.ended
        return (now if until is None else until) - (job.deferred or now)

    deferred = [job for job in recent.jobs if job.subject == "load" and job.deferrals]
    if not deferred:
        return
    longest = max(deferred, key=waited)
    behind = who([(name, short(model)) for name, model in longest.waiting_for[:_SHOWN]])
    yield Check(
        name="deferred",
        ok=True,
        text=f"{counted(len(deferred), 'load')} waited for answers or memory, that of "
        f"{short(longest.model or '')} longest: {seconds(waited(longest))}"
        + (f", behind {behind}" if behind else ""),
        hint="That is the guard at work: a load never overlaps an answer. A shorter load_wait "
        "pauses answers sooner."
        if waited(longest) >= _LONG
        else "",
    )


def _swaps(recent: Histories) -> Check:
    """Models that push each other out of memory."""
    loads = [job for job in recent.jobs if job.subject == "load" and job.outcome == "finished"]
    evicted = {name for job in loads for name in job.evict}
    times = Counter(job.model for job in loads if job.model in evicted)
    swapped = sorted(model for model, count in times.items() if model and count > _AGAIN)
    minutes = max((recent.last - recent.first) / 60, 1.0)
    text = f"{counted(len(loads), 'load')}, {len(loads) / minutes:.1f} a minute"
    if not swapped:
        return Check(name="loads", ok=True, text=text)
    pushed_by = {job.model or "" for job in loads if {*job.evict} & {*swapped}}
    with_others = swapped if len(swapped) > 1 else sorted({*swapped, *pushed_by})
    spent = sum((job.ended or 0) - (job.started or 0) for job in loads)
    return Check(
        name="loads",
        ok=False,
        text=f"{text}: {listing(map(short, with_others))} push each other out of memory, and "
        f"loading took {seconds(spent)}",
        hint=f"`mlx-guarded fit {' '.join(with_others)}` tells what would let them stay together. "
        "Asking one model several times before the other makes fewer loads.",
    )


def _time(recent: Histories) -> Iterator[Check]:
    """What the answers spent their time on."""
    done = [r for r in recent.requests.values() if _whole(r)]
    if not done:
        return
    parts = {
        "waiting to start": sum((r.started or 0) - (r.queued or 0) for r in done),
        "reading prompts": sum((r.first_token or 0) - (r.started or 0) for r in done),
        "answering": sum((r.ended or 0) - (r.first_token or 0) for r in done),
    }
    still = sum((p.end or 0) - p.start for r in done for p in r.pauses if p.end is not None)
    parts["answering"] -= still
    parts["standing still"] = still
    whole = sum(parts.values()) or 1.0
    shares = [f"{value / whole:.0%} {name}" for name, value in parts.items() if value > 0]
    speed = [rate for r in done if (rate := r.speed()) is not None]
    text = f"of {counted(len(done), 'answer')}: {listing(shares)}"
    if speed:
        text += f"; {sum(speed) / len(speed):.1f} tokens/s each"
    yield Check(name="time", ok=True, text=text, hint=_ADVICE[max(parts, key=lambda p: parts[p])])


_ADVICE = {
    "waiting to start": "Most of the time is waiting: for loads, or for places among the running. "
    "Keep models in memory (keep_alive, --pin), or ask for one model at a time.",
    "reading prompts": "Most of the time is reading prompts. Begin prompts alike, so that the "
    "prefix cache has them, or shorten them.",
    "answering": "",
    "standing still": "Answers stand still most of the time, while models are loaded.",
}


def _whole(request: RequestHistory) -> bool:
    times = (request.queued, request.started, request.first_token, request.ended)
    return request.outcome == "finished" and None not in times
