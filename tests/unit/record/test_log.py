"""The record: bounded, safe to share, and told to `logging` one line an event."""

from __future__ import annotations

import gc
import logging
import threading

import pytest

from mlx_guarded_llm.logs import NAME as LOGGER
from mlx_guarded_llm.record import Event, Record

from .incidents import BIG, PHI, at, crowd, incident


def test_keeps_events_in_order() -> None:
    record = Record()
    for event in incident():
        record.append(event)
    assert record.events() == tuple(incident())
    assert len(record) == len(incident())
    assert record.dropped == 0


def test_drops_the_oldest_and_counts_them() -> None:
    record = Record(maxlen=3)
    for time in range(5):
        record.append(at(time, "request.queued", PHI, f"r{time}"))
    assert [event.request_id for event in record.events()] == ["r2", "r3", "r4"]
    assert record.dropped == 2


def test_a_full_record_is_no_work_for_the_garbage_collector() -> None:
    record = Record()
    for number in range(1000):
        waits = ((f"r{number}", "/models/a"),)
        details = {"bytes": number, "seconds": number / 7, "kind": f"k{number}"}
        record.append(Event("load.deferred", 1.0, "/b", None, "j", "", waits, details))
    for _ in range(3):  # each pass lets go of one more level of tuples
        gc.collect()
    assert not [kept for kept in record._events if gc.is_tracked(kept)]
    last = record.events()[-1]
    assert last.details == {"bytes": 999, "seconds": 999 / 7, "kind": "k999"}
    assert last.waiting_for == (("r999", "/models/a"),)


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_the_latest_come_oldest_first(count: int) -> None:
    record = Record(maxlen=3)
    assert record.latest(count) == ()
    for time in range(5):
        record.append(at(time, "request.queued", PHI, f"r{time}"))
    kept = record.events()
    assert record.latest(count) == kept[len(kept) - min(count, 3) :]


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_the_latest_first_are_the_latest_turned_round(count: int) -> None:
    record = Record(maxlen=3)
    for time in range(5):
        record.append(at(time, "request.queued", PHI, f"r{time}"))
    found = record.latest_first(count)
    record.append(at(5, "request.queued", PHI, "r5"))  # too late to be among them
    expected = ["r4", "r3", "r2"][:count]
    assert [event.request_id for event in found] == expected


def test_threads_may_append_and_read_at_once() -> None:
    record = Record(maxlen=500)
    start = threading.Barrier(9)

    def append(name: str) -> None:
        start.wait()
        for time in range(1000):
            record.append(at(time, "request.queued", PHI, name))

    threads = [threading.Thread(target=append, args=(f"t{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    start.wait()
    while any(thread.is_alive() for thread in threads):
        assert len(record.events()) <= 500
    assert len(record) == 500
    assert record.dropped == 7500
    # Each thread's own events keep their order.
    for n in range(8):
        times = [event.time for event in record.events() if event.request_id == f"t{n}"]
        assert times == sorted(times)


def _lines(caplog: pytest.LogCaptureFixture, events: list[Event], level: int) -> list[str]:
    record = Record()
    with caplog.at_level(level, logger=LOGGER):
        for event in events:
            record.append(event)
    return [f"{r.levelname} {r.name.removeprefix(LOGGER)} {r.message}" for r in caplog.records]


def test_info_tells_who_waited_for_whom(caplog: pytest.LogCaptureFixture) -> None:
    assert _lines(caplog, incident(), logging.INFO) == [
        f"INFO .request r1 ({BIG}) started",
        f"INFO .load load of {PHI} queued, asked for by r2",
        f"INFO .load load of {PHI} deferred behind r1 ({BIG})",
        f"INFO .request r1 ({BIG}) paused: load_wait passed",
        f"INFO .load load of {PHI} started, evicts qwen3:8b, with r1 paused",
        f"INFO .load load of {PHI} finished: 2.39 GB in 2.50 s",
        f"INFO .request r1 ({BIG}) resumed",
        f"INFO .request r2 ({PHI}) started",
        f"INFO .request r2 ({PHI}) finished (stop): "
        "812 prompt tokens (12 cached), 201 generated in 10.5 s",
        f"INFO .request r1 ({BIG}) finished (stop): 96 prompt tokens, 1700 generated in 200 s",
    ]


def test_queued_and_first_token_are_for_debugging(caplog: pytest.LogCaptureFixture) -> None:
    lines = _lines(caplog, incident(), logging.DEBUG)
    assert f"DEBUG .request r1 ({BIG}) has its first token" in lines
    assert f"DEBUG .request r2 ({PHI}) queued behind j1 ({PHI})" in lines


def test_failures_warn_and_cancels_do_not(caplog: pytest.LogCaptureFixture) -> None:
    lines = _lines(caplog, crowd(), logging.INFO)
    assert f"WARNING .request a ({PHI}) failed: GenerationFailed: NaN" in lines
    assert f"INFO .request b ({PHI}) cancelled: the caller went away" in lines


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (at(0, "engine.failed", cause="SIGABRT"), "ERROR .engine engine failed: SIGABRT"),
        (at(0, "engine.started"), "INFO .engine engine started"),
        (at(0, "run.queued", job="j7"), "INFO .run run j7 queued"),
        (at(0, "run.finished", job="j7", seconds=1.0), "INFO .run run j7 finished: in 1.00 s"),
        (
            at(0, "unload.deferred", PHI, job="j7", behind=(("r1", PHI), ("r2", PHI))),
            f"INFO .unload unload of {PHI} deferred behind r1 ({PHI}) and r2 ({PHI})",
        ),
        (
            at(0, "load.failed", PHI, job="j7", cause="LoadFailed: bad weights"),
            f"WARNING .load load of {PHI} failed: LoadFailed: bad weights",
        ),
        (
            at(0, "load.cancelled", PHI, job="j7", cause="nobody waits for it"),
            f"INFO .load load of {PHI} cancelled: nobody waits for it",
        ),
    ],
)
def test_a_line_for_each_kind(event: Event, line: str, caplog: pytest.LogCaptureFixture) -> None:
    assert _lines(caplog, [event], logging.DEBUG) == [line]


def test_an_event_stays_on_its_line(caplog: pytest.LogCaptureFixture) -> None:
    evil = at(0, "request.failed", "m\nINFO all is well", "r1", cause="a\r\n\x1b[31mb")
    (line,) = _lines(caplog, [evil], logging.DEBUG)
    assert "\n" not in line
    assert "\r" not in line
    assert "\x1b" not in line


def test_fields_travel_with_the_log_record(caplog: pytest.LogCaptureFixture) -> None:
    event = incident()[5]
    _lines(caplog, [event], logging.INFO)
    fields = vars(caplog.records[0])
    assert fields["guard_kind"] == "load.deferred"
    assert fields["guard_model"] == PHI
    assert fields["guard_request_id"] == "r2"
    assert fields["guard_job_id"] == "j1"
    assert fields["guard_waiting_for"] == (("r1", BIG),)
    assert fields["guard_time"] == event.time


def test_a_broken_handler_harms_nobody() -> None:
    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("disk full")

    logger, handler, record = logging.getLogger(f"{LOGGER}.engine"), Broken(), Record()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        record.append(at(0, "engine.started"))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert len(record) == 1


def test_a_handler_may_read_the_record() -> None:
    record, seen = Record(), []

    class Reader(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            seen.append(len(record.events()))

    logger, handler = logging.getLogger(LOGGER), Reader()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        record.append(at(0, "engine.started"))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert seen == [1]


def test_costs_no_words_when_logging_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def line(_: Event) -> str:
        raise AssertionError("a line was made that nobody reads")

    monkeypatch.setattr("mlx_guarded_llm.record.log.line", line)
    logger = logging.getLogger(f"{LOGGER}.request")
    monkeypatch.setattr(logger, "isEnabledFor", lambda level: False)
    Record().append(incident()[0])


def test_the_library_prints_nothing_by_itself() -> None:
    handlers = logging.getLogger(LOGGER).handlers
    assert any(isinstance(handler, logging.NullHandler) for handler in handlers)


def test_what_is_new_is_read_by_position() -> None:
    record = Record(maxlen=3)
    assert record.since(0) == ((), 0)
    events = [at(time, "request.queued", PHI, f"r{time}") for time in range(5)]
    record.append(events[0])
    record.append(events[1])
    new, position = record.since(0)
    assert (list(new), position) == (events[:2], 2)
    assert record.since(position) == ((), 2)
    for event in events[2:]:
        record.append(event)
    assert record.since(position) == (tuple(events[2:]), 5)
    assert record.since(0) == (tuple(events[2:]), 5)  # the first two were dropped
    assert record.since(99) == ((), 5)
    assert record.since(-2) == (tuple(events[3:]), 5)
    assert record.since(-99) == (tuple(events[2:]), 5)


def test_a_follower_is_called_until_it_leaves() -> None:
    record = Record()
    seen = []
    leave = record.follow(lambda: seen.append(record.since(0)[1]))
    record.append(at(1, "request.queued", PHI, "r"))
    record.append(at(2, "request.queued", PHI, "s"))
    leave()
    record.append(at(3, "request.queued", PHI, "t"))
    assert seen == [1, 2]
