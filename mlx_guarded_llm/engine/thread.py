"""The one thread of this process that touches MLX.

MLX's streams belong to the thread that made them, short-lived threads leak, and a
thread that used MLX and ends without `mx.clear_streams()` aborts the process at exit.
So there is one thread, it is made on first use and lives until the interpreter exits.
Every engine of the process shares it, which is what makes overlap impossible.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from ..errors import BackendClosed
from ..logs import get_logger

logger = get_logger("engine")

EXIT_GRACE = 60.0  # seconds; a slice of a load, or a user's function, may have to end first


class Steppable(Protocol):
    """Something with recurring work for the MLX thread."""

    def step(self) -> bool:
        """Do one piece of the work. Returns whether there is more to do right now."""

    def generating(self) -> set[str]:
        """Models of its unfinished generations."""

    def stop(self) -> None:
        """Drop everything that belongs to MLX; the thread is about to end."""


class MLXThread:
    """Runs posted calls in order; in between it steps each `Steppable` in turn."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._steppables: list[Steppable] = []
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlx-guarded-mlx", daemon=True)
        self._thread.start()
        # A daemon thread that is inside MLX when the interpreter goes away aborts the
        # process; atexit runs while threads still do.
        atexit.register(self._exit)

    @property
    def stopping(self) -> bool:
        """The interpreter is about to exit, so long work should be given up."""
        return self._stopping.is_set()

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` on the MLX thread, after everything posted before. From any thread."""
        self._calls.put(call)

    def add(self, steppable: Steppable) -> None:
        """Step `steppable` from now on. On the MLX thread only."""
        self.check()
        self._steppables.append(steppable)

    def remove(self, steppable: Steppable) -> None:
        """Stop stepping it. On the MLX thread only."""
        self.check()
        if steppable in self._steppables:
            self._steppables.remove(steppable)

    def generating(self) -> set[str]:
        """Models with unfinished generations, over all steppables. On the MLX thread only."""
        self.check()
        return set().union(*(steppable.generating() for steppable in self._steppables))

    def check(self) -> None:
        """Fail unless this is the MLX thread."""
        here = threading.current_thread()
        assert here is self._thread, f"MLX was touched from the thread {here.name}"

    def _run(self) -> None:
        busy = False
        while not self._stopping.is_set():
            self._take_calls(wait=not busy)
            busy = self._step_all()
        for steppable in tuple(self._steppables):  # each removes itself from the list as it stops
            _guarded(steppable.stop)
        if (mlx := sys.modules.get("mlx.core")) is not None:
            mlx.clear_streams()  # the last MLX call on this thread
        self._ended.set()

    def _take_calls(self, *, wait: bool) -> None:
        try:
            call = self._calls.get(block=wait)
            while True:
                _guarded(call)
                call = self._calls.get_nowait()
        except queue.Empty:
            return

    def _step_all(self) -> bool:
        busy = False
        for steppable in tuple(self._steppables):
            try:
                busy = steppable.step() or busy
            except BaseException:  # as in `_guarded`
                logger.exception("an engine failed outside of any request")
                _guarded(steppable.stop)
                self.remove(steppable)
        return busy

    def _exit(self) -> None:
        self._stopping.set()
        self.post(lambda: None)
        ended, code = False, 1
        try:
            # Not join(): if interrupted it believes that the thread has ended (before 3.13).
            ended = self._ended.wait(EXIT_GRACE)
        except KeyboardInterrupt:  # pressing it now means: do not wait
            code = 128 + signal.SIGINT
        if not ended:
            # Otherwise MLX's destructors would abort, with a core dump and no message.
            logger.critical("MLX work has not ended at exit; leaving hard")
            logging.shutdown()
            os._exit(code)
        self._thread.join()


def _guarded(call: Callable[[], None]) -> None:
    try:
        call()
    except BaseException:  # even a SystemExit: without this thread nobody gets an answer
        logger.exception("a call on the MLX thread failed")


_lock = threading.Lock()
_thread: MLXThread | None = None
_owner = os.getpid()


def mlx_thread() -> MLXThread:
    """The MLX thread of this process, started on first use.

    Raises:
        BackendClosed: this process was forked from one that had used MLX.
    """
    global _thread
    if os.getpid() != _owner:
        raise BackendClosed(
            "this process was forked from one that used MLX, which cannot be used after a fork.",
            hint="Start it with the 'spawn' method, or make the backend in the child only.",
        )
    with _lock:
        if _thread is None:
            _thread = MLXThread()
        return _thread


def _forked() -> None:
    """In a forked child: MLX may be used only if the parent had not used it yet."""
    global _owner, _lock
    _lock = threading.Lock()
    if _thread is None:
        _owner = os.getpid()
    else:
        atexit.unregister(_thread._exit)  # the thread does not exist in the child


os.register_at_fork(after_in_child=_forked)
