"""Disk work on a thread of its own: in order, whatever a piece of it does."""

from __future__ import annotations

import threading

import pytest

from mlx_guarded_llm import writer


def test_in_order_and_on_another_thread() -> None:
    done: list[tuple[int, str]] = []
    for n in range(5):
        writer.write_soon(lambda n=n: done.append((n, threading.current_thread().name)))  # type: ignore[misc]
    assert writer.flush(60)
    assert done == [(n, "mlx-guarded-writer") for n in range(5)]


def test_what_raises_is_logged_and_the_next_is_done(caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []
    writer.write_soon(lambda: done.append(1 // 0))
    writer.write_soon(lambda: done.append(2))
    assert writer.flush(60)
    assert done == [2]


def test_no_more_waits_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MOST", 3)
    go, taken = threading.Event(), threading.Event()
    done: list[int] = []

    def held() -> None:
        taken.set()
        go.wait(60)

    writer.write_soon(held)
    assert taken.wait(60)
    for n in range(10):
        writer.write_soon(lambda n=n: done.append(n))  # type: ignore[misc]
    assert not writer.flush(0.01)
    go.set()
    assert writer.flush(60)
    assert done == [0, 1, 2]
