"""Work that nobody waits for, done in order on a daemon thread that is started when needed."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable

Work = Callable[[], None]


class Background:
    """The thread, and the work that waits for it. Every method may be called from any thread.

    Args:
        name: of the thread.
        idle: seconds without work after which the thread ends; None keeps it.
        failed: called with what a piece of work raised; it must not raise.
    """

    def __init__(
        self, name: str, *, idle: float | None, failed: Callable[[BaseException], None]
    ) -> None:
        self._name = name
        self._idle = idle
        self._failed = failed
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._waiting: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self._running = False

    @property
    def is_current(self) -> bool:
        """Whether this is its thread."""
        return threading.current_thread().name == self._name

    def put(self, work: Work, most: int) -> bool:
        """Have `work` done soon. Never blocks.

        Args:
            most: pieces of work that may wait.

        Returns:
            Whether it was accepted.
        """
        taken = self._waiting.qsize() < most
        if taken:
            self._waiting.put(work)
        self._start()
        return taken

    def flush(self, timeout: float) -> bool:
        """Wait until everything put before is done, for at most `timeout` seconds.

        Returns:
            Whether it is done.
        """
        if not self._running or self.is_current:
            return self._waiting.empty()
        reached: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._waiting.put(lambda: reached.put(None))
        try:
            reached.get(timeout=timeout)
        except queue.Empty:
            return False
        return True

    def _start(self) -> None:
        if self._running:
            return
        self._running = True
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except RuntimeError:  # the system has no thread left; the next piece of work tries again
            self._running = False

    def _run(self) -> None:
        # No lock: if two callers start a thread at the same moment, both threads may work.
        while self._running or not self._waiting.empty():
            try:
                work = self._waiting.get(timeout=self._idle)
            except queue.Empty:
                self._running = (
                    False  # then it looks once more for work that came just now, and ends
                )
                continue
            self._running = True
            try:
                work()
            except BaseException as error:
                self._failed(error)
