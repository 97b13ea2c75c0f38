"""The record reads what the guard really emits."""

from __future__ import annotations

from mlx_guarded_llm.errors import RequestCancelled
from mlx_guarded_llm.guard import Guard
from mlx_guarded_llm.record import Event, explain, overlaps, timeline, to_perfetto
from tests.unit.guard.simulation import submit

from .incidents import BIG, DIED, PHI, ZERO, at
from .test_perfetto import check


def _guarded() -> list[Event]:
    """The incident, decided by the guard; foreign work and a cancel come after it."""
    events: list[Event] = []
    guard = Guard(emit=events.append)

    def load(begin: float, seconds: float, model: str) -> None:
        job = next(e.job_id for e in reversed(events) if e.kind == "load.started")
        assert job is not None
        guard.job_ended(ZERO + begin + seconds, job, bytes=2_390_000_000)

    submit(guard, ZERO, "r1", BIG)
    load(0, 10, BIG)
    guard.first_token(ZERO + 14, "r1")
    submit(guard, ZERO + 56, "r2", PHI)
    submit(guard, ZERO + 60, "r3", PHI)
    guard.tick(ZERO + 176)
    load(176, 2.5, PHI)
    guard.first_token(ZERO + 179, "r2")
    guard.ask_run(ZERO + 180, "run-1", "embedding")
    guard.ended(ZERO + 189, "r2", cause="stop", prompt_tokens=8, completion_tokens=21)
    guard.ended(ZERO + 190, "r3", error=RequestCancelled("the caller went away"))
    guard.ended(ZERO + 200, "r1", cause="stop", prompt_tokens=9, completion_tokens=99)
    guard.job_ended(ZERO + 201, "run-1")
    return events


def test_the_guard_keeps_loads_and_generations_apart() -> None:
    chart = timeline(_guarded())
    assert overlaps(chart) == []
    assert [row.model for row in chart.rows] == [BIG, PHI, "backend.run"]
    states = [(span.state, span.start - ZERO, span.end - ZERO) for span in chart.rows[0].spans]
    assert states == [
        ("loading", 0, 10),
        ("prefill", 10, 14),
        ("decode", 14, 176),
        ("paused", 176, 178.5),
        ("decode", 178.5, 200),
    ]
    assert [span.state for span in chart.rows[2].spans] == ["deferred", "running"]
    check(to_perfetto(_guarded()))


def test_every_request_has_its_story() -> None:
    events = _guarded()
    r1, r2, r3 = (explain(events, name) for name in ("r1", "r2", "r3"))
    assert f"paused at a token boundary for the load of {PHI}, asked for by r2" in r1
    assert "queued; its model is not in memory, so a load of it was queued" in r2
    assert f"the load was deferred behind r1 ({BIG}), running for 46.0 s" in r2
    assert "the load started after 120 s, with r1 paused" in r2
    assert "the load finished: 2.39 GB in 2.50 s" in r2
    assert "it joins those who wait for the load of its model, asked for by r2" in r3
    assert "cancelled: the caller went away" in r3


def _crashed() -> list[Event]:
    """The engine dies while phi3 loads beside the paused 70B, as guard and backend tell it."""
    events: list[Event] = []
    guard = Guard(emit=events.append)

    def started() -> str:
        return next(e.job_id or "" for e in reversed(events) if e.kind == "load.started")

    submit(guard, ZERO, "r1", BIG)
    guard.job_ended(ZERO + 10, started())
    guard.first_token(ZERO + 14, "r1")
    submit(guard, ZERO + 56, "r2", PHI)
    guard.tick(ZERO + 176)
    events.append(at(177, "engine.died", PHI, cause=DIED, pid=7, lived=400.0))
    guard.lost(ZERO + 177, DIED, emitted={"r1": 57})
    events.append(at(178, "engine.started", pid=8))
    guard.back(ZERO + 178)
    guard.job_ended(ZERO + 190, started(), bytes=39_700_000_000)
    guard.job_ended(ZERO + 192.5, started(), bytes=2_390_000_000)
    guard.first_token(ZERO + 193, "r2")
    guard.ended(ZERO + 199, "r2", cause="stop", completion_tokens=60)
    timing, _ = guard.ended(ZERO + 202.5, "r1", cause="stop", completion_tokens=1700)
    assert (timing.paused, timing.recovering) == (1, 15.5)
    return events


def test_a_crash_is_drawn_as_the_guard_tells_it() -> None:
    chart = timeline(_crashed())
    assert overlaps(chart) == []
    big, phi = chart.rows
    states = [(s.state, s.start - ZERO, s.end - ZERO) for s in big.spans if s.label == "r1"]
    assert states == [
        ("prefill", 10, 14),
        ("decode", 14, 176),
        ("paused", 176, 177),
        ("recovering", 177, 192.5),
        ("decode", 192.5, 202.5),
    ]
    assert [s.state for s in phi.spans if s.label == f"load of {PHI}"] == [
        "deferred",
        "loading",
        "waiting",
        "loading",
    ]
    check(to_perfetto(_crashed()))


def test_a_crash_has_its_story() -> None:
    r1, r2 = explain(_crashed(), "r1"), explain(_crashed(), "r2")
    assert f"the engine died 167 s in: {DIED}" in r1
    assert "its model was back: 39.7 GB in 12.0 s" in r1
    assert "went on in the new engine after 15.5 s, behind the 57 tokens it had" in r1
    assert r1.endswith("176 s running, 1.00 s paused and 15.5 s recovering.")
    assert f"the load was interrupted: {DIED}" in r2
    assert "the load started again" in r2
