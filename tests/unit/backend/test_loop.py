"""The loop of the dispatcher: nothing that is done for one caller ends it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from mlx_guarded_llm.backend.loop import Loop
from mlx_guarded_llm.errors import EngineDied, RequestTimeout

PATIENCE = 30.0  # seconds; only a hang takes so long
ERRORS = [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit]


class Bare(Loop):
    """With nothing to do by the clock."""

    def __init__(self) -> None:
        super().__init__("loop of a test")
        self.failures: list[BaseException] = []
        self.start()

    def deadline(self) -> float | None:
        return None

    def tick(self, now: float) -> None:
        pass

    def failed(self, error: BaseException) -> None:
        self.failures.append(error)

    def stop(self) -> None:
        self._running = False


@pytest.fixture
def loop(caplog: pytest.LogCaptureFixture) -> Iterator[Bare]:
    loop = Bare()
    with caplog.at_level(logging.CRITICAL, "mlx_guarded_llm"):
        yield loop
    loop.post(loop.stop)
    assert loop.join(PATIENCE)


def works(loop: Bare) -> bool:
    return bool(loop.call(lambda: 7).wait(PATIENCE, give_up=lambda: None) == 7)


@pytest.mark.parametrize("error", ERRORS)
def test_what_a_call_raises_goes_to_its_owner(loop: Bare, error: type[BaseException]) -> None:
    def call() -> None:
        raise error("no")

    told: list[BaseException] = []
    loop.post(call, told.append)
    assert works(loop)
    assert [type(e) for e in told] == [error] and loop.failures == []
    with pytest.raises(error):
        loop.call(call).wait(PATIENCE, give_up=lambda: None)


@pytest.mark.parametrize("error", ERRORS)
def test_what_is_nobodys_is_a_failure_of_the_loop(loop: Bare, error: type[BaseException]) -> None:
    def call() -> None:
        raise error("no")

    loop.post(call)
    assert works(loop)
    assert [type(e) for e in loop.failures] == [error]


def test_an_owner_that_raises_too(loop: Bare) -> None:
    def call(*_: object) -> None:
        raise SystemExit

    loop.post(call, call)
    assert works(loop)


def test_it_has_ended_only_when_it_has(loop: Bare) -> None:
    go = threading.Event()
    loop.call(lambda: go.wait(PATIENCE))
    loop.post(loop.stop)
    assert not loop.join(0.01), "it is still at work"
    go.set()
    assert loop.join(PATIENCE) and loop.join(0)


def test_after_its_end_calls_are_run_by_who_posts_them() -> None:
    loop = Bare()
    loop.post(loop.stop)
    assert loop.join(PATIENCE)
    assert works(loop)


def test_a_wait_that_is_too_long_gives_up(loop: Bare) -> None:
    go, given_up = threading.Event(), threading.Event()
    loop.call(lambda: go.wait(PATIENCE))
    with pytest.raises(RequestTimeout):
        loop.call(lambda: 7).wait(0.01, give_up=given_up.set)
    assert given_up.is_set()
    go.set()


def test_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(EngineDied) as caught:
        Bare()
    assert caught.value.hint and caught.value.retryable
