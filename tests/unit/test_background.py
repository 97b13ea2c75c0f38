"""Work in the background: its thread comes when it is needed, and goes when it is not."""

from __future__ import annotations

import threading

import pytest

from mlx_guarded_llm.background import Background
from tests.engine._backend import wait_until


def test_without_a_thread_the_next_piece_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    own = Background("some-thread", idle=0.5, failed=lambda error: None)
    done: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        own.put(lambda: done.append(1), 10)
        assert not own.flush(0.01)
    own.put(lambda: done.append(2), 10)
    assert own.flush(60) and done == [1, 2]


def test_the_thread_ends_when_there_is_nothing_to_do() -> None:
    own = Background("some-thread", idle=0.5, failed=lambda error: None)
    done: list[int] = []
    for n in range(2):
        own.put(lambda n=n: done.append(n), 10)  # type: ignore[misc]
        wait_until(lambda: not own._running and done[-1:] == [n])  # noqa: B023 - called here
    assert done == [0, 1] and own.flush(0.01)
