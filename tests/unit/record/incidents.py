"""Event sequences written by hand, as the guard and the backend would emit them."""

from __future__ import annotations

from typing import Any

from mlx_guarded_llm.record import Event, Kind

BIG, PHI, QWEN = "deepseek-r1-distill-llama:70b", "phi3:mini-4k", "qwen3:8b"
ZERO = 5000.0  # monotonic clocks do not begin at nought


def at(
    time: float,
    kind: Kind,
    model: str | None = None,
    request: str | None = None,
    *,
    job: str | None = None,
    cause: str = "",
    behind: tuple[tuple[str, str], ...] = (),
    **details: Any,
) -> Event:
    return Event(
        kind=kind,
        time=ZERO + time,
        model=model,
        request_id=request,
        job_id=job,
        cause=cause,
        waiting_for=behind,
        details=details,
    )


def incident() -> list[Event]:
    """The 70B answers for long; phi3's load is deferred, and at 120 s it pauses the 70B."""
    return [
        at(0, "request.queued", BIG, "r1"),
        at(0, "request.started", BIG, "r1"),
        at(4, "request.first_token", BIG, "r1"),
        at(56, "request.queued", PHI, "r2", behind=(("j1", PHI),)),
        at(56, "load.queued", PHI, "r2", job="j1"),
        at(56, "load.deferred", PHI, "r2", job="j1", behind=(("r1", BIG),)),
        at(176, "request.paused", BIG, "r1", job="j1", cause="load_wait passed"),
        at(176, "load.started", PHI, "r2", job="j1", evict=(QWEN,), paused=("r1",)),
        at(178.5, "load.finished", PHI, "r2", job="j1", bytes=2_390_000_000, seconds=2.5),
        at(178.5, "request.resumed", BIG, "r1", job="j1"),
        at(178.5, "request.started", PHI, "r2"),
        at(179, "request.first_token", PHI, "r2"),
        at(
            189,
            "request.finished",
            PHI,
            "r2",
            cause="stop",
            prompt_tokens=812,
            completion_tokens=201,
            cached_tokens=12,
            seconds=10.5,
        ),
        at(
            200,
            "request.finished",
            BIG,
            "r1",
            cause="stop",
            prompt_tokens=96,
            completion_tokens=1700,
            cached_tokens=0,
            seconds=200.0,
        ),
    ]


def crash() -> list[Event]:
    """What the server without a guard did: phi3 loads while the 70B generates."""
    return [
        at(0, "request.started", BIG, "r1"),
        at(56, "request.queued", PHI, "r2"),
        at(56, "load.started", PHI, "r2", job="j1"),
        at(91, "engine.failed", cause="SIGABRT"),
    ]


def crowd() -> list[Event]:
    """Three requests of one model at once; one fails, one is cancelled, one goes on."""
    events = [at(0, "request.queued", PHI, name) for name in ("a", "b", "c")]
    events += [at(1, "request.started", PHI, name) for name in ("a", "b", "c")]
    events += [
        at(2, "request.first_token", PHI, "a"),
        at(3, "request.queued", PHI, "d", behind=(("a", PHI),)),
        at(5, "request.failed", PHI, "a", cause="GenerationFailed: NaN", hint="Load it anew."),
        at(5, "request.started", PHI, "d"),
        at(6, "request.failed", PHI, "b", cause="RequestCancelled: the caller went away"),
        at(7, "request.finished", PHI, "d", cause="cancelled", completion_tokens=3),
    ]
    return events


DIED = "the worker (pid 7) died of SIGABRT while it was loading phi3:mini-4k"


_MADE: dict[str, Any] = {"pid": 9, "spawn": 0.2, "import": 0.7}


def death() -> list[Event]:
    """The engine dies in a load beside the paused 70B; so does the next, at its start."""
    return [
        *incident()[:8],  # the load of phi3 runs
        at(177, "engine.died", PHI, cause=DIED, pid=7, lived=400.0, stderr="assertion\n"),
        at(177.125, "request.interrupted", BIG, "r1", cause=DIED, emitted=57),
        at(177.125, "load.interrupted", PHI, job="j1", cause=DIED),
        at(177.125, "load.queued", BIG, job="load-9", cause="recovery"),
        at(178, "engine.died", cause="the worker (pid 8) died of SIGKILL", pid=8, lived=0.5),
        at(179, "engine.started", **_MADE),
        at(179, "load.started", BIG, job="load-9", evict=(), paused=()),
        at(191, "load.finished", BIG, job="load-9", bytes=39_700_000_000, seconds=12.0),
        at(191, "load.started", PHI, job="j1", evict=(), paused=()),
        at(193.5, "load.finished", PHI, job="j1", bytes=2_390_000_000, seconds=2.5),
        at(193.5, "request.started", BIG, "r1", recovering=16.5),
        at(193.5, "request.started", PHI, "r2", queued=137.5),
        at(194, "request.first_token", PHI, "r2"),
        at(200, "request.finished", PHI, "r2", cause="stop", completion_tokens=60),
        at(203.5, "request.finished", BIG, "r1", cause="stop", completion_tokens=1700),
    ]
