"""The parent's end of the socket: never blocks, loses nothing."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mlx_guarded_llm.engine.protocol import Start
from mlx_guarded_llm.worker.parent.channel import Channel
from mlx_guarded_llm.worker.wire import FrameReader, WireBroken, frame

PATIENCE = 60.0  # seconds


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    near, far = socket.socketpair()
    far.settimeout(PATIENCE)
    channel = Channel(near)
    yield channel, far
    channel.close()
    far.close()


def read(far: socket.socket, count: int) -> list[Any]:
    reader, messages = FrameReader(), list[Any]()
    while len(messages) < count:
        messages += reader.feed(far.recv(65536))
    return messages


def test_both_ways(ends: tuple[Channel, socket.socket]) -> None:
    channel, far = ends
    channel.put(Start("a"))
    assert read(far, 1) == [Start("a")]
    far.sendall(frame(["b", "c"]))
    assert channel.receive(PATIENCE) == ["b", "c"]


def test_nothing_came(ends: tuple[Channel, socket.socket]) -> None:
    channel, far = ends
    assert channel.receive(0) is None
    far.sendall(frame(["b"])[:5])
    assert channel.receive(PATIENCE) == [], "a part of a frame"
    assert channel.receive(0) is None


def test_putting_does_not_block_when_nobody_reads(ends: tuple[Channel, socket.socket]) -> None:
    channel, far = ends
    sent = [f"{n} " + "x" * 100_000 for n in range(30)]
    for text in sent:
        channel.put(text)
    got: list[Any] = []
    reader = threading.Thread(target=lambda: got.extend(read(far, len(sent))))
    reader.start()
    while reader.is_alive():
        channel.receive(0.01)
    assert got == sent


def test_what_waits_goes_out_although_nothing_else_happens(
    ends: tuple[Channel, socket.socket],
) -> None:
    channel, far = ends
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            channel.receive(PATIENCE)

    server = threading.Thread(target=serve)
    server.start()
    text = "x" * 5_000_000
    channel.put(text)
    assert read(far, 1) == [text]
    over.set()
    channel.wake()
    server.join()


def test_a_message_that_cannot_be_pickled_leaves_nothing(
    ends: tuple[Channel, socket.socket],
) -> None:
    channel, far = ends
    with pytest.raises(Exception, match=r"pickle|lambda"):
        channel.put(lambda: 1)
    channel.put("next")
    assert read(far, 1) == ["next"]


def test_the_last_words_of_the_other_end_are_read(ends: tuple[Channel, socket.socket]) -> None:
    channel, far = ends
    far.sendall(frame(["last"]))
    far.close()
    assert channel.receive(PATIENCE) == ["last"]
    assert channel.receive(0) is None and channel.over
    channel.put("nobody reads this")
    assert channel.receive(0) is None


def test_the_other_end_is_gone_where_sigpipe_kills(ends: tuple[Channel, socket.socket]) -> None:
    channel, far = ends
    far.close()
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        for _ in range(3):
            channel.put("nobody reads this")
    finally:
        signal.signal(signal.SIGPIPE, before)


def test_after_close(ends: tuple[Channel, socket.socket]) -> None:
    channel, _ = ends
    channel.close()
    channel.put("nobody reads this")
    channel.wake()
    channel.close()


def test_nonsense(ends: tuple[Channel, socket.socket]) -> None:
    channel, far = ends
    far.sendall(b"this is no frame at all")
    with pytest.raises(WireBroken):
        channel.receive(PATIENCE)
