"""Streams: tried again until their first piece, and never mended after it."""

from __future__ import annotations

import pytest

from mlx_guarded_llm.errors import AttemptsExhausted, DegradedAnswer, EngineDied, FallbackRefused
from mlx_guarded_llm.testing.faulty import LOOP, Broken
from tests.unit.fallback.conftest import dead, guarded


def test_a_stream_is_tried_again_until_its_first_piece() -> None:
    llm, _ = guarded({"big": [dead(), Broken(dead(), pieces=0)]}, hold_back=0)
    chunks = list(llm.stream("?"))
    assert "".join(c.text for c in chunks) == "Forty two."
    assert len(chunks) == 2
    assert chunks[-1].guard is not None and len(chunks[-1].guard.attempts) == 3
    assert all(c.guard is None for c in chunks[:-1])


def test_a_stream_that_breaks_later_is_told_and_never_mended_by_another_answer() -> None:
    llm, backend = guarded({"big": [Broken(dead(), pieces=2)]}, hold_back=0)
    passed: list[str] = []
    with pytest.raises(AttemptsExhausted, match="broke off") as caught:
        passed.extend(chunk.text for chunk in llm.stream("?"))
    assert passed == ["Half. ", "Half. "]
    assert isinstance(caught.value.__cause__, EngineDied)
    assert len(backend.calls) == 1


def test_holding_back_keeps_a_stream_safe_for_longer() -> None:
    llm, _ = guarded({"big": [Broken(dead(), pieces=2)]}, hold_back=20)
    assert "".join(c.text for c in llm.stream("?")) == "Forty two."


def test_a_stream_tells_at_its_end_that_it_was_degraded() -> None:
    llm, _ = guarded({"big": [LOOP]}, hold_back=0)
    passed: list[str] = []
    with pytest.raises(DegradedAnswer):
        passed.extend(chunk.text for chunk in llm.stream("?"))
    assert passed
    llm, _ = guarded({"big": [LOOP]}, hold_back=0, on_degraded="mark")
    last = list(llm.stream("?"))[-1]
    assert last.guard is not None and last.guard.degraded == ("loop",)


def test_a_refused_fallback_passes_nothing_on() -> None:
    llm, _ = guarded({"big": [dead()] * 3}, hold_back=0)
    passed: list[str] = []
    with pytest.raises(FallbackRefused):
        passed.extend(chunk.text for chunk in llm.stream("?"))
    assert passed == []


def test_a_stream_that_was_left_ends() -> None:
    llm, _ = guarded({}, hold_back=0)
    stream = llm.stream("?")
    next(stream)
    stream.close()
    assert list(stream) == []
    with llm.stream("?") as other:
        pass
    assert list(other) == []


async def test_an_async_stream_that_was_left_ends() -> None:
    llm, _ = guarded({}, hold_back=0)
    stream = llm.astream("?")
    await anext(stream)
    await stream.aclose()
    assert [chunk async for chunk in stream] == []
