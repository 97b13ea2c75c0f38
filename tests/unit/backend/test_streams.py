"""How items come from other threads into an event loop: woken once for many."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial

from mlx_guarded_llm.backend.streams import AsyncStream, Postbag
from mlx_guarded_llm.results import Chunk, Usage

STREAMS = 32
LAST = Chunk(text="end", finish_reason="stop", usage=Usage(1, 2))


def elsewhere(work: Callable[[], None]) -> None:
    """Do something in another thread while this one, and its event loop, stands still."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_loop_is_woken_once_for_the_pieces_of_all_streams() -> None:
    async def main() -> None:
        cancelled: list[str] = []
        streams = [AsyncStream(f"r{n}", cancelled.append) for n in range(STREAMS)]
        bag = Postbag.of(asyncio.get_running_loop())

        def decode_step(item: Chunk) -> None:
            for stream in streams:
                stream.mail.put(item)

        for step in range(3):
            elsewhere(partial(decode_step, Chunk(text=str(step))))
            assert bag.wakes == step + 1
            assert [(await anext(stream)).text for stream in streams] == [str(step)] * STREAMS

        def last_steps() -> None:
            decode_step(Chunk(text="3"))
            decode_step(LAST)

        elsewhere(last_steps)
        assert bag.wakes == 4
        for stream in streams:
            assert [chunk.text async for chunk in stream] == ["3", "end"]
        assert not cancelled

    asyncio.run(main())


def test_a_loop_that_stood_still_is_woken_again() -> None:
    loop = asyncio.new_event_loop()

    async def begin() -> AsyncStream:
        return AsyncStream("r", lambda name: None)

    stream = loop.run_until_complete(begin())
    elsewhere(lambda: stream.mail.put(Chunk(text="a")))
    assert loop.run_until_complete(anext(stream)).text == "a"
    elsewhere(lambda: stream.mail.put(LAST))
    assert loop.run_until_complete(anext(stream)) == LAST
    loop.close()


def test_what_comes_for_a_closed_loop_ends_its_request() -> None:
    cancelled: list[str] = []

    async def begin() -> AsyncStream:
        stream = AsyncStream("r", cancelled.append)
        elsewhere(lambda: stream.mail.put(Chunk(text="never read")))
        return stream

    stream = asyncio.run(begin())
    assert not cancelled
    stream.mail.put(Chunk(text="nobody listens"))
    assert cancelled == ["r"]
    stream.mail.put(LAST)
    assert cancelled == ["r"]
