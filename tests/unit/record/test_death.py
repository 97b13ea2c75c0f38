"""An engine dies, and what it had goes on in the next: every view of the record tells it."""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ET

import pytest

from mlx_guarded_llm.logs import NAME as LOGGER
from mlx_guarded_llm.record import Event, explain, overlaps, timeline, to_perfetto
from mlx_guarded_llm.record.chart_svg import render_svg
from mlx_guarded_llm.record.chart_text import plain_text
from mlx_guarded_llm.record.events import Kind
from mlx_guarded_llm.record.log import Record, line

from .incidents import BIG, DIED, PHI, ZERO, at, death, incident
from .test_perfetto import check


def told(events: list[Event], label: str) -> list[tuple[str, float, float]]:
    return [
        (span.state, span.start - ZERO, span.end - ZERO)
        for span in timeline(events).spans()
        if span.label == label
    ]


# ---- the story -----------------------------------------------------------------------


def test_the_story_of_an_answer_that_went_on() -> None:
    assert explain(death(), "r1").splitlines() == [
        f"Request r1 asked for {BIG}.",
        "  at   0.00 s  queued",
        "  at   0.00 s  started",
        "  at   4.00 s  first token, 4.00 s after its start",
        f"  at 176.00 s  paused at a token boundary for the load of {PHI}, asked for by r2",
        "  at 177.00 s  went on after 1.00 s",
        f"  at 177.00 s  the engine died 177 s in: {DIED}",
        "  at 178.00 s  the new engine died too: the worker (pid 8) died of SIGKILL",
        "  at 179.00 s  a new engine worked (spawn 0.20 s, import 0.70 s)",
        "  at 191.00 s  its model was back: 39.7 GB in 12.0 s",
        "  at 193.50 s  went on in the new engine after 16.5 s, behind the 57 tokens it had",
        "  at 203.50 s  finished (stop): 1700 generated tokens, 9.3 tokens/s",
        "In all 204 s: 186 s running, 1.00 s paused and 16.5 s recovering.",
    ]


def test_the_story_of_one_that_waited_for_the_load() -> None:
    story = explain(death(), "r2")
    for part in (
        f"at 121.12 s  the load was interrupted: {DIED}",
        "at 135.00 s  the load started again",
        "at 137.50 s  the load finished: 2.39 GB in 2.50 s",
    ):
        assert part in story
    assert story.count("a load of it was queued") == 1
    assert story.endswith(
        "In all 144 s: 138 s waiting (120 s with the load deferred and 3.62 s loading) "
        "and 6.50 s running."
    )


def test_the_story_of_one_that_only_its_batch_lost() -> None:
    events = [
        *incident()[:3],
        at(10, "request.interrupted", BIG, "r1", cause="out of memory"),
        at(12, "request.started", BIG, "r1", recovering=2.0),
        at(20, "request.failed", BIG, "r1", cause="GenerationFailed: once more"),
    ]
    story = explain(events, "r1")
    assert "at 10.00 s  cut off: out of memory\n" in story
    assert "at 12.00 s  went on after 2.00 s\n" in story
    assert "18.0 s running and 2.00 s recovering" in story


def test_a_speed_is_of_the_time_it_decoded() -> None:
    """177 s in the first engine less 4 s of prefill and 1 s of pause; 8 s in the last."""
    end = at(203.5, "request.finished", BIG, "r1", completion_tokens=1801, prefill=2.0, decode=8.0)
    assert explain([*death()[:-1], end], "r1").count(", 10.0 tokens/s") == 1


def test_one_that_never_went_on() -> None:
    waiting = death()[:11]
    assert "still waiting to go on when the record ends" in explain(waiting, "r1")
    late = at(190, "request.failed", BIG, "r1", cause="RequestTimeout: too late")
    story = explain([*death()[:9], late], "r1")
    assert "went on in" not in story and "failed with RequestTimeout: too late" in story


def test_a_story_whose_beginning_was_dropped() -> None:
    story = explain(death()[9:], "r1")
    assert f"at  0.00 s  cut off: {DIED}" in story
    assert "at 16.38 s  went on in the new engine after 16.4 s, behind the 57 tokens" in story


# ---- the charts ----------------------------------------------------------------------


def test_the_spans() -> None:
    assert told(death(), "r1") == [
        ("prefill", 0, 4),
        ("decode", 4, 176),
        ("paused", 176, 177),
        ("recovering", 177, 193.5),
        ("decode", 193.5, 203.5),
    ]
    assert told(death(), f"load of {PHI}") == [
        ("deferred", 56, 176),
        ("loading", 176, 177.125),
        ("waiting", 177.125, 191),
        ("loading", 191, 193.5),
    ]
    assert overlaps(timeline(death())) == []
    (unfinished,) = [s for s in timeline(death()[:11]).spans() if s.state == "recovering"]
    assert unfinished.unfinished and unfinished.cause == DIED


def test_the_marks() -> None:
    marks = [(m.kind, m.label, m.time - ZERO) for m in timeline(death()).marks]
    assert marks == [
        ("engine.died", "engine", 177),
        ("interrupted", f"load of {PHI}", 177.125),
        ("engine.died", "engine", 178),
        ("engine.started", "engine", 179),
    ]


def test_pending_jobs_outlive_an_engine() -> None:
    events = [at(0, "load.queued", PHI, "r2", job="j1"), at(1, "engine.died", cause=DIED)]
    assert told(events, f"load of {PHI}") == [("waiting", 0, 1)]
    assert not any(mark.kind == "failed" for mark in timeline(events).marks)


def test_the_chart_for_the_terminal() -> None:
    lines = plain_text(timeline(death()), 140).splitlines()
    assert "~" in lines[1]
    assert "~~ recovering" in "\n".join(lines) and "↯ interrupted" in "\n".join(lines)
    assert any(text.strip() == f"the engine died at 177 s: {DIED}" for text in lines)


def test_the_picture() -> None:
    svg = ET.fromstring(render_svg(timeline(death())))
    titles = [e.text or "" for e in svg.iter("{http://www.w3.org/2000/svg}title")]
    assert f"engine engine.died: {DIED}" in titles
    assert f"load of {PHI} interrupted: {DIED}" in titles
    assert f"r1: recovering for 16.5 s, from 177 s to 194 s: {DIED}" in titles


def test_the_trace() -> None:
    trace = to_perfetto(death())
    check(trace)
    events = trace["traceEvents"]
    assert [e["name"] for e in events if e["ph"] == "X" and e["cat"] == "recovering"] == [
        "recovering"
    ]
    instants = [(e["name"], e["s"]) for e in events if e["ph"] == "i"]
    assert instants.count(("engine.died", "p")) == 2
    assert (f"load of {PHI} interrupted", "t") in instants
    (outer,) = [e for e in events if e["ph"] == "X" and e["name"] == "r1"]
    assert outer["dur"] == 203_500_000


# ---- models that are not loaded any more ---------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("model.quarantined", f"{PHI} was quarantined at 1.00 s: three deaths"),
        ("model.forgiven", f"{PHI} was forgiven at 1.00 s: three deaths"),
    ],
)
def test_a_model_in_quarantine_is_told(kind: Kind, text: str) -> None:
    events = [at(0, "request.queued", PHI, "r1"), at(1, kind, PHI, cause="three deaths")]
    assert text in plain_text(timeline(events), 110)
    assert [m.label for m in timeline(events).marks] == [PHI]
    names = [e["name"] for e in to_perfetto(events)["traceEvents"] if e["ph"] == "i"]
    assert names == [f"{PHI} {kind.split('.')[1]}"]
    assert [row.model for row in timeline(events).rows] == [PHI]


# ---- the log -------------------------------------------------------------------------


def test_the_log(caplog: pytest.LogCaptureFixture) -> None:
    record = Record()
    with caplog.at_level(logging.INFO, logger=LOGGER):
        for event in [
            *death()[8:],
            at(300, "model.quarantined", PHI, cause="it was at work in 3 deaths"),
            at(301, "model.forgiven", PHI),
        ]:
            record.append(event)
    lines = [f"{r.levelname} {r.message}" for r in caplog.records]
    for text in (
        f"WARNING engine died after 400 s: {DIED}",
        f"WARNING r1 ({BIG}) interrupted after 57 tokens: {DIED}",
        f"WARNING load of {PHI} interrupted: {DIED}",
        "INFO engine started (spawn 0.20 s, import 0.70 s)",
        f"INFO r1 ({BIG}) went on after 16.5 s",
        f"ERROR {PHI} quarantined: it was at work in 3 deaths",
        f"INFO {PHI} forgiven",
    ):
        assert text in lines


def test_an_interruption_without_a_count() -> None:
    event = at(0, "request.interrupted", PHI, "r1", cause="out of memory")
    assert line(event) == f"r1 ({PHI}) interrupted: out of memory"
