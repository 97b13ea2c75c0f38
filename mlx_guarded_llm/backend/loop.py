"""A thread that runs what is posted to it, one call after the other."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from ..errors import EngineDied
from ..logs import get_logger
from .streams import Promise

logger = get_logger("backend")

Call = Callable[[], None]
Blame = Callable[[BaseException], None]


class Loop:
    """The thread, its inbox and its clock. A subclass says what is to be done, and when.

    No exception ends the thread. What a call raises goes to whoever it was made for; without
    an owner it is a failure of the loop itself.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._inbox: queue.SimpleQueue[tuple[Call, Blame | None]] = queue.SimpleQueue()
        self._running = True
        self._over = False
        self._joining: list[queue.SimpleQueue[None]] = []
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    # ---- from any thread ---------------------------------------------------------

    def post(self, call: Call, blame: Blame | None = None) -> None:
        """Have `call` run on this loop's thread. Never blocks.

        Args:
            blame: takes what `call` raises; without it, that is a failure of the loop.
        """
        self._inbox.put((call, blame))
        if not self._running:
            self._run_rest()

    def call(self, function: Callable[[], Any]) -> Promise[Any]:
        """As `post`. Returns a promise of what it returns."""
        promise: Promise[Any] = Promise()
        self.post(lambda: promise.set(function()), promise.fail)
        return promise

    def join(self, timeout: float) -> bool:
        """Wait until the thread has ended. Returns whether it has."""
        # Thread.join alone is not enough: when it is interrupted, it takes the thread for
        # ended (CPython before 3.13). Each caller waits on a queue of its own, because an
        # interrupt may leave no lock held.
        arrived: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._joining.append(arrived)
        if not self._over:
            try:
                arrived.get(timeout=timeout)
            except queue.Empty:
                return self._over
        self._thread.join(timeout)
        return True

    @property
    def alive(self) -> bool:
        """Whether the thread has not ended."""
        return not self._over

    # ---- for the subclass --------------------------------------------------------

    def start(self) -> None:
        """Start the thread, when everything that the calls need is there.

        Raises:
            EngineDied: the system has no thread left.
        """
        try:
            self._thread.start()
        except RuntimeError as error:
            raise EngineDied(
                f"no thread can be started ({error}).",
                hint="Raise the limit of processes (ulimit -u, pids.max), or try again later.",
            ) from None

    def deadline(self) -> float | None:
        """When `tick` is due next, in seconds of `time.monotonic()`."""
        raise NotImplementedError

    def tick(self, now: float) -> None:
        """Do what is due. This also runs after every call."""
        raise NotImplementedError

    def failed(self, error: BaseException) -> None:
        """A tick, or a call without an owner, raised. This should not happen."""
        raise NotImplementedError

    # ---- the loop ----------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._running:
                self._safely(self._next)
                self._safely(lambda: self.tick(time.monotonic()))
            self._run_rest()
        finally:
            self._over = True
            for waiting in self._joining:
                waiting.put(None)

    def _next(self) -> None:
        due = self.deadline()
        timeout = None if due is None else max(0.0, due - time.monotonic())
        try:
            call, blame = self._inbox.get(timeout=timeout)
        except queue.Empty:
            return
        self._safely(call, blame)

    def _safely(self, call: Call, blame: Blame | None = None) -> None:
        """Run a call, and pass on whatever it raises, even a SystemExit."""
        try:
            call()
        except BaseException as error:
            if blame is None:
                logger.exception("the dispatcher failed")
            try:
                (blame or self.failed)(error)
            except BaseException:
                logger.exception("a failure could not be reported")

    def _run_rest(self) -> None:
        """After the end: run what is still posted; by now that only refuses."""
        try:
            while True:
                self._safely(*self._inbox.get_nowait())
        except queue.Empty:
            return
