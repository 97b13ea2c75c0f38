"""The event loop in which this process asks other servers.

A client's connections belong to the event loop that opened them. With one loop for all, a model
can be asked from any number of loops and threads, and a request can be cancelled from anywhere.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_owner = 0


class Task:
    """Something to be done in the event loop.

    Args:
        work: it.
        ended: called when it has ended, which it may before it has begun.
    """

    def __init__(self, work: Coroutine[Any, Any, None], ended: Callable[[Task], None]) -> None:
        self._loop = _running()
        self._work = work
        self._ended = ended
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """From any thread."""
        self._loop.call_soon_threadsafe(self._begin)

    def cancel(self) -> None:
        """From any thread, once it was told to begin."""
        self._loop.call_soon_threadsafe(self._cancel)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._work)
        self._task.add_done_callback(lambda done: self._ended(self))

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


def _running() -> asyncio.AbstractEventLoop:
    global _loop, _owner
    with _lock:
        if _loop is None or _owner != os.getpid():  # a forked child has no threads
            _loop, _owner = asyncio.new_event_loop(), os.getpid()
            threading.Thread(target=_loop.run_forever, name="ask-servers", daemon=True).start()
        return _loop
