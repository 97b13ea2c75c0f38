"""A thread that runs what is posted to it, one call after the other."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

logger = logging.getLogger("mlx_guarded_llm.backend")


class Loop:
    """The thread, its inbox and its clock. A subclass says what there is to do.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._running = True
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    # ---- from any thread ---------------------------------------------------------

    def post(self, call: Callable[[], None]) -> None:
        """Have `call` run on this loop's thread. Never blocks."""
        self._inbox.put(call)
        if not self._running:
            self._run_rest()

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """As `post`, with a future for what it returns."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        self.post(run)
        return future

    def join(self, timeout: float) -> bool:
        """Wait until the thread has ended. Returns whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the thread has not ended."""
        return self._thread.is_alive()

    # ---- for the subclass --------------------------------------------------------

    def start(self) -> None:
        """Begin, when everything the calls need is there."""
        self._thread.start()

    def deadline(self) -> float | None:
        """When `tick` is due next, in seconds of `time.monotonic()`."""
        raise NotImplementedError

    def tick(self, now: float) -> None:
        """Do what is due. It is called after every call as well."""
        raise NotImplementedError

    def failed(self, error: Exception) -> None:
        """A call or a tick raised, which should not happen."""
        raise NotImplementedError

    # ---- the loop ----------------------------------------------------------------

    def _run(self) -> None:
        while self._running:
            for work in (self._next, lambda: self.tick(time.monotonic())):
                try:
                    work()
                except Exception as error:
                    logger.exception("the dispatcher failed")
                    self.failed(error)
        self._run_rest()

    def _next(self) -> None:
        due = self.deadline()
        timeout = None if due is None else max(0.0, due - time.monotonic())
        try:
            call = self._inbox.get(timeout=timeout)
        except queue.Empty:
            return
        call()

    def _run_rest(self) -> None:
        """After the end: run what is still posted, which then only refuses."""
        try:
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            return
