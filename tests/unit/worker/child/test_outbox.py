"""Messages of the worker on their way to its parent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mlx_guarded_llm.worker.child.outbox import Outbox
from mlx_guarded_llm.worker.wire import FrameReader

PATIENCE = 60.0  # seconds


class Ends:
    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.far.settimeout(PATIENCE)
        self.failures: list[Exception] = []
        self.reader = FrameReader()
        self.outbox = Outbox(self.near, failed=self.failures.append)

    def read(self, count: int) -> list[Any]:
        messages: list[Any] = []
        while len(messages) < count:
            messages += self.reader.feed(self.far.recv(65536))
        return messages


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.near.close()
    ends.far.close()


def test_what_is_put_goes_at_once(ends: Ends) -> None:
    ends.outbox.put("a")
    assert ends.read(1) == ["a"]


def test_what_is_held_goes_with_the_next(ends: Ends) -> None:
    ends.outbox.hold("a")
    ends.outbox.hold("b")
    ends.outbox.put("c")
    assert FrameReader().feed(ends.far.recv(65536)) == ["a", "b", "c"]


def test_what_is_held_goes_in_one_frame(ends: Ends) -> None:
    for n in range(32):
        ends.outbox.hold(n)
    ends.outbox.flush()
    ends.outbox.flush()
    assert FrameReader().feed(ends.far.recv(65536)) == [*range(32)]


def test_many_threads_and_a_slow_reader_lose_nothing(ends: Ends) -> None:
    def put(who: int) -> None:
        for n in range(200):
            (ends.outbox.hold if who % 2 else ends.outbox.put)((who, n, "x" * 500))
            if n % 10 == 9:
                ends.outbox.flush()

    threads = [threading.Thread(target=put, args=(who,)) for who in range(6)]
    for thread in threads:
        thread.start()
    got = ends.read(1200)
    for thread in threads:
        thread.join(PATIENCE)
    for who in range(6):
        assert [n for w, n, _ in got if w == who] == [*range(200)], "each thread's own order"


def test_whoever_puts_is_held_while_nobody_reads(ends: Ends) -> None:
    put: list[int] = []

    def fill() -> None:
        for n in range(200):
            ends.outbox.put((n, "x" * 100_000))
            put.append(n)

    thread = threading.Thread(target=fill)
    thread.start()
    first = ends.read(1)
    assert thread.is_alive() and len(put) < 200, "the socket does not hold twenty megabytes"
    rest = ends.read(200 - len(first))
    thread.join(PATIENCE)
    assert [n for n, _ in first + rest] == [*range(200)]


def test_the_parent_is_gone(ends: Ends) -> None:
    ends.far.close()
    for n in range(1000):
        ends.outbox.put((n, "x" * 10_000))
    assert ends.failures == []


def test_it_goes_while_somebody_is_held(ends: Ends) -> None:
    thread = threading.Thread(target=lambda: ends.outbox.put("x" * 10_000_000))
    thread.start()
    ends.far.recv(10)
    ends.far.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_what_cannot_be_sent_is_a_failure_of_ours(ends: Ends) -> None:
    ends.outbox.put(lambda: 1)
    assert len(ends.failures) == 1
