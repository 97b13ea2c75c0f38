"""The stop button of a notebook ends a cell that awaits."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from mlx_guarded_llm.backend import streams
from mlx_guarded_llm.backend.streams import AsyncStream, Promise


async def pressed(waiting: Any) -> None:
    """Await it, and cancel that as ipykernel does: in a signal handler, without waking the loop.

    Raises:
        AssertionError: only something else woke the loop.
    """
    task = asyncio.ensure_future(waiting)
    woken: list[bool] = []
    asyncio.get_running_loop().call_later(20, woken.append, True)
    before = signal.signal(signal.SIGALRM, lambda *_: task.cancel())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        await task
    finally:
        signal.signal(signal.SIGALRM, before)
        assert not woken


@pytest.fixture(autouse=True)
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "in_notebook", lambda: True)


def test_of_a_whole_answer() -> None:
    given_up: list[bool] = []

    async def cell() -> None:
        promise: Promise[int] = Promise()
        await pressed(promise.wait_async(60, give_up=lambda: given_up.append(True)))

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cell())
    assert given_up == [True]


def test_of_a_stream_that_has_not_begun() -> None:
    cancelled: list[str] = []

    async def cell() -> None:
        stream = AsyncStream("r1", cancelled.append)
        await pressed(anext(stream))

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cell())
    assert cancelled == ["r1"]


def test_nothing_ticks_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STOP_DELAY", 0.01)

    async def cell() -> int:
        promise: Promise[int] = Promise()
        loop: Any = asyncio.get_running_loop()
        loop.call_later(0.1, promise.set, 7)
        value = await promise.wait_async(20, give_up=lambda: None)
        assert all(timer.cancelled() for timer in loop._scheduled)
        return value

    assert asyncio.run(cell()) == 7
