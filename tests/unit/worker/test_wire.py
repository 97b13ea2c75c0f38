"""Frames between parent and worker."""

from __future__ import annotations

import pickle
import struct
from typing import Any

import pytest

from mlx_guarded_llm.engine.protocol import Cancel, Start
from mlx_guarded_llm.worker.wire import (
    MAX_FRAME,
    PROTOCOL,
    FrameReader,
    Hello,
    WireBroken,
    frame,
    greeting,
    read_greeting,
)

HELLO = Hello(protocol=PROTOCOL, version="1.2.3", python="3.11.9", at=5.0)


def raw(value: Any) -> bytes:
    body = pickle.dumps(value)
    return struct.pack("!Q", len(body)) + body


def test_messages_come_out_as_they_went_in() -> None:
    messages = [Start("a"), Cancel("b"), None, "text", {"x": 1}]
    assert FrameReader().feed(frame(messages)) == messages


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 64])
def test_in_pieces_of_any_size(size: int) -> None:
    data = frame([Start("a"), Start("b")]) + frame([]) + frame([Cancel("a")])
    reader = FrameReader()
    got: list[Any] = []
    for n in range(0, len(data), size):
        got += reader.feed(data[n : n + size])
    assert got == [Start("a"), Start("b"), Cancel("a")]


def test_part_of_a_frame_is_no_message() -> None:
    reader = FrameReader()
    data = frame([Start("a")])
    assert reader.feed(data[:-1]) == []
    assert reader.feed(data[-1:]) == [Start("a")]


def test_a_large_message() -> None:
    text = "x" * 3_000_000
    assert FrameReader().feed(frame([text])) == [text]


@pytest.mark.parametrize(
    "data",
    [
        b"Traceback (most recent call last):\n",
        struct.pack("!Q", MAX_FRAME + 1),
        struct.pack("!Q", 5) + b"12345",
        raw("no list"),
        struct.pack("!Q", 0),
    ],
)
def test_nonsense(data: bytes) -> None:
    with pytest.raises(WireBroken):
        FrameReader().feed(data)


def test_what_cannot_be_pickled_raises() -> None:
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        frame([lambda: 1])


def test_a_greeting() -> None:
    (said,) = FrameReader().feed(greeting(HELLO))
    assert read_greeting(said) == HELLO


def test_a_greeting_of_a_later_version_says_more() -> None:
    (said,) = FrameReader().feed(greeting(HELLO))
    assert read_greeting(said | {"mood": "good"}) == HELLO


@pytest.mark.parametrize("said", [None, {}, {"version": "1"}, Start("a")])
def test_no_greeting(said: Any) -> None:
    with pytest.raises(WireBroken, match="greeting"):
        read_greeting(said)
