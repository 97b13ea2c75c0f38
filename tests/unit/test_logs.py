"""Handlers of the application run on no thread of ours."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from mlx_guarded_llm import logs

PATIENCE = 60.0


class Keeps(logging.Handler):
    """Keeps what it is given, and on which thread; it blocks until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.go_on.set()
        self.records: list[logging.LogRecord] = []
        self.threads: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.threads.append(threading.current_thread().name)
        assert self.go_on.wait(PATIENCE)
        self.records.append(record)


@pytest.fixture
def handler() -> Iterator[Keeps]:
    handler, logger = Keeps(), logging.getLogger(logs.NAME)
    logger.addHandler(handler)
    yield handler
    handler.go_on.set()
    logs.flush(PATIENCE)
    logger.removeHandler(handler)


def on(name: str, call: Callable[[], None]) -> None:
    """Run `call` on a thread of that name, to its end."""
    thread = threading.Thread(target=call, name=name)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def say(text: str, times: int) -> None:
    for i in range(times):
        logs.get_logger("a").error(text.format(i))


def test_one_that_blocks_holds_nobody(handler: Keeps) -> None:
    handler.go_on.clear()
    on("mlx-guarded-dispatch", lambda: say("n {}", 99))
    assert not logs.flush(0.01) and handler.records == []
    handler.go_on.set()
    assert logs.flush(PATIENCE)
    assert [r.getMessage() for r in handler.records] == [f"n {i}" for i in range(99)]
    assert {r.threadName for r in handler.records} == {"mlx-guarded-dispatch"}
    assert handler.threads == ["mlx-guarded-log"] * 99


def test_an_application_thread_sees_its_own_at_once(handler: Keeps) -> None:
    logs.get_logger("a").warning("here")
    assert handler.threads == [threading.current_thread().name]


def test_no_frame_leaves_its_thread(handler: Keeps) -> None:
    def fail() -> None:
        try:
            raise ValueError("of theirs")
        except ValueError:
            logs.get_logger("a").exception("it failed")

    on("mlx-guarded-mlx", fail)
    assert logs.flush(PATIENCE)
    (record,) = handler.records
    assert record.exc_info is None
    text = logging.Formatter().format(record)
    assert text.startswith("it failed\nTraceback") and text.endswith("ValueError: of theirs")


def test_one_that_raises(handler: Keeps) -> None:
    class Raises(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            sys.exit(3)

    raises, logger = Raises(), logs.get_logger("a")
    logger.addHandler(raises)
    try:
        on("mlx-guarded-io", lambda: logger.error("one"))
        assert logs.flush(PATIENCE)
    finally:
        logger.removeHandler(raises)
    on("mlx-guarded-io", lambda: logger.error("two"))
    assert logs.flush(PATIENCE)
    assert handler.records[-1].getMessage() == "two"


def test_what_waits_is_bounded(handler: Keeps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST", 10)
    handler.go_on.clear()
    on("mlx-guarded-io", lambda: say("x", 50))
    handler.go_on.set()
    assert logs.flush(PATIENCE)
    on("mlx-guarded-io", lambda: logs.get_logger("a").error("last"))
    assert logs.flush(PATIENCE)
    texts = [r.getMessage() for r in handler.records]
    dropped = [int(text.split()[0]) for text in texts if "dropped" in text]  # told once or twice
    assert dropped and texts.count("x") + sum(dropped) == 50 and texts[-1] == "last"


def test_filters_of_the_application_still_decide(handler: Keeps) -> None:
    logger = logs.get_logger("a")
    refuse = lambda record: "secret" not in record.getMessage()  # noqa: E731
    logger.addFilter(refuse)
    try:
        for text in ("a secret", "a line"):
            on("mlx-guarded-io", lambda text=text: logger.error(text))  # type: ignore[misc]
        assert logs.flush(PATIENCE)
    finally:
        logger.removeFilter(refuse)
    assert [r.getMessage() for r in handler.records] == ["a line"]


def test_loggers_are_the_usual_ones() -> None:
    assert logs.get_logger("a") is logging.getLogger("mlx_guarded_llm.a")
    assert logs.get_logger() is logging.getLogger("mlx_guarded_llm")
    assert len(logs.get_logger("a").filters) == 1, "however often it is asked for"
