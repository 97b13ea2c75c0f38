"""One request's story in words."""

from __future__ import annotations

import pytest

from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.record import Event, explain

from .incidents import BIG, PHI, at, crowd, incident


def test_the_one_who_waited() -> None:
    assert explain(incident(), "r2").splitlines() == [
        f"Request r2 asked for {PHI}.",
        "  at   0.00 s  queued; its model is not in memory, so a load of it was queued",
        f"  at   0.00 s  the load was deferred behind r1 ({BIG}), running for 56.0 s",
        "  at 120.00 s  the load started after 120 s, with r1 paused; "
        "qwen3:8b evicted to make room",
        "  at 122.50 s  the load finished: 2.39 GB in 2.50 s",
        "  at 122.50 s  started",
        "  at 123.00 s  first token, 0.50 s after its start",
        "  at 133.00 s  finished (stop): 812 prompt tokens (12 cached), 201 generated, "
        "20.0 tokens/s",
        "In all 133 s: 122 s waiting (120 s with the load deferred and 2.50 s loading) "
        "and 10.5 s running.",
    ]


def test_the_one_who_was_paused() -> None:
    story = explain(incident(), "r1")
    assert (
        f"at 176.00 s  paused at a token boundary for the load of {PHI}, asked for by r2" in story
    )
    assert "at 178.50 s  went on after 2.50 s" in story
    assert story.endswith("In all 200 s: 198 s running and 2.50 s paused.")


def test_a_pause_is_traced_to_its_load_without_a_job_id() -> None:
    events = [
        at(176, "request.paused", BIG, "r1") if event.kind == "request.paused" else event
        for event in incident()
    ]
    assert f"paused at a token boundary for the load of {PHI}" in explain(events, "r1")


def test_a_failure_with_its_hint() -> None:
    assert "at 5.00 s  failed with GenerationFailed: NaN Load it anew." in explain(crowd(), "a")


def test_cancels() -> None:
    assert "at 6.00 s  cancelled: the caller went away" in explain(crowd(), "b")
    assert "at 4.00 s  cancelled: 3 generated tokens" in explain(crowd(), "d")


def test_waiting_for_a_place_behind_another_request() -> None:
    assert f"at 0.00 s  queued behind a ({PHI})" in explain(crowd(), "d")


def test_joining_a_load_and_waiting_behind_one() -> None:
    events = [
        *incident()[:6],
        at(60, "request.queued", PHI, "r3", behind=(("j1", PHI),)),
        at(70, "request.queued", BIG, "r4", behind=(("j1", PHI),)),
        *incident()[6:9],
    ]
    joined = explain(events, "r3")
    assert "it joins those who wait for the load of its model, asked for by r2" in joined
    assert "at  -4.00 s  the load was deferred behind r1" in joined
    assert f"queued; it waits behind the load of {PHI}, asked for by r2" in explain(events, "r4")


def test_a_load_that_began_once_its_holder_had_ended() -> None:
    events = [
        at(0, "request.started", BIG, "r1"),
        at(1, "request.queued", PHI, "r2", behind=(("j1", PHI),)),
        at(1, "load.queued", PHI, "r2", job="j1"),
        at(1, "load.deferred", PHI, "r2", job="j1", behind=(("r1", BIG),)),
        at(9, "request.finished", BIG, "r1"),
        at(9, "load.started", PHI, "r2", job="j1"),
    ]
    story = explain(events, "r2")
    assert "the load started after 8.00 s, with r1 ended" in story
    assert "at 8.00 s  still waiting when the record ends" in story


def test_a_failed_load() -> None:
    cause = f"LoadDeferredTimeout: waited 120 s for r1 ({BIG}). Raise load_wait."
    events = [
        *incident()[:6],
        at(176, "load.failed", PHI, "r2", job="j1", cause=cause),
        at(176, "request.failed", PHI, "r2", cause=cause, hint="Raise load_wait."),
    ]
    story = explain(events, "r2")
    assert f"at 120.00 s  the load failed: {cause}\n" in story
    assert f"at 120.00 s  failed with {cause}\n" in story  # the hint is not said twice
    assert "In all 120 s: 120 s waiting (120 s with the load deferred)." in story


def test_the_end_is_the_end() -> None:
    events = [*incident()[:6], at(60, "request.failed", PHI, "r2", cause="RequestCancelled: x")]
    story = explain([*events, *incident()[6:9]], "r2")
    assert "the load started" not in story  # it went on for nobody's sake, after r2's end


@pytest.mark.parametrize(
    ("count", "state"), [(1, "waiting"), (2, "in its prefill"), (3, "generating"), (7, "paused")]
)
def test_unfinished(count: int, state: str) -> None:
    assert f"still {state} when the record ends" in explain(incident()[:count], "r1")


def test_a_dead_engine() -> None:
    events = [
        *incident()[:3],
        at(9, "engine.failed", cause="SIGABRT"),
        at(12, "request.resumed", BIG, "r1"),
    ]
    story = explain(events, "r1")
    assert "at  9.00 s  paused: SIGABRT" in story
    assert "at 12.00 s  went on after 3.00 s" in story


def test_dropped_beginnings_are_admitted() -> None:
    story = explain(incident()[6:], "r1")
    assert "Its first events were dropped from the bounded record" in story
    assert "In all" not in story
    assert "at 24.00 s  finished (stop)" in story


def test_an_unknown_request() -> None:
    with pytest.raises(InvalidRequest, match="no request 'r9'") as caught:
        explain(incident(), "r9")
    assert "dropped" in caught.value.hint


def test_each_attempt_of_a_call() -> None:
    attempts = [
        Event("request.queued", 0.0, PHI, "call"),
        Event("request.failed", 1.0, PHI, "call", cause="EngineDied"),
        Event("request.queued", 2.0, PHI, "call.2"),
        Event("request.queued", 3.0, PHI, "call.other"),
    ]
    told = explain(attempts, "call")
    heads = [story.splitlines()[0] for story in told.split("\n\n")]
    assert heads == [f"Request call asked for {PHI}.", f"Request call.2 asked for {PHI}."]


def test_a_job_deferred_twice() -> None:
    events = [
        at(0, "load.queued", BIG, "r1", job="j1"),
        at(0, "load.started", BIG, "r1", job="j1"),
        at(1, "load.queued", PHI, "r2", job="j2"),
        at(1, "request.queued", PHI, "r2", behind=(("j2", PHI),)),
        at(1, "load.deferred", PHI, job="j2", cause="behind a load", behind=(("j1", BIG),)),
        at(5, "load.finished", BIG, "r1", job="j1"),
        at(5, "load.deferred", PHI, job="j2", cause="memory", behind=(("r9", "qwen"),)),
    ]
    story = explain(events, "r2")
    assert f"at 0.00 s  the load was deferred behind the load of {BIG}" in story
    deferred = "at 4.00 s  the load was still deferred behind r9 (qwen)"
    assert f"{deferred} because memory was short" in story


def test_making_room() -> None:
    events = [
        at(0, "request.queued", PHI, "r1"),
        at(2, "unload.queued", BIG, "r1", job="j1", cause="room for r1"),
        at(2, "unload.started", BIG, job="j1"),
        at(3, "unload.finished", BIG, job="j1"),
        at(3, "request.started", PHI, "r1"),
    ]
    story = explain(events, "r1")
    assert f"at 2.00 s  it needs the unload of {BIG} first" in story


def test_a_request_that_was_refused_at_once() -> None:
    story = explain([at(0, "request.failed", PHI, "r1", cause="QueueFull: no place")], "r1")
    assert "it was refused at once, or its first events were dropped" in story
    assert "at 0.00 s  failed with QueueFull: no place" in story


def test_a_new_engine_counts_its_jobs_afresh() -> None:
    events = [
        at(0, "load.queued", PHI, "r1", job="load-1"),
        at(0, "request.queued", PHI, "r1", behind=(("load-1", PHI),)),
        at(5, "engine.failed", cause="SIGKILL"),
        at(5, "request.failed", PHI, "r1", cause="EngineDied: SIGKILL"),
        at(9, "load.queued", BIG, "r2", job="load-1"),
        at(9, "request.queued", BIG, "r2", behind=(("load-1", BIG),)),
        at(9, "load.started", BIG, job="load-1"),
    ]
    assert "the load failed: SIGKILL" in explain(events, "r1")
    assert "the load failed" not in explain(events, "r2")
    assert "queued; its model is not in memory" in explain(events, "r2")
