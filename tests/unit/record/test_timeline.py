"""Spans: what each model did when, and whether a load met a generation."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mlx_guarded_llm.record import Event, Span, overlaps, timeline

from .incidents import BIG, PHI, QWEN, ZERO, at, crash, crowd, incident


def _told(spans: tuple[Span, ...], label: str | None = None) -> list[tuple[str, float, float]]:
    return [
        (span.state, span.start - ZERO, span.end - ZERO)
        for span in spans
        if label in (None, span.label)
    ]


def test_the_incident() -> None:
    chart = timeline(incident())
    assert [row.model for row in chart.rows] == [BIG, PHI]
    assert (chart.start, chart.end) == (ZERO, ZERO + 200)
    big, phi = chart.rows
    assert _told(big.spans) == [
        ("prefill", 0, 4),
        ("decode", 4, 176),
        ("paused", 176, 178.5),
        ("decode", 178.5, 200),
    ]
    # The request waits all the while, but the row shows why: one lane tells it all.
    assert _told(phi.spans) == [
        ("deferred", 56, 176),
        ("loading", 176, 178.5),
        ("prefill", 178.5, 179),
        ("decode", 179, 189),
    ]
    assert (big.lanes, phi.lanes) == (1, 1)
    assert phi.spans[0].cause == f"behind r1 ({BIG})"
    assert not any(span.unfinished for span in chart.spans())


def test_the_guarded_incident_has_no_overlap() -> None:
    assert overlaps(timeline(incident())) == []


def test_the_crash_has_one() -> None:
    ((load, generation),) = overlaps(timeline(crash()))
    assert (load.kind, load.row) == ("loading", PHI)
    assert (generation.kind, generation.label) == ("generating", "r1")


def _run_beside(start: float, end: float) -> list[Event]:
    return [
        at(0, "request.queued", BIG, "r1"),
        at(10, "request.started", BIG, "r1"),
        at(20, "request.paused", BIG, "r1"),
        at(30, "request.resumed", BIG, "r1"),
        at(start, "run.started", job="j1"),
        at(end, "run.finished", job="j1"),
        at(40, "request.finished", BIG, "r1"),
    ]


@pytest.mark.parametrize(
    ("start", "end", "count"),
    [
        (0, 10, 0),  # ends as the generation starts
        (40, 50, 0),  # starts as it ends
        (20, 30, 0),  # just within the pause
        (22, 22, 0),
        (15, 15, 1),  # took no time on a coarse clock, and still was forbidden
        (9, 11, 1),
        (19, 25, 1),
        (25, 31, 1),
        (19, 31, 2),  # on both sides of the pause
    ],
)
def test_overlaps_are_exact(start: float, end: float, count: int) -> None:
    events = sorted(_run_beside(start, end), key=lambda event: event.time)
    assert len(overlaps(timeline(events))) == count


def test_requests_at_once_lie_in_lanes() -> None:
    (row,) = timeline(crowd()).rows
    assert row.lanes == 4  # d waits beside the three that run
    for lane in range(row.lanes):
        spans = [span for span in row.spans if span.lane == lane]
        assert all(a.end <= b.start for a, b in pairwise(spans))
    assert _told(row.spans, "d") == [("waiting", 3, 5), ("prefill", 5, 7)]


def test_a_free_lane_is_used_again() -> None:
    events = [
        at(0, "request.started", PHI, "a"),
        at(1, "request.finished", PHI, "a"),
        at(1, "request.started", PHI, "b"),
        at(2, "request.finished", PHI, "b"),
    ]
    (row,) = timeline(events).rows
    assert row.lanes == 1


def test_failures_and_cancels_are_marked() -> None:
    marks = [(mark.kind, mark.label, mark.time - ZERO) for mark in timeline(crowd()).marks]
    assert marks == [("failed", "a", 5), ("cancelled", "b", 6), ("cancelled", "d", 7)]


def test_what_is_unfinished_ends_with_the_record() -> None:
    (row,) = timeline(crowd()).rows
    (span,) = [span for span in row.spans if span.unfinished]
    assert (span.label, span.state, span.end - ZERO) == ("c", "prefill", 7)


def test_an_unfinished_load_and_pause() -> None:
    chart = timeline(incident()[:8])
    open_ends = {span.kind for span in chart.spans() if span.unfinished}
    assert open_ends == {"paused", "loading"}
    assert overlaps(chart) == []


def test_a_wait_for_another_models_load_is_shown() -> None:
    events = [*incident()[:6], at(70, "request.queued", BIG, "r3", behind=(("j1", PHI),))]
    events.append(at(100, "request.started", BIG, "r3"))
    chart = timeline(events)
    assert _told(chart.rows[0].spans, "r3")[0] == ("waiting", 70, 100)


def test_a_wait_before_its_models_load_is_shown() -> None:
    events = [
        at(0, "request.queued", PHI, "r1"),
        at(3, "load.queued", PHI, "r1", job="j1"),
        at(3, "load.started", PHI, "r1", job="j1"),
        at(5, "load.finished", PHI, "r1", job="j1"),
        at(5, "request.started", PHI, "r1"),
        at(6, "request.finished", PHI, "r1"),
    ]
    (row,) = timeline(events).rows
    assert _told(row.spans) == [("waiting", 0, 3), ("loading", 3, 5), ("prefill", 5, 6)]
    assert row.lanes == 1


def test_dropped_beginnings_are_drawn_from_where_the_record_begins() -> None:
    events = incident()[6:]  # from the pause on
    big, phi = timeline(events).rows
    assert _told(big.spans) == [("paused", 176, 178.5), ("prefill", 178.5, 200)]
    assert _told(phi.spans)[0] == ("loading", 176, 178.5)
    (row,) = timeline([at(3, "engine.started"), at(5, "load.finished", PHI, job="j")]).rows
    assert _told(row.spans) == [("loading", 3, 5)]
    # Nobody knows since when it had been paused.
    (row,) = timeline([at(3, "engine.started"), at(5, "request.resumed", PHI, "r")]).rows
    assert _told(row.spans) == [("paused", 3, 5)]


def test_a_failure_whose_beginning_was_dropped_is_only_a_mark() -> None:
    chart = timeline([at(0, "request.failed", PHI, "r1", cause="QueueFull: no place")])
    assert [row.spans for row in chart.rows] == [()]
    assert [mark.label for mark in chart.marks] == ["r1"]


def test_nothing_generates_while_the_engine_is_dead() -> None:
    events = [
        at(0, "request.queued", BIG, "r1"),
        at(0, "request.started", BIG, "r1"),
        at(1, "request.first_token", BIG, "r1"),
        at(5, "engine.failed", cause="SIGKILL"),
        at(6, "engine.started"),
        at(6, "load.queued", BIG, job="j1"),
        at(6, "load.started", BIG, job="j1"),
        at(9, "load.finished", BIG, job="j1"),
        at(9, "request.started", BIG, "r1", cause="resumed"),
        at(12, "request.finished", BIG, "r1"),
    ]
    chart = timeline(events)
    assert _told(chart.rows[0].spans, "r1")[1:] == [
        ("decode", 1, 5),
        ("paused", 5, 9),
        ("decode", 9, 12),
    ]
    assert overlaps(chart) == []
    assert [mark.kind for mark in chart.marks] == ["engine.failed", "engine.started"]


def test_a_load_dies_with_its_engine_and_may_be_tried_again() -> None:
    events = [
        at(0, "load.queued", PHI, job="j1"),
        at(0, "load.started", PHI, job="j1"),
        at(2, "engine.failed", cause="SIGKILL"),
        at(3, "load.started", PHI, job="j1"),
        at(5, "load.finished", PHI, job="j1"),
    ]
    (row,) = timeline(events).rows
    assert _told(row.spans) == [("loading", 0, 2), ("loading", 3, 5)]


def test_foreign_work_has_a_row_and_unloads_are_exclusive() -> None:
    events = [
        at(0, "request.started", BIG, "r1"),
        at(1, "run.queued", job="j1"),
        at(1, "run.deferred", job="j1", behind=(("r1", BIG),)),
        at(2, "unload.started", QWEN, job="j2"),
        at(3, "unload.finished", QWEN, job="j2"),
        at(4, "request.finished", BIG, "r1"),
        at(4, "run.started", job="j1"),
        at(5, "run.finished", job="j1"),
    ]
    chart = timeline(events)
    assert [row.model for row in chart.rows] == [BIG, "backend.run", QWEN]
    assert _told(chart.rows[1].spans) == [("deferred", 1, 4), ("running", 4, 5)]
    assert [(job.kind, other.label) for job, other in overlaps(chart)] == [("unloading", "r1")]


def test_events_that_arrive_out_of_order_are_put_in_order() -> None:
    assert timeline(reversed(incident()[-2:])).end == ZERO + 200
    shuffled = [*incident()[1::2], *incident()[::2]]
    assert all(span.seconds >= 0 for span in timeline(shuffled).spans())


def test_no_events() -> None:
    chart = timeline([])
    assert chart.rows == ()
    assert overlaps(chart) == []


def test_a_part_of_the_record_is_cut_at_its_start_and_lasts_until_now() -> None:
    whole = timeline(incident())
    part = timeline(incident(), since=ZERO + 100, until=ZERO + 400)
    assert (part.start, part.end) == (ZERO + 100, ZERO + 400)
    big, phi = part.rows
    assert (big.model, phi.model) == (BIG, PHI)
    assert {span.kind for span in big.spans} == {span.kind for span in whole.rows[0].spans}
    assert min(span.start for span in part.spans()) == ZERO + 100
    late = timeline(incident(), since=ZERO + 1000, until=ZERO + 1300)
    assert not late.rows and not late.marks and (late.start, late.end) == (ZERO + 1000, ZERO + 1300)


def test_what_is_unfinished_lasts_until_now() -> None:
    events = [at(0, "request.queued", PHI, "r1"), at(1, "request.started", PHI, "r1")]
    (span,) = timeline(events, since=ZERO + 50, until=ZERO + 60).spans()
    assert (span.start, span.end, span.unfinished) == (ZERO + 50, ZERO + 60, True)
    assert timeline(events, until=ZERO - 5).end == ZERO + 1


def test_lanes_of_what_is_left_out_are_not_kept() -> None:
    events = [at(0, "request.started", PHI, f"r{n}") for n in range(9)]
    events += [at(1, "request.finished", PHI, f"r{n}") for n in range(8)]
    (row,) = timeline(events, since=ZERO + 2, until=ZERO + 3).rows
    assert row.lanes == 1
