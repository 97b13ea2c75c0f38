"""Calling progress callbacks, on a thread of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Hashable
from typing import TypeVar

from ..logs import get_logger
from ..models import OnProgress, Progress

logger = get_logger("backend")

MOST = 10_000  # calls that wait
AT_ONCE = "at_once"  # an attribute of functions

F = TypeVar("F", bound=Callable[..., None])


def at_once(listener: F) -> F:
    """Mark a callback of ours, which neither blocks nor raises.

    It is called where the news is, so it has heard everything before the answer is there.
    """
    setattr(listener, AT_ONCE, True)
    return listener


class Callbacks:
    """One backend's callbacks. One that blocks holds up only the others, as does one that raises.

    The calls about one subject come in order. While a callback is busy, a newer call about the
    same stage replaces the one that waits.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._order: queue.SimpleQueue[Hashable] = queue.SimpleQueue()  # None ends the thread
        self._news: dict[Hashable, tuple[OnProgress, Progress]] = {}
        self._thread: threading.Thread | None = None

    def tell(self, listener: OnProgress, progress: Progress) -> None:
        """Call `listener` soon. Never blocks, and never raises."""
        if getattr(listener, AT_ONCE, None) is True:
            listener(progress)
            return
        about = (progress.stage, progress.model, progress.request_id, progress.over)
        key = (id(listener), *about)
        with self._lock:
            waits = key in self._news
            if not waits and len(self._news) >= MOST and not progress.over:
                return
            self._news[key] = (listener, progress)
        if not waits:
            self._order.put(key)
        if self._thread is None:
            self._start()

    def close(self) -> None:
        """Nothing more comes. The calls that wait are still made, and nobody waits for them."""
        self._order.put(None)

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="mlx-guarded-callbacks", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread left; the next call tries again
            logger.warning("progress cannot be reported now: %s", error)
            return
        self._thread = thread

    def _run(self) -> None:
        while (key := self._order.get()) is not None:
            with self._lock:
                listener, progress = self._news.pop(key)
            try:
                listener(progress)
            except BaseException:  # a SystemExit ends nothing but this call
                logger.exception("a progress callback failed")
