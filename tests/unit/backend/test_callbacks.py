"""Callbacks of users: whatever they do, only others of theirs wait."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading

import pytest

from mlx_guarded_llm import Progress
from mlx_guarded_llm.backend.callbacks import MOST, Callbacks, at_once

PATIENCE = 30.0  # seconds; only a hang takes so long


def step(done: int, model: str = "phi3", *, over: bool = False) -> Progress:
    return Progress("load", done, 10, model=model, over=over)


class Slow:
    """Blocks in its first call until it is let go."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()
        self.heard: queue.SimpleQueue[Progress] = queue.SimpleQueue()

    def __call__(self, progress: Progress) -> None:
        self.entered.set()
        assert self.go.wait(PATIENCE)
        self.heard.put(progress)

    def next(self) -> Progress:
        return self.heard.get(timeout=PATIENCE)


def test_news_come_in_order() -> None:
    callbacks, heard = Callbacks(), queue.SimpleQueue[Progress]()
    news = [step(0), Progress("verify", 1, 2), step(10, over=True)]
    for progress in news:
        callbacks.tell(heard.put, progress)
    assert [heard.get(timeout=PATIENCE) for _ in news] == news
    callbacks.close()


def test_while_one_blocks_older_news_give_way_to_newer() -> None:
    callbacks, slow = Callbacks(), Slow()
    callbacks.tell(slow, step(0))
    assert slow.entered.wait(PATIENCE)
    for done in range(1, 10):
        callbacks.tell(slow, step(done))
    callbacks.tell(slow, step(10, over=True))
    slow.go.set()
    assert [slow.next() for _ in range(3)] == [step(0), step(9), step(10, over=True)]
    callbacks.close()


def test_what_is_marked_is_called_at_once_beside_one_that_blocks() -> None:
    callbacks, slow = Callbacks(), Slow()
    heard: list[Progress] = []

    @at_once
    def ours(progress: Progress) -> None:
        heard.append(progress)

    callbacks.tell(slow, step(0))
    assert slow.entered.wait(PATIENCE)
    callbacks.tell(ours, step(1))
    assert heard == [step(1)]
    slow.go.set()
    callbacks.close()


def test_what_waits_is_bounded_but_no_end_is_lost() -> None:
    callbacks, slow = Callbacks(), Slow()
    callbacks.tell(slow, step(0))
    assert slow.entered.wait(PATIENCE)
    for n in range(MOST + 500):
        callbacks.tell(slow, step(1, f"m{n}"))
    callbacks.tell(slow, step(1, "last", over=True))
    slow.go.set()
    heard = [slow.next() for _ in range(MOST + 2)]
    assert heard[-1] == step(1, "last", over=True)
    callbacks.close()


@pytest.mark.parametrize(
    "error", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit]
)
def test_one_that_raises(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    callbacks, heard = Callbacks(), queue.SimpleQueue[Progress]()

    def raising(progress: Progress) -> None:
        raise error("no")

    with caplog.at_level(logging.CRITICAL, "mlx_guarded_llm"):
        callbacks.tell(raising, step(1))
        callbacks.tell(heard.put, step(2))
        assert heard.get(timeout=PATIENCE) == step(2)
    callbacks.close()


def test_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    callbacks, heard = Callbacks(), queue.SimpleQueue[Progress]()

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        callbacks.tell(heard.put, step(1))
    callbacks.tell(heard.put, step(2, over=True))
    assert [heard.get(timeout=PATIENCE) for _ in range(2)] == [step(1), step(2, over=True)]
    callbacks.close()
