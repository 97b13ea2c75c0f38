"""The record as it grows, for coroutines, and marks by which a client goes on reading it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

from ..record import Event, Record

_MARK = re.compile(r"([0-9a-f]+)-([0-9]{1,18})")


def mark_of(run_id: str, position: int) -> str:
    """A position in the record of this run of the server, for clients."""
    return f"{run_id}-{position}"


def position_of(run_id: str, mark: str) -> int | None:
    """The position behind a mark; 0 for that of another run, as all that is kept here is new.

    Returns:
        None if it is no mark.
    """
    found = _MARK.fullmatch(mark)
    if found is None:
        return None
    return int(found[2]) if found[1] == run_id else 0


async def follow(record: Record, position: int = 0) -> AsyncIterator[tuple[list[Event], int]]:
    """What is new in a record, batch after batch, for ever.

    Args:
        record: of a backend.
        position: where to begin, as `Record.since` takes it.

    Yields:
        Events, and the position after them.
    """
    loop, grown = asyncio.get_running_loop(), asyncio.Event()
    told = False  # the loop knows that there is something, and need not be told again

    def wake() -> None:
        nonlocal told
        if told:
            return
        told = True
        try:
            loop.call_soon_threadsafe(grown.set)
        except RuntimeError:  # the loop is closed, so nobody listens
            pass

    leave = record.follow(wake)
    try:
        while True:
            told = False
            events, position = record.since(position)
            if events:
                yield list(events), position
                continue
            await grown.wait()
            grown.clear()
    finally:
        leave()
